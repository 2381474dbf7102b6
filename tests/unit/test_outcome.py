"""How a run ended, told from what its stages have written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlaif_pipelines.context import RunContext, StageOutput
from rlaif_pipelines.outcome import RunOutcome, events_size, read_outcome
from rlaif_pipelines.settings import ServiceAddresses, make_settings
from rlaif_pipelines.stages.prepare import create_run


def begun(root: Path, **changes: Any) -> RunContext:
    return create_run(make_settings({"out": root, **changes}), ServiceAddresses())


def finish(context: RunContext, stage: str, **values: Any) -> None:
    context.run_stage(stage, lambda folder: StageOutput(values=values), inputs={"settings": context.policy})


def reported(context: RunContext, *, since_bytes: int) -> RunOutcome:
    context.record("report", "finished")
    return read_outcome(context.root, since_bytes=since_bytes)


def test_a_gate_that_stopped_an_attempt_with_other_settings_does_not_stop_this_one(tmp_path: Path) -> None:
    context = begun(tmp_path, constitutional={"enabled": True})
    finish(context, "revision_gate", passed=False, reasons=["too few"])
    outcome = reported(context, since_bytes=0)
    assert (outcome.state, outcome.exit_code, outcome.stage) == ("stopped", 3, "revision_gate")

    context, since_bytes = begun(tmp_path), events_size(tmp_path)
    finish(context, "gate", passed=True, reasons=[])
    finish(context, "train", stopped_by=None)
    finish(context, "evaluate", verdict="improved")
    finish(context, "promote", promoted=False)
    assert reported(context, since_bytes=since_bytes) == RunOutcome("finished", 0, "verdict: improved")


def test_a_gate_that_is_skipped_because_it_is_done_still_stops(tmp_path: Path) -> None:
    context = begun(tmp_path)
    finish(context, "gate", passed=False, reasons=["too few"])
    since_bytes = events_size(tmp_path)
    finish(context, "gate", passed=False, reasons=["too few"])
    assert reported(context, since_bytes=since_bytes).stage == "gate"


def test_a_run_whose_last_stage_was_done_before_and_not_reached_again_is_not_done(tmp_path: Path) -> None:
    context = begun(tmp_path)
    finish(context, "promote", promoted=False)
    since_bytes = events_size(tmp_path)
    outcome = reported(context, since_bytes=since_bytes)
    assert (outcome.state, outcome.message[:40]) == ("failed", "the pipeline ended before its last stage")
