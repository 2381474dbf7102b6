"""How a build says how far it is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Final

Progress = Callable[[str, int, int, Mapping[str, float]], None]
"""Told the part, the step, the number of steps and the running means of the losses."""

_EVERY: Final = 50


def print_progress(part: str, step: int, num_steps: int, figures: Mapping[str, float]) -> None:
    """A line on stderr every fifty steps and at the end."""
    if step % _EVERY == 0 or step == num_steps:
        told = "  ".join(f"{name} {value:.3f}" for name, value in sorted(figures.items()))
        sys.stderr.write(f"{part} {step}/{num_steps}  {told}\n")
        sys.stderr.flush()
