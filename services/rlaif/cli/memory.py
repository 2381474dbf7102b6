"""Peak memory of a process and all its descendants."""

from __future__ import annotations

import os

import psutil


class PeakMemory:
    """Highest sum of resident memory seen so far. Pages that processes share count once in each: an upper bound."""

    def __init__(self) -> None:
        self._root = psutil.Process(os.getpid())
        self.peak_bytes = 0

    def sample(self) -> int:
        """Resident bytes now; call about once a second."""
        total = 0
        for process in [self._root, *self._root.children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.Error:  # it ended while we looked
                continue
        self.peak_bytes = max(self.peak_bytes, total)
        return total
