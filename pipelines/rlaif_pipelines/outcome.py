"""How a run ended, read from what its stages wrote."""

from __future__ import annotations

import json
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from rlaif.core.errors import RlaifError
from rlaif_pipelines.context import EVENTS_FILE, RunContext, stage_name

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_STOPPED: Final = 3


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended. `exit_code`: 0 done, 1 failed, 2 wrong input, 3 stopped by a gate or guard, 130 interrupted."""

    state: Literal["finished", "stopped", "failed"]
    exit_code: int
    message: str
    stage: str | None = None


class PipelineFailedError(RlaifError, RuntimeError):
    """A stage failed; the message is its sentence."""

    reason = "STAGE_FAILED"

    def __init__(self, outcome: RunOutcome) -> None:
        super().__init__(outcome.message, metadata={"stage": outcome.stage or ""})
        self.outcome = outcome


def events_size(run_root: Path) -> int:
    """Bytes of events.jsonl now: where the events of an attempt that starts now will begin."""
    path = run_root / EVENTS_FILE
    return path.stat().st_size if path.is_file() else 0


def read_outcome(run_root: Path, *, since_bytes: int) -> RunOutcome:
    """How the attempt ended whose events begin at that byte of events.jsonl."""
    if events_size(run_root) <= since_bytes:
        return RunOutcome("failed", EXIT_FAILED, "the pipeline ended before its first stage; its log says more")
    with (run_root / EVENTS_FILE).open("rb") as lines:
        lines.seek(since_bytes)
        events: list[dict[str, Any]] = [json.loads(line) for line in lines]
    # A stage that was tried again counts by how it ended.
    ends = {event["stage"]: event["state"] for event in events if event["state"] != "progress"}
    failed = [event for event in events if event["state"] == ends.get(event["stage"]) == "failed"]
    if failed:
        first = failed[0]
        return RunOutcome("failed", int(first["exit_code"]), first["message"], first["stage"])
    context = RunContext.load(run_root)
    # What an attempt with other settings has left in the folder is not of this one.
    done = {stage for stage, state in ends.items() if state in ("finished", "skipped")}
    stopped = _stopped(context, done)
    if stopped is not None:
        return stopped
    if not {"report", last_stage(context)} <= done:
        return RunOutcome("failed", EXIT_FAILED, "the pipeline ended before its last stage; its log says more")
    return RunOutcome("finished", EXIT_DONE, _message(context))


def last_stage(context: RunContext) -> str:
    """The stage that a run has to finish to be done; the report comes after it in any case."""
    settings = context.settings
    if settings.pipeline == "label-only":
        return "gate"
    return "judge_gate" if settings.pipeline == "judge-benchmark" else "promote"


def _message(context: RunContext) -> str:
    if context.settings.pipeline == "label-only":
        return f"{context.result('judge').values['num_pairs']} labels, which passed the gate"
    if context.settings.pipeline == "judge-benchmark":
        accuracy = context.result("benchmark").values["accuracy"]
        if accuracy["value"] is None:
            return "the judge decided no pair that was labelled with a preference"
        return f"accuracy of the judge: {accuracy['value']:.3f} ({accuracy['low']:.3f} to {accuracy['high']:.3f})"
    return f"verdict: {context.result(stage_name('evaluate', context.settings.rounds)).values['verdict']}"


def _stopped(context: RunContext, done: Set[str]) -> RunOutcome | None:
    """Which of the stages that are done stopped the run; None where none did."""
    if "revision_gate" in done and not context.result("revision_gate").values["passed"]:
        reasons = "; ".join(context.result("revision_gate").values["reasons"])
        return RunOutcome(
            "stopped", EXIT_STOPPED, f"the gate did not let the revisions train: {reasons}", "revision_gate"
        )
    for number in range(1, context.settings.rounds + 1):
        gate, training = stage_name("gate", number), stage_name("train", number)
        if gate in done and not context.result(gate).values["passed"]:
            reasons = "; ".join(context.result(gate).values["reasons"])
            return RunOutcome("stopped", EXIT_STOPPED, f"the gate did not let the labels train: {reasons}", gate)
        if training in done and (guard := context.result(training).values["stopped_by"]):
            return RunOutcome("stopped", EXIT_STOPPED, f"training was stopped by its guard: {guard}", training)
    return None
