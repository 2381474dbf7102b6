"""What the services owe their callers, and how fast the allowance of misses may be spent (SRE workbook, ch. 5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from monitoring import catalogue
from monitoring.promql import Metric
from rlaif.sampler.metrics import sampler_metrics

AVAILABILITY: Final = 0.995
"""Share of calls that do not end in ERROR_CODES."""
LATENCY: Final = 0.95
"""Share of calls within the bound that their kind has below."""
ERROR_CODES: Final = ("UNKNOWN", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "DEADLINE_EXCEEDED")
"""Faults of the service. What the caller got wrong is none; a full queue is told by an alert of its own."""


@dataclass(frozen=True)
class LatencyBound:
    """Calls of these methods, or all that the histogram holds, are to take no longer than so many seconds."""

    name: str
    """In the chart's values."""
    metric: Callable[[], Metric]
    seconds: float
    methods: tuple[str, ...] = ()

    @property
    def le(self) -> str:
        """As the histogram's label has it."""
        return str(float(self.seconds))


def _of(service: str, *methods: str) -> tuple[str, ...]:
    return tuple(f"{service}Service/{method}" for method in methods)


LATENCY_BOUNDS: Final = (
    LatencyBound(
        "judgeSeconds",
        lambda: catalogue.requests("judge").seconds,
        5,
        _of("Judge", "CompareResponses", "ScoreResponse"),
    ),
    LatencyBound(
        "judgeBatchSeconds",
        lambda: catalogue.requests("judge").seconds,
        60,
        _of("Judge", "BatchCompareResponses", "BatchScoreResponses"),
    ),
    # A call is as long as what is sampled; what it waits for its turn is the service's affair.
    LatencyBound("samplerWaitSeconds", lambda: sampler_metrics().queue_wait_seconds, 30),
    LatencyBound("rewardSeconds", lambda: catalogue.requests("reward").seconds, 60, _of("Reward", "ScoreResponses")),
    LatencyBound(
        "ledgerSeconds",
        lambda: catalogue.requests("oversight").seconds,
        1,
        _of("Ledger", "RecordLabels", "RecordEvent", "LookupLabels"),
    ),
)


@dataclass(frozen=True)
class Burn:
    """An alert when the allowance is spent so many times too fast, over a long and a short window at once."""

    factor: float
    long: str
    short: str
    severity: Literal["critical", "warning"]


BURNS: Final = (
    Burn(14.4, "1h", "5m", "critical"),
    Burn(6, "6h", "30m", "critical"),
    Burn(1, "3d", "6h", "warning"),
)
WINDOWS: Final = ("5m", "30m", "1h", "6h", "3d")
