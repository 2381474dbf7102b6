"""How a training ends other than by being done."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlaif.core.errors import RlaifError

_FULL = {
    errno.ENOSPC: "no space is left on the device",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "files may not grow that large",
}


class DivergedError(RlaifError, ArithmeticError):
    """A loss or gradient is not finite; the last checkpoint is from before."""

    reason = "DIVERGED"


class GuardError(RlaifError, RuntimeError):
    """A guard ended the training; the model that is written is the version it went back to."""

    reason = "GUARD"


class PausedError(RlaifError, RuntimeError):
    """A service is away or fails too often; started again, the training goes on from its last checkpoint."""

    reason = "PAUSED"


class DiskFullError(RlaifError, OSError):
    """Something could not be written for lack of room; what was there before is whole, and the training resumable."""

    reason = "DISK_FULL"


@contextmanager
def told_when_full(path: Path) -> Iterator[None]:
    """Makes one sentence of a full disk below `path`, however a library tells it; any other error passes."""
    try:
        yield
    except Exception as error:
        why = _FULL.get(_errno(error))
        if why is None:
            raise
        raise DiskFullError(
            f"{path} cannot be written: {why}; make room and start again, and training goes on from its last checkpoint"
        ) from error


def _errno(error: Exception) -> int:
    # safetensors and tokenizers are written in Rust: the number is in the text alone.
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told[1]) if told else getattr(error, "errno", None) or 0
