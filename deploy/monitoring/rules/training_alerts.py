"""Alerts on runs: going on, close to a guard, stopped, failed."""

from __future__ import annotations

from monitoring import limits
from monitoring.boards.board import Board
from monitoring.progress import dropped_share, since_last_step, usual_pause
from monitoring.promql import Scope, risen
from monitoring.rules.alert import Alert
from monitoring.timing import Timing
from rlaif.oversight.metrics import run_metrics
from rlaif_pipelines.training.prometheus import training_metrics


def training_alerts(scope: Scope, timing: Timing, *, overview: Board, training: Board) -> list[Alert]:
    """While a training runs it is asked itself; how it ended is known to the ledger."""
    return [*_running(scope, timing, training), *_ended(scope, timing, overview)]


def _running(scope: Scope, timing: Timing, training: Board) -> list[Alert]:
    metrics, figures = training_metrics(), training_metrics().figures
    runs = scope.keep("pod", "stage")
    unfinished = f"{runs.largest(scope.select(figures['step']))} < {runs.largest(scope.select(figures['num_steps']))}"
    fired, hour = scope.select(metrics.guards), timing("1h")
    return [
        Alert(
            "RlaifTrainingStalled",
            f"{since_last_step(runs)} > {usual_pause(runs, timing)} and {unfinished}",
            timing("1m"),
            "critical",
            "Training {{ $labels.stage }} of {{ $labels.pod }} has stopped moving",
            "No step of {{ $labels.stage }} in {{ $labels.pod }}, {{ $labels.namespace }}, was done for {{ $value | "
            "humanizeDuration }}: it waits for a service, for another process, or for ever.",
            training.path_to("last_step"),
        ),
        Alert(
            "RlaifTrainingGuardNear",
            f"{runs.keep('guard').largest(scope.select(metrics.guards_used))} > {limits.GUARD_USED}",
            timing("5m"),
            "warning",
            "Guard {{ $labels.guard }} of {{ $labels.pod }} is about to fire",
            "Training {{ $labels.stage }} of {{ $labels.pod }} in {{ $labels.namespace }} has used {{ $value | "
            "humanizePercentage }} of what guard {{ $labels.guard }} allows.",
            training.path_to("guards_used"),
        ),
        Alert(
            "RlaifTrainingDropsSamples",
            f"{dropped_share(runs, timing('15m'))} > {limits.SAMPLES_DROPPED}",
            timing("10m"),
            "warning",
            "{{ $labels.pod }} cannot train on {{ $value | humanizePercentage }} of its completions",
            "Rewards of training {{ $labels.stage }} in {{ $labels.pod }}, {{ $labels.namespace }}, fail: it learns "
            "from what is left, which may not be a fair sample.",
            training.path_to("dropped_reasons"),
        ),
        Alert(
            "RlaifTrainingGuardFired",
            # It may fire at the very first step.
            f"{runs.keep('guard').total(risen(fired, hour))} > 0",
            "",
            "warning",
            "Guard {{ $labels.guard }} fired in {{ $labels.pod }}",
            "Guard {{ $labels.guard }} slowed or stopped training {{ $labels.stage }} of {{ $labels.pod }} in {{ "
            "$labels.namespace }}. Its log says on which figures.",
            training.path_to("guard_firings"),
            window="running",
        ),
    ]


def _ended(scope: Scope, timing: Timing, overview: Board) -> list[Alert]:
    runs, hour = run_metrics(), timing("1h")
    stopped, refused = scope.select(runs.guard_stops), scope.select(runs.gates, outcome="failed")
    failures = scope.keep("stage", "launcher", "reason")
    return [
        Alert(
            "RlaifTrainingGuardFired",
            f"{scope.keep('guard').total(f'increase({stopped}[{hour}])')} > 0",
            "",
            "warning",
            "Guard {{ $labels.guard }} stopped a training",
            "A training in {{ $labels.namespace }} was stopped by guard {{ $labels.guard }} and went back to its best "
            "version. The run's report says on which figures.",
            overview.path_to("gates"),
            window="ended",
        ),
        Alert(
            "RlaifGateFailed",
            f"{scope.total(f'increase({refused}[{hour}])')} > 0",
            "",
            "warning",
            "A gate let labels train nothing",
            "The quality gate of a run in {{ $labels.namespace }} found its labels not good enough; the run ended "
            "without training.",
            overview.path_to("gates"),
        ),
        Alert(
            "RlaifStageFailed",
            f"{failures.total(risen(scope.select(runs.stage_failures), hour))} > 0",
            "",
            "warning",
            "Stage {{ $labels.stage }} of a run failed: {{ $labels.reason }}",
            "A run in {{ $labels.namespace }} ended in stage {{ $labels.stage }} ({{ $labels.launcher }}): {{ "
            "$labels.reason }}. Started again it goes on from there.",
            overview.path_to("stage_failures"),
        ),
    ]
