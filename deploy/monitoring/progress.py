"""How a training goes on, in the words that its alerts and its panels share."""

from __future__ import annotations

from monitoring import limits
from monitoring.promql import Scope, ratio
from monitoring.timing import Timing
from rlaif_pipelines.training.prometheus import training_metrics


def since_last_step(runs: Scope) -> str:
    """Seconds since a step of each was done."""
    return f"(time() - {runs.largest(runs.select(training_metrics().figures['time']))})"


def usual_pause(runs: Scope, timing: Timing | None = None) -> str:
    """Seconds that may lie between two steps."""
    step_seconds = runs.largest(runs.select(training_metrics().part_seconds, part="step"))
    least = (timing or Timing()).seconds("15m")
    return f"clamp_min({limits.TRAINING_STALLED_STEPS} * {step_seconds}, {least:g})"


def dropped_share(runs: Scope, window: str) -> str:
    """Share of the completions that have no reward to be trained on; groups that teach nothing miss nothing."""
    metrics = training_metrics()
    dropped = runs.rate(metrics.dropped, window, reason="!~groups_.*")
    return ratio(dropped, f"({runs.rate(metrics.samples, window)} + {dropped})")
