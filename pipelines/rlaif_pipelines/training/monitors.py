"""Who else is told a step's figures: a terminal or log, TensorBoard. Called by metrics.MetricsLog alone."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TextIO

Monitor = Callable[[Mapping[str, Any]], None]
"""Told the line of a step as it stands in metrics.jsonl."""

_SHOWN: Final = {
    "loss": "loss",
    "reward": "reward",
    "kl": "KL",
    "completion_tokens": "length",
    "grad_norm": "gradient",
    "tokens_per_second": "tokens/s",
}
_TERMINAL_SECONDS, _LOG_SECONDS = 1.0, 10.0


class RemainingTime:
    """How long a training will take from here at its pace so far, this start alone counted."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def seconds(self, step: int, num_steps: int) -> float | None:
        """Seconds to the end after that step; None as long as there is no pace."""
        now = time.monotonic()
        if self._first is None or step <= self._first[0]:
            self._first = step, now
            return None
        return (num_steps - step) * (now - self._first[1]) / (step - self._first[0])


class Console:
    """A line of figures, at most one a second on a terminal and one every ten in a log; the last step's always."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._seconds = _TERMINAL_SECONDS if self._stream.isatty() else _LOG_SECONDS
        self._remaining = RemainingTime()
        self._last = -math.inf

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Shows a step, unless another was shown just now."""
        step, num_steps = line["step"], line["num_steps"]
        remaining = self._remaining.seconds(step, num_steps)
        now = time.monotonic()
        if now - self._last < self._seconds and step < num_steps:
            return
        self._last = now
        figures = [f"{shown} {line[name]:.4g}" for name, shown in _SHOWN.items() if is_figure(line.get(name))]
        if remaining is not None and step < num_steps:
            figures.insert(0, f"{_duration(remaining)} left")
        self._stream.write(f"{line['stage']} {step}/{num_steps}  {'  '.join(figures)}\n")
        self._stream.flush()


class TensorBoard:
    """Every figure as a scalar of that name in a folder for TensorBoard."""

    def __init__(self, folder: Path, *, resume_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=resume_step + 1)

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Adds the step's figures, on disk when this returns."""
        for name, value in _flat({key: value for key, value in line.items() if key not in _POSITION}):
            self._writer.add_scalar(name, value, line["step"], walltime=line["time"])
        self._writer.flush()


_POSITION: Final = ("time", "stage", "step", "num_steps")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif is_figure(value):
            yield f"{prefix}{name}", float(value)


def is_figure(value: Any) -> bool:
    """Whether it is a number that a step tells."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
