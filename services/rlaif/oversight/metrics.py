"""What oversight counts: labels and events recorded, verifications, and what runs told of themselves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from rlaif.runtime.telemetry import REGISTRY, SECONDS_BUCKETS, RisingCounter

GUARDS: Final = ("kl", "held_out", "length", "entropy", "repetition")
SOURCES: Final = ("ai", "human")


@dataclass(frozen=True)
class LedgerMetrics:
    """The ledger: what is appended, how long that takes, and whether the chain holds."""

    labels_recorded: Counter
    labels_answered: Counter
    events_recorded: Counter
    append_seconds: Histogram
    verify_seconds: Gauge
    verify_time: Gauge
    verify_interval: Gauge
    intact: Gauge


@dataclass(frozen=True)
class RunMetrics:
    """Runs, which end before anybody reads metrics of theirs: counted here, from the events that they record.

    What a replica that went away may have counted without being scraped is counted again by the next that starts: an
    alert that comes twice is better than none.
    """

    stages_finished: Counter
    stage_failures: Counter
    gates: Counter
    guard_stops: Counter
    policies_published: Counter


@cache
def ledger_metrics() -> LedgerMetrics:
    """The ledger's metrics, made once a process."""
    metrics = LedgerMetrics(
        labels_recorded=Counter(
            "rlaif_oversight_labels_recorded_total", "Labels appended.", ["source"], registry=REGISTRY
        ),
        labels_answered=Counter(
            "rlaif_oversight_labels_answered_total", "Labels answered from the ledger, not appended.", registry=REGISTRY
        ),
        events_recorded=Counter(
            "rlaif_oversight_events_recorded_total", "Events appended.", ["kind"], registry=REGISTRY
        ),
        append_seconds=Histogram(
            "rlaif_oversight_append_seconds",
            "Time to append a batch, waiting for other writers included.",
            buckets=SECONDS_BUCKETS,
            registry=REGISTRY,
        ),
        verify_seconds=Gauge("rlaif_oversight_verify_seconds", "Time the last verification took.", registry=REGISTRY),
        verify_time=Gauge(
            "rlaif_oversight_last_verify_timestamp_seconds",
            "When the ledger was last verified, 0 for never.",
            registry=REGISTRY,
        ),
        verify_interval=Gauge(
            "rlaif_oversight_verify_interval_seconds", "How often this replica verifies the ledger.", registry=REGISTRY
        ),
        intact=Gauge(
            "rlaif_oversight_intact_ratio",
            "1 when the last verification held, 0 when it did not, -1 before.",
            registry=REGISTRY,
        ),
    )
    metrics.intact.set(-1)
    for source in SOURCES:
        metrics.labels_recorded.labels(source=source)
    for kind in ("labels", "fact"):
        metrics.events_recorded.labels(kind=kind)
    return metrics


@cache
def run_metrics() -> RunMetrics:
    """The metrics of runs, made once a process."""
    metrics = RunMetrics(
        stages_finished=RisingCounter(
            "rlaif_oversight_stages_finished_total", "Stages of runs that finished.", ["stage"], registry=REGISTRY
        ),
        stage_failures=RisingCounter(
            "rlaif_oversight_stage_failures_total",
            "Stages of runs that failed, by where their training was to run and why.",
            ["stage", "launcher", "reason"],
            registry=REGISTRY,
        ),
        gates=RisingCounter(
            "rlaif_oversight_gates_total", "Decisions of the quality gate.", ["outcome"], registry=REGISTRY
        ),
        guard_stops=RisingCounter(
            "rlaif_oversight_guard_stops_total", "Trainings that a guard stopped.", ["guard"], registry=REGISTRY
        ),
        policies_published=RisingCounter(
            "rlaif_oversight_policies_published_total", "Trained policies that runs published.", registry=REGISTRY
        ),
    )
    for outcome in ("passed", "failed"):
        metrics.gates.labels(outcome=outcome)
    for guard in GUARDS:
        metrics.guard_stops.labels(guard=guard)
    return metrics
