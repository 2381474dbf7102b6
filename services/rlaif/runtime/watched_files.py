"""Values read from files that may be replaced while a process runs, as mounted Secrets are."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from rlaif.core.errors import SettingsError
from rlaif.runtime.logging import EventLogger

_log = EventLogger(__name__)
_LOOK_SECONDS = 1.0

Value = TypeVar("Value")


class WatchedFiles(Generic[Value]):
    """A value made of the contents of files. What cannot be used, half-written files too, leaves the last good value.

    Contents are compared, not times: what mounts and copies do to those differs. The files are small.
    """

    def __init__(self, paths: Mapping[str, Path], load: Callable[[Mapping[str, bytes]], Value]) -> None:
        """`paths` and what `load` gets are keyed by the settings that name them. SettingsError when no good."""
        self._paths = dict(paths)
        self._load = load
        contents = self._read()
        self.value = self._loaded(contents)
        self._digest = _digest(contents)

    def refresh(self) -> bool:
        """Whether there is a new value. SettingsError, and the old value, when the files changed and are no good."""
        contents = self._read()
        digest = _digest(contents)
        if digest == self._digest:
            return False
        value = self._loaded(contents)
        if _digest(self._read()) != digest:
            raise SettingsError(f"{', '.join(map(str, self._paths.values()))}: changed while they were read")
        self.value, self._digest = value, digest
        return True

    def _loaded(self, contents: Mapping[str, bytes]) -> Value:
        try:
            return self._load(contents)
        except SettingsError:
            raise
        except Exception as error:
            # Parsers fail in ways that they do not list, and whoever looks again must not end over it.
            paths = ", ".join(map(str, self._paths.values()))
            raise SettingsError(f"{paths} cannot be used: {type(error).__name__}") from error

    def _read(self) -> dict[str, bytes]:
        return {key: read_file(path, key=key) for key, path in self._paths.items()}


class FreshFiles(Generic[Value]):
    """Watched files that are looked at again when their value is used, at most once a second, from any thread."""

    def __init__(self, files: WatchedFiles[Value]) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._next_look = time.monotonic() + _LOOK_SECONDS
        self._told = ""

    def value(self) -> Value:
        """The value of the files as they are, or the last good one."""
        if time.monotonic() >= self._next_look and self._lock.acquire(blocking=False):
            try:
                self._next_look = time.monotonic() + _LOOK_SECONDS
                self._files.refresh()
                self._told = ""
            except SettingsError as error:
                if self._told != error.message:
                    self._told = error.message
                    _log.warning("changed files cannot be used, the old ones stay", error=error.message)
            finally:
                self._lock.release()
        return self._files.value


def read_file(path: Path, *, key: str) -> bytes:
    """Bytes of a file that the setting `key` names; SettingsError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{key}: cannot read {path}: {error.strerror}", field=key) from error


def _digest(contents: Mapping[str, bytes]) -> tuple[bytes, ...]:
    # Not the contents: a private key need not lie in memory once more.
    return tuple(hashlib.sha256(content).digest() for content in contents.values())
