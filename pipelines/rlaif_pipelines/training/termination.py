"""How a training ended, told to whoever started it: a small file, as Kubernetes reads /dev/termination-log."""

from __future__ import annotations

import json
import os
from pathlib import Path

TERMINATION_VARIABLE = "RLAIF_TERMINATION_LOG"


def tell_termination(exit_code: int, sentence: str) -> None:
    """Writes the file named by RLAIF_TERMINATION_LOG, if one is; the first of several processes is heard."""
    path = os.environ.get(TERMINATION_VARIABLE)
    if not path:
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except OSError:  # told already, or nowhere to write: standard error has it all the same
        return
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({"exit_code": exit_code, "message": sentence}, file)


def read_termination(path: Path) -> tuple[int, str] | None:
    """(exit code, sentence); None when the training ended without a word."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return int(told["exit_code"]), str(told["message"])
    except (OSError, ValueError, KeyError):
        return None
