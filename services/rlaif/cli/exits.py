"""What every verb answers the shell with: an exit code, and one sentence when something is wrong."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Final

from rlaif.core.errors import InvalidInputError, NotFoundError, RlaifError, SettingsError, UnsupportedError

DONE: Final = 0
FAILED: Final = 1
WRONG_INPUT: Final = 2
STOPPED_BY_GATE: Final = 3
INTERRUPTED: Final = 130

_NO_ROOM_BYTES = 4 << 20
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WRONG_PLACE = (errno.EACCES, errno.EEXIST, errno.EISDIR, errno.ENOENT, errno.ENOTDIR, errno.EPERM, errno.EROFS)
_NO_SPACE_TEXTS = (
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
    "database or disk is full",
    "storage is full",
)


class InterruptedRunError(RlaifError, RuntimeError):
    """The user or the system asked this command to stop."""

    reason = "INTERRUPTED"


class ChildDiedError(RlaifError, RuntimeError):
    """A child process ended when it should be running; `exit_code` is what it ended with."""

    reason = "CHILD_DIED"

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class DiskFullError(SettingsError):
    """A file could not be written for want of space."""

    reason = "DISK_FULL"


def exit_code_of(error: BaseException) -> int:
    """The documented exit code of an error that ended a verb."""
    if isinstance(error, (InterruptedRunError, KeyboardInterrupt)):
        return INTERRUPTED
    if isinstance(error, ChildDiedError):
        return WRONG_INPUT if error.exit_code == WRONG_INPUT else FAILED
    if isinstance(error, (SettingsError, InvalidInputError, NotFoundError, UnsupportedError)):
        return WRONG_INPUT
    return FAILED


def disk_full_error(error: OSError) -> DiskFullError | None:
    """A sentence for a full disk, or None if that is not what `error` says."""
    if error.errno not in _NO_SPACE:
        return None
    place = f" at {error.filename}" if error.filename else ""
    return DiskFullError(f"the disk is full{place}: free some space, then start the same command again; it continues")


def wrong_place_error(error: OSError) -> InvalidInputError | None:
    """A sentence for a path that cannot be read or written as it was to be, or None if `error` says something else."""
    if error.filename is None or error.errno not in _WRONG_PLACE:
        return None
    return InvalidInputError(f"{error.filename}: {error.strerror}: give another place, or the right to use this one")


def is_disk_full(path: Path) -> bool:
    """Whether the disk of `path` has no room left, so that a child could not even log why it died."""
    return shutil.disk_usage(path).free < _NO_ROOM_BYTES


def tells_of_full_disk(text: str) -> bool:
    """Whether a child's last words say that the disk is full."""
    return any(phrase in text for phrase in _NO_SPACE_TEXTS)


def sentence(error: RlaifError) -> str:
    """One line: what is wrong, where, and what to do."""
    text = " ".join(error.message.split())
    if error.field and error.field not in text:
        text = f"{error.field}: {text}"
    return text
