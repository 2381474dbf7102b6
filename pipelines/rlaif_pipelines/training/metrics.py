"""metrics.jsonl: one JSON object a training step, whole lines only, no step twice."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif.runtime.artifacts import atomic_write_text
from rlaif_pipelines.training import engine as processes
from rlaif_pipelines.training.config.common import TrainingSettings
from rlaif_pipelines.training.errors import told_when_full
from rlaif_pipelines.training.monitors import Console, Monitor, TensorBoard
from rlaif_pipelines.training.prometheus import Prometheus


class MetricsLog:
    """Appends the steps of one stage to a file other stages may share. A path of None writes nowhere."""

    def __init__(
        self,
        path: Path | None,
        *,
        stage: str,
        num_steps: int,
        resume_step: int = 0,
        monitors: Sequence[Monitor] = (),
    ) -> None:
        self._path = path
        self._stage = stage
        self._num_steps = num_steps
        self._monitors = tuple(monitors)
        if path is not None:
            _forget(path, stage=stage, after_step=resume_step)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends the line of a step, counted from 1, and tells the monitors; what is not finite becomes null."""
        if self._path is None:
            return
        position = {"time": round(time.time(), 3), "stage": self._stage, "step": step, "num_steps": self._num_steps}
        line = {**position, **_finite(values)}
        with told_when_full(self._path):
            _append(self._path, json.dumps(line, allow_nan=False) + "\n")
        for tell in self._monitors:
            tell(line)


def open_metrics(settings: TrainingSettings, *, stage: str, num_steps: int, resume_step: int) -> MetricsLog:
    """The log of a stage as the settings want it; every process may write, process 0's lines are kept."""
    if processes.rank() != 0:
        return MetricsLog(None, stage=stage, num_steps=num_steps)
    monitors: list[Monitor] = [Console()]
    if settings.tensorboard:
        monitors.append(TensorBoard(settings.out / "tensorboard" / stage, resume_step=resume_step))
    if settings.metrics_address is not None:
        monitors.append(Prometheus(settings.metrics_address))
    return MetricsLog(
        settings.metrics_file, stage=stage, num_steps=num_steps, resume_step=resume_step, monitors=monitors
    )


def _append(path: Path, text: str) -> None:
    """One write to a file opened for appending: readers and a crash see the line whole or not at all."""
    data = text.encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        if os.write(descriptor, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)


def _forget(path: Path, *, stage: str, after_step: int) -> None:
    """Takes back the stage's lines of steps that will be done again, and a last line cut off by a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    kept = [line for line in text.splitlines() if _is_kept(line, stage=stage, after_step=after_step)]
    whole = "".join(f"{line}\n" for line in kept)
    if whole != text:
        atomic_write_text(path, whole)


def _is_kept(line: str, *, stage: str, after_step: int) -> bool:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return False
    return bool(entry.get("stage") != stage or entry.get("step", 0) <= after_step)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return value
