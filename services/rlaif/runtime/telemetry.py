"""Metrics of this process: one registry, and the RED metrics of a service."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from rlaif.runtime.context import current_trace_id as current_trace_id
from rlaif.runtime.revision import service_revision

REGISTRY = CollectorRegistry()
"""Where every metric of ours is registered: `Counter("rlaif_judge_labels_total", …, registry=REGISTRY)`."""

# A `_created` series beside every counter and histogram is of no use to us.
disable_created_metrics()  # type: ignore[no-untyped-call]
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)

SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Bounds of every histogram of durations: from a null call on loopback to a long batch on a large judge.

Objectives of latency are among them: what lies between two bounds cannot be counted."""


@dataclass(frozen=True)
class RequestMetrics:
    """Rate, errors and duration of a service's calls, and whether it takes any."""

    requests: Counter
    seconds: Histogram
    in_flight: Gauge
    ready: Gauge


@cache
def build_info() -> Gauge:
    """Which code runs: always 1, the answer is in the labels."""
    return Gauge(
        "rlaif_build_info",
        "Always 1; which code runs.",
        ["revision"],
        registry=REGISTRY,
    )


@cache
def request_metrics(service: str) -> RequestMetrics:
    """The RED metrics of a service, made once a process."""
    build_info().labels(revision=service_revision()).set(1)
    return RequestMetrics(
        requests=Counter(f"rlaif_{service}_requests_total", "Calls answered.", ["method", "code"], registry=REGISTRY),
        seconds=Histogram(
            f"rlaif_{service}_request_seconds",
            "Time from a call's arrival to its last byte handed over.",
            ["method"],
            buckets=SECONDS_BUCKETS,
            registry=REGISTRY,
        ),
        in_flight=Gauge(f"rlaif_{service}_requests_in_flight", "Calls being served.", registry=REGISTRY),
        ready=Gauge(f"rlaif_{service}_ready_ratio", "1 while health says SERVING, else 0.", registry=REGISTRY),
    )


OTHER: Final = "other"
"""Where values of a label go that are not told apart."""


class BoundedValues:
    """Values of a label that others write: the first `most` that look like one are told apart, the rest are OTHER."""

    def __init__(self, most: int, *, pattern: re.Pattern[str]) -> None:
        self._most, self._pattern = most, pattern
        self._known: set[str] = set()

    def __call__(self, value: Any) -> str:
        """The value as a label may have it."""
        if not isinstance(value, str) or not self._pattern.fullmatch(value):
            return OTHER
        if value not in self._known and len(self._known) >= self._most:
            return OTHER
        self._known.add(value)
        return value


class RisingCounter(Counter):
    """A counter of rare events, each series of which is 0 when it is first scraped and tells all from then on.

    Between two scrapes Prometheus sees a rise; it sees none in a series that begins at 1, as after a restart.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._scraped: set[frozenset[tuple[str, str]]] = set()
        super().__init__(*arguments, **options)

    def collect(self) -> Iterable[Metric]:
        for metric in super().collect():
            metric.samples = [self._told(sample) for sample in metric.samples]
            yield metric

    def _told(self, sample: Sample) -> Sample:
        series = frozenset(sample.labels.items())
        if series in self._scraped:
            return sample
        self._scraped.add(series)
        return sample._replace(value=0.0)


class Follower:
    """Raises a counter to a total that something else keeps; called whenever the total may have grown."""

    def __init__(self, counter: Counter, total: Callable[[], float]) -> None:
        self._counter, self._total = counter, total
        self._seen = 0.0

    def __call__(self) -> None:
        """Counts what came since the last call."""
        total = self._total()
        self._counter.inc(total - self._seen)
        self._seen = total
