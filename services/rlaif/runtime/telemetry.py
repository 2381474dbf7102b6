"""Metrics of this process: one registry, and the RED metrics of a service."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from rlaif.runtime.context import current_trace_id as current_trace_id

REGISTRY = CollectorRegistry()
"""Where every metric of ours is registered: `Counter("rlaif_judge_labels_total", …, registry=REGISTRY)`."""

# A `_created` series beside every counter and histogram is of no use to us.
disable_created_metrics()  # type: ignore[no-untyped-call]
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)

# From a null call on loopback (1 ms) to a long batch on a large judge.
_SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


@dataclass(frozen=True)
class RequestMetrics:
    """Rate, errors and duration of a service's calls."""

    requests: Counter
    seconds: Histogram
    in_flight: Gauge


@cache
def request_metrics(service: str) -> RequestMetrics:
    """The RED metrics of a service, made once a process."""
    return RequestMetrics(
        requests=Counter(f"rlaif_{service}_requests_total", "Calls answered.", ["method", "code"], registry=REGISTRY),
        seconds=Histogram(
            f"rlaif_{service}_request_seconds",
            "Time from a call's arrival to its last byte handed over.",
            ["method"],
            buckets=_SECONDS_BUCKETS,
            registry=REGISTRY,
        ),
        in_flight=Gauge(f"rlaif_{service}_requests_in_flight", "Calls being served.", registry=REGISTRY),
    )
