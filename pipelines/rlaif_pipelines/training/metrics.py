"""metrics.jsonl: one JSON object a training step, whole lines only, no step twice."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlaif.runtime.artifacts import atomic_write_text


class MetricsLog:
    """Appends the steps of one stage to a file other stages may share. A path of None writes nowhere."""

    def __init__(self, path: Path | None, *, stage: str, num_steps: int, resume_step: int = 0) -> None:
        self._path = path
        self._stage = stage
        self._num_steps = num_steps
        if path is not None:
            _forget(path, stage=stage, after_step=resume_step)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends the line of a step, counted from 1; what is not finite becomes null."""
        if self._path is None:
            return
        line = {"time": round(time.time(), 3), "stage": self._stage, "step": step, "num_steps": self._num_steps}
        text = json.dumps({**line, **_finite(values)}, allow_nan=False) + "\n"
        # One write to a file opened for appending: readers and a crash see the line whole or not at all.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, text.encode())
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
