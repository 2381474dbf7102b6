"""Run the pipeline in a child process, show what it writes, and say how it ended."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from rlaif.cli import exits
from rlaif.cli.display import Display
from rlaif.cli.memory import PeakMemory
from rlaif.cli.processes import Child, ProcessFamily, death_of, last_words
from rlaif.cli.progress import JsonTail, RunProgress, is_part
from rlaif.core.errors import InvalidInputError, RlaifError
from rlaif_pipelines.context import kind_of_training

PIPELINE_MODULE: Final = "rlaif.cli.pipeline"
_REFRESH_SECONDS: Final = 0.25
_WATCH_SECONDS: Final = 1.0


class StageFailedError(RlaifError, RuntimeError):
    """A stage of the pipeline failed."""

    reason = "STAGE_FAILED"


def follow_pipeline(
    root: Path,
    *,
    rounds: int,
    family: ProcessFamily,
    environment: Mapping[str, str],
    progress: RunProgress,
    display: Display,
    memory: PeakMemory,
) -> int:
    """Exit code of a pipeline that ended as it should: done, or stopped by a gate or guard, which is said.

    Raises what else ended it, a dead service included.
    """
    follower = _Follower(root, rounds=rounds, progress=progress, display=display)
    pipeline = family.start(
        "pipeline", PIPELINE_MODULE, str(root), log_path=root / "logs" / "pipeline.log", environment=environment
    )
    watched = 0.0
    while pipeline.process.poll() is None:
        follower.read()
        display.refresh()
        if time.monotonic() - watched >= _WATCH_SECONDS:
            watched = time.monotonic()
            memory.sample()
            family.raise_if_dead(apart_from=pipeline)
        time.sleep(_REFRESH_SECONDS)
    follower.read()
    code: int = pipeline.process.returncode
    if code not in (exits.DONE, exits.STOPPED_BY_GATE):
        raise _failure(pipeline, failed=follower.failed)
    if code == exits.STOPPED_BY_GATE:
        display.say(last_words(pipeline.log_path))
    return code


class _Follower:
    """Reads the run's files into the progress and the display; remembers the first failure."""

    def __init__(self, root: Path, *, rounds: int, progress: RunProgress, display: Display) -> None:
        self._progress = progress
        self._display = display
        self._events = JsonTail(root / "events.jsonl", from_end=True)
        self._metrics = {number: JsonTail(_metrics_path(root, number)) for number in range(1, rounds + 1)}
        for row in self._new_metrics():  # what an earlier attempt did: part of the curve, not news
            progress.apply_metrics(row)
        self.failed: dict[str, Any] | None = None
        self._started = time.time()

    def read(self) -> None:
        for event in self._events.read():
            stage = self._progress.apply_event(event)
            # Of a part only the counts are news: its stage begins once, and ends when its parts are put together.
            self._display.event(stage, "progress" if is_part(event["stage"]) else event["state"])
            if event["state"] == "failed" and self.failed is None:
                self.failed = event
        for row in self._new_metrics():
            self._progress.apply_metrics(row)
            if row["time"] >= self._started:  # a training that resumes writes its file anew, old lines included
                self._display.metrics(row)

    def _new_metrics(self) -> Iterator[dict[str, Any]]:
        """Lines that training has written since, under the names of the pipeline's stages."""
        for number, tail in self._metrics.items():
            for row in tail.read():
                kind = kind_of_training(row)
                yield row | {"stage": kind if number == 1 else f"{kind}-{number}"}


def _metrics_path(root: Path, round_number: int) -> Path:
    return root / ("metrics.jsonl" if round_number == 1 else f"metrics-{round_number}.jsonl")


def _failure(pipeline: Child, *, failed: Mapping[str, Any] | None) -> RlaifError:
    log_path = pipeline.log_path
    if failed is None:
        return death_of("pipeline", exit_code=pipeline.process.returncode, log_path=log_path)
    message = str(failed.get("message") or last_words(log_path))
    text = f"stage {failed['stage']} failed: {message} (log: {log_path})"
    if exits.tells_of_full_disk(message) or exits.is_disk_full(log_path.parent):
        return exits.DiskFullError(f"the disk is full: {text}; free some space, then start the same command again")
    return InvalidInputError(text) if failed.get("exit_code") == exits.WRONG_INPUT else StageFailedError(text)
