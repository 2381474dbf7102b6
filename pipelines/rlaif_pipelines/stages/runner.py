"""Run one stage of a run folder by name, and write down how it failed if it does."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final

from rlaif.core.errors import InvalidInputError, RlaifError, SettingsError
from rlaif_pipelines.context import RunContext, StageResult, stage_name

ROUND_STAGES: Final = ("sample", "judge", "gate", "reward_model", "train", "evaluate")
"""Stages that every round repeats."""
STAGES: Final = ("prepare", "prompts", "baseline", "revise", "revision_gate", "sft", *ROUND_STAGES, "report")

EXIT_FAILED: Final = 1
EXIT_WRONG_INPUT: Final = 2
EXIT_INTERRUPTED: Final = 130


def run(stage: str, *, run_root: str | Path, round_number: int = 1) -> StageResult:
    """The stage's result. A failure is recorded in events.jsonl as one sentence with its exit code, then raised."""
    context = RunContext.load(run_root)
    name = stage_name(stage, round_number)
    signal.signal(signal.SIGTERM, _end)  # so that `finally` clauses end what a stage has started
    try:
        function: Callable[..., StageResult] = getattr(
            importlib.import_module(f"rlaif_pipelines.stages.{stage}"), stage
        )
        more: dict[str, Any] = {"round_number": round_number} if stage in ROUND_STAGES else {}
        return function(context, **more)
    except BaseException as error:
        context.record(
            name,
            "failed",
            message=_sentence(error),
            reason=error.reason if isinstance(error, RlaifError) else type(error).__name__,
            exit_code=exit_code(error),
        )
        raise


def describe(artifact: Any, result: StageResult, *, file: str | None = None) -> None:
    """Point a KFP artifact at what the stage left (that file, else the model it names) and say what it is."""
    artifact.uri = str(result.path(file)) if file else result.values["uri"]
    artifact.metadata.update({"stage": result.stage, "inputs_sha256": result.inputs_sha256, **result.values})
    if file:
        artifact.metadata["sha256"] = result.outputs[file]


def exit_code(error: BaseException) -> int:
    """What the whole run answers the shell with when a stage fails like this."""
    if isinstance(error, InvalidInputError | SettingsError):
        return EXIT_WRONG_INPUT
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return EXIT_INTERRUPTED
    return EXIT_FAILED


def _sentence(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "interrupted"
    text = " ".join(str(error).split())
    return text if isinstance(error, RlaifError) else f"{type(error).__name__}: {text}"


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    sys.exit(128 + number)
