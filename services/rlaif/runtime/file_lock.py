"""Locks between processes: a file held alone or shared, let go of by the kernel however its holder ends."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Final

from rlaif.core.errors import UnavailableError

_MAX_WAIT_SECONDS: Final = 3600.0
_POLL_SECONDS: Final = 0.05


class FileLock:
    """A lock file held by this process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    @classmethod
    def try_acquire(cls, path: Path, *, exclusive: bool) -> FileLock | None:
        """The lock, or None while somebody else holds it."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            # Its holder may have removed the file between our opening and our locking it.
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return cls(path, descriptor)
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    @classmethod
    def acquire(cls, path: Path) -> FileLock:
        """The lock alone, once nobody stands in the way; UnavailableError after an hour."""
        deadline = time.monotonic() + _MAX_WAIT_SECONDS
        while (lock := cls.try_acquire(path, exclusive=True)) is None:
            if time.monotonic() > deadline:
                raise UnavailableError(f"another process has held {path} for an hour", reason="LOCKED")
            time.sleep(_POLL_SECONDS)
        return lock

    def share(self) -> bool:
        """Lets others share it; False if somebody was quicker to take it alone."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def detach(self) -> FileLock:
        """The lock under another owner: letting go of this one does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        return FileLock(self._path, descriptor)

    def write(self, text: str) -> None:
        """Makes `text` the file's content."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text.encode("ascii"), 0)

    def release(self) -> None:
        """Lets go."""
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def remove(self) -> None:
        """Removes the file, then lets go."""
        self._path.unlink(missing_ok=True)
        self.release()

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
