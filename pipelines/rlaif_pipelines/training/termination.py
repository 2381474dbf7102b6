"""How a training ended, told to whoever started it: a small file, as Kubernetes reads /dev/termination-log."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

TERMINATION_VARIABLE = "RLAIF_TERMINATION_LOG"
_MAX_CHARACTERS = 1000
"""Kubernetes keeps 4096 bytes, and half a JSON object says nothing."""


def tell_termination(exit_code: int, sentence: str) -> None:
    """Writes the file named by RLAIF_TERMINATION_LOG, if one is; the first of several processes is heard."""
    path = os.environ.get(TERMINATION_VARIABLE)
    if not path:
        return
    told = sentence if len(sentence) <= _MAX_CHARACTERS else f"{sentence[: _MAX_CHARACTERS - 1]}…"
    try:
        # In a pod the file is there before we are, empty.
        with Path(path).open("a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_size == 0:
                json.dump({"exit_code": exit_code, "message": told}, file, ensure_ascii=False)
    except OSError:  # nowhere to write: standard error has it all the same
        return


def read_termination(path: Path) -> tuple[int, str] | None:
    """(exit code, sentence); None when the training ended without a word."""
    try:
        return parse_termination(path.read_text(encoding="utf-8"))
    except OSError:
        return None


def parse_termination(text: str) -> tuple[int, str] | None:
    """The same from what the file holds."""
    try:
        told = json.loads(text)
        return int(told["exit_code"]), str(told["message"])
    except (ValueError, KeyError, TypeError):
        return None
