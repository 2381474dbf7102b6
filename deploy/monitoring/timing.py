"""Windows and waits of rules, in Prometheus's notation."""

from __future__ import annotations

import re
from dataclasses import dataclass

_MILLISECONDS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}


@dataclass(frozen=True)
class Timing:
    """`scale` shrinks every window, wait and age alike, for trying the same expressions within a minute."""

    scale: float = 1.0

    def __call__(self, nominal: str) -> str:
        """The length of time that is "5m" or the like where nothing is shrunk."""
        milliseconds = round(self.seconds(nominal) * 1000)
        return next(f"{milliseconds // size}{unit}" for unit, size in _MILLISECONDS.items() if milliseconds % size == 0)

    def seconds(self, nominal: str) -> float:
        """The same as a number, which ages are held against."""
        match = re.fullmatch(r"(\d+)(ms|[dhms])", nominal)
        assert match is not None, f"{nominal} is no length of time"
        return int(match[1]) * _MILLISECONDS[match[2]] / 1000 * self.scale
