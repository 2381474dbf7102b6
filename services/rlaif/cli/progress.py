"""What a run is doing, from its events.jsonl and metrics.jsonl; values only, no terminal."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from rlaif_pipelines.settings import ConstitutionalStage, PipelineName

_BARS: Final = "▁▂▃▄▅▆▇█"
_SMALLER: Final[Mapping[str, Sequence[str]]] = {
    "label-only": ("prompts", "sample", "judge", "gate"),
    "evaluate-only": ("prompts", "baseline", "adopt", "evaluate", "promote"),
    "judge-benchmark": ("pairs", "judge", "benchmark", "judge_gate"),
}
_PART: Final = re.compile(r"(?P<stage>.+)\.part-(?P<part>\d+-of-\d+)")


class JsonTail:
    """Whole JSON lines as they are appended to a file that may not exist yet."""

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._offset = path.stat().st_size if from_end and path.exists() else 0

    def read(self) -> Iterator[dict[str, Any]]:
        """Lines since the last call; all of them when the file was replaced by a shorter one."""
        if not self._path.exists():
            return
        if self._path.stat().st_size < self._offset:
            self._offset = 0
        with self._path.open("rb") as lines:
            lines.seek(self._offset)
            for line in lines:
                if not line.endswith(b"\n"):
                    return  # still being written
                self._offset += len(line)
                yield json.loads(line)


@dataclass
class StageProgress:
    """One stage. Times are seconds since the epoch; `done` and `total` count whatever the stage counts."""

    name: str
    state: str = "waiting"
    done: int | None = None
    total: int | None = None
    message: str = ""
    started: float | None = None
    ended: float | None = None
    first_progress: tuple[float, int] | None = None
    latest_progress: tuple[float, int] | None = None
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)
    """(done, total) of each part, where the stage is worked on in parts."""

    @property
    def rate(self) -> float | None:
        """Units a second since the first progress of this attempt, so that what was done before does not count."""
        if self.first_progress is None or self.latest_progress is None:
            return None
        seconds = self.latest_progress[0] - self.first_progress[0]
        units = self.latest_progress[1] - self.first_progress[1]
        return units / seconds if seconds > 0 and units > 0 else None

    @property
    def remaining_seconds(self) -> float | None:
        """Expected time to the end at the present rate."""
        if self.state != "running" or not self.rate or self.total is None or self.done is None:
            return None
        return (self.total - self.done) / self.rate

    def elapsed_seconds(self, now: float) -> float | None:
        """How long it ran, or has been running."""
        if self.started is None:
            return None
        return max(0.0, (self.ended if self.ended is not None else now) - self.started)

    def count(self, done: int, total: int | None, time: float) -> None:
        """Note progress."""
        self.done, self.total = done, total
        if self.first_progress is None or done < self.first_progress[1]:
            self.first_progress = (time, done)
        self.latest_progress = (time, done)


@dataclass
class RunProgress:
    """All stages in their order, and the series of the training that runs."""

    stages: dict[str, StageProgress]
    training_stage: str = ""
    series: dict[str, list[float]] = field(default_factory=dict)
    step: int = 0
    num_steps: int = 0

    @classmethod
    def of(cls, planned: Sequence[str]) -> RunProgress:
        """A run that has not begun."""
        return cls({name: StageProgress(name) for name in planned})

    def apply_event(self, event: Mapping[str, Any]) -> StageProgress:
        """The stage as it is after the event."""
        part = _PART.fullmatch(event["stage"])
        if part is not None:
            return self._apply_part(part["stage"], part["part"], event)
        stage = self.stages.setdefault(event["stage"], StageProgress(event["stage"]))
        time = datetime.fromisoformat(event["time"]).timestamp()
        state = event["state"]
        stage.message = event.get("message") or stage.message
        if state == "started" and stage.parts:
            stage.state = "running"  # its parts are put together
        elif state == "started":
            self.stages[stage.name] = stage = StageProgress(stage.name, state="running", started=time)
        elif state == "progress":
            stage.state = "running"
            if event.get("done") is not None:
                stage.count(event["done"], event.get("total"), time)
        else:
            stage.state = {"finished": "done", "skipped": "skipped"}.get(state, state)
            stage.ended = time if stage.started is not None else None
        return stage

    def _apply_part(self, name: str, part: str, event: Mapping[str, Any]) -> StageProgress:
        """A part makes its stage run, and counts in it; finished the stage is when its parts are put together."""
        stage = self.stages.setdefault(name, StageProgress(name))
        time = _timestamp(event["time"])
        if stage.state != "running":
            self.stages[name] = stage = StageProgress(name, state="running", started=time)
        if event.get("done") is not None:
            stage.message = event.get("message") or stage.message
            stage.parts[part] = (event["done"], event["total"])
            done, total = (sum(column) for column in zip(*stage.parts.values(), strict=True))
            stage.count(done, total, time)
        return stage

    def apply_metrics(self, row: Mapping[str, Any]) -> None:
        """Note one training step; another training begins a new series."""
        if row.get("stage") != self.training_stage or row.get("step", 0) < self.step:
            self.training_stage, self.series = str(row.get("stage", "")), {}
        self.step, self.num_steps = int(row.get("step", 0)), int(row.get("num_steps", 0))
        for name, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self.series.setdefault(name, []).append(float(value))
        stage = self.stages.get(self.training_stage)
        if stage is not None and stage.state == "running" and self.num_steps:
            stage.count(self.step, self.num_steps, _timestamp(row["time"]))

    def latest(self, name: str) -> float | None:
        """The newest value of a series."""
        values = self.series.get(name)
        return values[-1] if values else None


def is_part(stage: str) -> bool:
    """Whether an event of that name is of one part of a stage."""
    return _PART.fullmatch(stage) is not None


def planned_stages(
    *,
    rounds: int,
    trains_reward_model: bool,
    constitutional: ConstitutionalStage = "none",
    pipeline: PipelineName = "rlaif",
) -> list[str]:
    """Stages of a run in the order in which they happen; later rounds are numbered."""
    if pipeline != "rlaif":
        return ["prepare", *_SMALLER[pipeline], "report"]
    names = ["prepare", "prompts", "baseline"]
    if constitutional != "none":
        names += ["revise", "revision_gate", "sft"]
    if constitutional == "only":
        return [*names, "evaluate", "promote", "report"]
    for number in range(1, rounds + 1):
        each = ["sample", "judge", "gate", *(["reward_model"] if trains_reward_model else []), "train", "evaluate"]
        names += each if number == 1 else [f"{name}-{number}" for name in each]
    return [*names, "promote", "report"]


def sparkline(values: Sequence[float], *, width: int) -> str:
    """The series as a row of bars, lowest to highest; averaged down to `width` points."""
    if not values:
        return ""
    points = _averaged(values, width)
    low, high = min(points), max(points)
    if high - low < 1e-12:
        return _BARS[0] * len(points)
    return "".join(_BARS[min(len(_BARS) - 1, int((value - low) / (high - low) * len(_BARS)))] for value in points)


def _averaged(values: Sequence[float], width: int) -> list[float]:
    if len(values) <= width:
        return list(values)
    edges = [round(index * len(values) / width) for index in range(width + 1)]
    return [sum(values[start:end]) / (end - start) for start, end in itertools.pairwise(edges)]


def _timestamp(time: Any) -> float:
    return float(time) if isinstance(time, int | float) else datetime.fromisoformat(time).timestamp()
