"""Runs end before anybody scrapes them: what their events say is counted, in a bounded number of series."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlaif.core.canonical import canonical_json
from rlaif.oversight.metrics import RunMetrics, run_metrics
from rlaif.oversight.records import EventRow
from rlaif.oversight.run_events import RunEvents
from rlaif.runtime.telemetry import REGISTRY


def count(events: RunEvents, event_type: str, stage: str, payload: Mapping[str, Any]) -> None:
    subject = f"runs/first/stages/{stage}"
    events.count(EventRow(event_type, "anonymous", subject, canonical_json(payload), create_time_us=0))


def value(name: str, **labels: str) -> float:
    """As the second of two scrapes tells it."""
    told = [REGISTRY.get_sample_value(f"rlaif_oversight_{name}_total", labels) for _ in range(2)]
    return told[1] or 0.0


def series(metrics: RunMetrics) -> int:
    return sum(len(next(iter(counter.collect())).samples) for counter in vars(metrics).values())


def test_failures_guards_gates_and_policies_of_runs_are_counted() -> None:
    events = RunEvents(run_metrics())
    failed = {"launcher": "trainjob", "reason": "OUT_OF_MEMORY"}
    before = value("stage_failures", stage="train", **failed)
    count(events, "stage_failed", "train-2", failed)
    assert value("stage_failures", stage="train", **failed) == before + 1

    before = value("guard_stops", guard="kl")
    count(events, "stage_finished", "train", {"values": {"results": {"guard": {"guard": "kl"}}}})
    count(events, "stage_finished", "train", {"values": {"results": {"guard": None}}})
    count(events, "stage_finished", "sample", {"values": {}})
    assert value("guard_stops", guard="kl") == before + 1

    before = value("gates", outcome="failed"), value("gates", outcome="passed"), value("policies_published")
    count(events, "gate_decided", "gate", {"passed": False})
    count(events, "gate_decided", "gate", {"passed": True})
    count(events, "policy_published", "train", {})
    assert value("gates", outcome="failed") == before[0] + 1
    assert value("gates", outcome="passed") == before[1] + 1
    assert value("policies_published") == before[2] + 1


def test_an_event_that_is_no_json_any_more_is_counted_by_what_is_left_of_it() -> None:
    events = RunEvents(run_metrics())
    before = value("gates", outcome="failed")
    for payload in (b"not JSON", "text", None):
        events.count(EventRow("gate_decided", "anonymous", "", payload, create_time_us=0))  # type: ignore[arg-type]
    assert value("gates", outcome="failed") == before + 3


def test_whatever_is_written_the_number_of_series_stays_bounded() -> None:
    events = RunEvents(run_metrics())
    hostile: list[Any] = ["", "A B", "x" * 10_000, "'; drop", None, 5, ["kl"], {"guard": "kl"}, "\N{SNOWMAN}"]
    many = [f"REASON_{number}" for number in range(10_000)]
    for index, each in enumerate([*hostile, *many]):
        stage = "".join(chr(ord("a") + int(digit)) for digit in str(index))
        count(events, "stage_failed", str(each), {"launcher": each, "reason": each})
        count(events, "stage_failed", stage, {"launcher": "local", "reason": each})
        count(events, "stage_finished", stage, {"values": {"results": {"guard": {"guard": each}}}})
        count(events, "gate_decided", "gate", {"passed": each})
    # At the very most 20 stages and "other", 3 launchers and "other", 30 reasons and "other"; then the other metrics.
    assert 40 < series(run_metrics()) < 21 * 4 * 31 + 21 + 10
    assert value("stage_failures", stage="other", launcher="other", reason="other") > 0
