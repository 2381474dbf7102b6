"""Metrics of the ledger."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from rlaif.runtime.telemetry import REGISTRY

labels_recorded = Counter("rlaif_oversight_labels_recorded_total", "Labels appended.", ["source"], registry=REGISTRY)
labels_answered = Counter(
    "rlaif_oversight_labels_answered_total", "Labels answered from the ledger, not appended.", registry=REGISTRY
)
events_recorded = Counter("rlaif_oversight_events_recorded_total", "Events appended.", ["kind"], registry=REGISTRY)
append_seconds = Histogram(
    "rlaif_oversight_append_seconds",
    "Time to append a batch, waiting for other writers included.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
    registry=REGISTRY,
)
verify_seconds = Gauge("rlaif_oversight_verify_seconds", "Time the last verification took.", registry=REGISTRY)
verify_time = Gauge(
    "rlaif_oversight_last_verify_timestamp_seconds",
    "When the ledger was last verified, 0 for never.",
    registry=REGISTRY,
)
intact = Gauge(
    "rlaif_oversight_intact_ratio",
    "1 when the last verification held, 0 when it did not, -1 before.",
    registry=REGISTRY,
)
intact.set(-1)
