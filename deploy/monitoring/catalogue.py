"""Every metric of ours, by the object that the code counts with: what is queried cannot drift from what is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from prometheus_client import Counter, Gauge, Histogram

from rlaif.judge.metrics import judge_metrics
from rlaif.oversight.metrics import ledger_metrics, run_metrics
from rlaif.oversight.quality_metrics import SERIES, collector
from rlaif.reward.metrics import reward_metrics
from rlaif.runtime.reloading import reload_metrics
from rlaif.runtime.telemetry import RequestMetrics, build_info, request_metrics
from rlaif.sampler.metrics import sampler_metrics
from rlaif_pipelines.training.prometheus import training_metrics

SERVICES: Final = ("sampler", "judge", "reward", "oversight")
"""By the name in their metrics."""
JOBS: Final = tuple(f"rlaif-{service}" for service in SERVICES)
"""What every installation has. It may have `rlaif-evaluator` and `rlaif-training` too."""
TARGET_LABELS: Final = frozenset({"namespace", "job", "pod", "service", "container", "endpoint", "instance", "node"})
"""What Prometheus says of a target itself; no metric may have a label of that name."""


@dataclass(frozen=True)
class Series:
    """A metric as it is queried."""

    name: str
    """With `_total` of a counter; of a histogram without `_bucket`, `_sum`, `_count`."""
    kind: str
    labels: frozenset[str]
    bounds: tuple[str, ...] = ()
    """Of a histogram: the values of `le`."""


UP: Final = Series("up", "gauge", frozenset())
ALERTS: Final = Series("ALERTS", "gauge", frozenset({"alertname", "alertstate", "severity"}))
CPU_SECONDS: Final = Series("process_cpu_seconds_total", "counter", frozenset())
MEMORY_BYTES: Final = Series("process_resident_memory_bytes", "gauge", frozenset())
OPEN_FILES: Final = Series("process_open_fds", "gauge", frozenset())
MAX_FILES: Final = Series("process_max_fds", "gauge", frozenset())
START_TIME: Final = Series("process_start_time_seconds", "gauge", frozenset())
FOREIGN: Final = (UP, ALERTS, CPU_SECONDS, MEMORY_BYTES, OPEN_FILES, MAX_FILES, START_TIME)
"""What is queried and not ours: of Prometheus itself and of its client library."""


def requests(service: str) -> RequestMetrics:
    """The RED metrics of a service."""
    return request_metrics(service)


@cache
def series_of(metric: Counter | Gauge | Histogram) -> Series:
    """A metric object of the code as it is queried."""
    [family] = metric.describe()
    name = f"{family.name}_total" if family.type == "counter" else family.name
    bounds: tuple[str, ...] = ()
    if isinstance(metric, Histogram):
        bounds = tuple(_bound(each) for each in metric._upper_bounds)
    return Series(name, family.type, frozenset(metric._labelnames), bounds)


def quality(statistic: str) -> Series:
    """The series of a statistic of label quality."""
    return Series(SERIES[statistic][0], "gauge", frozenset({"slice", "bound"}))


def quality_fact(name: str) -> Series:
    """`rlaif_label_quality_{name}`, which has no slices."""
    full_name = f"rlaif_label_quality_{name}"
    assert full_name in _quality_facts(), f"there is {sorted(_quality_facts())}"
    return Series(full_name, "gauge", frozenset())


def _quality_facts() -> set[str]:
    return {family.name for family in collector.describe()} - {name for name, _ in SERIES.values()}


def all_series() -> dict[str, Series]:
    """Every metric that the code tells, by name."""
    found = [series_of(metric) for metric in _metric_objects()]
    found += [quality(statistic) for statistic in SERIES]
    found += [Series(name, "gauge", frozenset()) for name in _quality_facts()]
    return {series.name: series for series in found}


def _metric_objects() -> Iterator[Counter | Gauge | Histogram]:
    yield build_info()
    groups: list[Any] = [request_metrics(service) for service in SERVICES]
    groups += [judge_metrics(), sampler_metrics(), reward_metrics(), ledger_metrics(), run_metrics(), reload_metrics()]
    groups.append(training_metrics())
    for group in groups:
        for value in vars(group).values():
            yield from value.values() if isinstance(value, Mapping) else (value,)


def _bound(value: float) -> str:
    return "+Inf" if value == float("inf") else str(float(value))
