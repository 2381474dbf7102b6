"""Run one stage of a run folder by name, and write down how it failed if it does."""

from __future__ import annotations

import contextlib
import importlib
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Final

from rlaif.core.errors import InvalidInputError, RlaifError, SettingsError
from rlaif_pipelines.context import RUN_FILE, RunContext, StageResult, append_event, stage_name
from rlaif_pipelines.stages.parts import num_parts

ROUND_STAGES: Final = ("sample", "judge", "gate", "reward_model", "train", "evaluate")
"""Stages that every round repeats."""
STAGES: Final = (
    "prepare",
    "prompts",
    "pairs",
    "baseline",
    "adopt",
    "revise",
    "revision_gate",
    "sft",
    *ROUND_STAGES,
    "promote",
    "benchmark",
    "judge_gate",
    "report",
)

EXIT_FAILED: Final = 1
EXIT_WRONG_INPUT: Final = 2
EXIT_INTERRUPTED: Final = 130


def begin(given: Mapping[str, Any]) -> None:
    """Write run.json from a pipeline's parameters; wrong ones are recorded as a failure of `prepare`, then raised."""
    root = Path(given["run_root"])
    root.mkdir(parents=True, exist_ok=True)
    with _recorded(root, "prepare"):
        from rlaif_pipelines.stages.prepare import create_run_from

        create_run_from(given)


def run(stage: str, *, run_root: str | Path, round_number: int = 1, part: int | None = None) -> StageResult:
    """The stage's result, or that of one part of it; a failure is recorded in events.jsonl, then raised."""
    more: dict[str, Any] = {"round_number": round_number} if stage in ROUND_STAGES else {}
    if part is not None:
        more["part"] = part
    with _recorded(Path(run_root), stage_name(stage, round_number)):
        return _function(stage, stage)(RunContext.load(run_root), **more)


def gather(stage: str, *, run_root: str | Path, round_number: int) -> StageResult:
    """The result of a stage that is put together from its parts."""
    with _recorded(Path(run_root), stage_name(stage, round_number)):
        return _function(stage, f"gather_{stage}")(RunContext.load(run_root), round_number=round_number)


def report(*, run_root: str | Path) -> StageResult:
    """The report of a run, however far it came: also of one that its settings kept from beginning."""
    from rlaif_pipelines.stages.report import report_failed_start

    root = Path(run_root)
    if (root / RUN_FILE).is_file():
        return run("report", run_root=root)
    return report_failed_start(root)


def parts(run_root: str | Path) -> list[int]:
    """The numbers of the parts in which sampling and judging are worked on."""
    return list(range(1, num_parts(RunContext.load(run_root)) + 1))


def _function(stage: str, name: str) -> Callable[..., StageResult]:
    function: Callable[..., StageResult] = getattr(importlib.import_module(f"rlaif_pipelines.stages.{stage}"), name)
    return function


@contextlib.contextmanager
def _recorded(root: Path, name: str) -> Iterator[None]:
    """A failure of the block is recorded as one sentence with its exit code, then raised."""
    signal.signal(signal.SIGTERM, _end)  # so that `finally` clauses end what a stage has started
    try:
        yield
    except BaseException as error:
        message, reason = _sentence(error), error.reason if isinstance(error, RlaifError) else type(error).__name__
        if root.is_dir():
            event = {"message": message, "reason": reason, "exit_code": exit_code(error)}
            append_event(root, {"stage": name, "state": "failed", **event})
        if isinstance(error, Exception) and (root / RUN_FILE).is_file():
            with contextlib.suppress(Exception):  # what failed must be told, and not what followed from it
                RunContext.load(root).record_failure(name, reason=reason, message=message)
        raise


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
