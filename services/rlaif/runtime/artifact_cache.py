"""Models of shared storage on this machine's disk: fetched once, checked, resumed after a crash, bounded in size.

An entry is a folder named after its content. Beside it lies a lock file: who fills the entry holds it alone, who uses
the entry shares it, and its text is the entry's size in bytes, its time that of the last use.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rlaif.core.errors import CorruptionError, SettingsError, UnavailableError
from rlaif.runtime.file_lock import FileLock
from rlaif.runtime.logging import EventLogger

_log = EventLogger(__name__)

FOLDER_VARIABLE: Final = "RLAIF_CACHE"
"""Folder of the cache; ~/.cache/rlaif/artifacts when unset."""
SIZE_VARIABLE: Final = "RLAIF_CACHE_MAX_BYTES"
"""Most bytes that it may hold; 100 GiB when unset."""

_DEFAULT_FOLDER: Final = "~/.cache/rlaif/artifacts"
_DEFAULT_MAX_BYTES: Final = 100 * 1024**3
_CHUNK_BYTES: Final = 8 * 1024 * 1024
_NUM_DOWNLOADS: Final = 4
_MAX_WAIT_SECONDS: Final = 3600.0
_POLL_SECONDS: Final = 0.05
_TOLD_SECONDS: Final = 5.0
_NUM_HELD: Final = 2
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OUTGOING: Final = "publishing-"

Read = Callable[[str, int, int], bytes]
"""Bytes [start, end) of the file of that name."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a model on shared storage. `sha256` is empty where nobody wrote it down; then `tag` tells versions."""

    name: str
    size_bytes: int
    sha256: str = ""
    tag: str = ""


@dataclass(frozen=True)
class ArtifactCache:
    """A folder of fetched models, shared by all processes that name it."""

    root: Path
    max_bytes: int

    @classmethod
    def of_environment(cls) -> ArtifactCache:
        """The cache that RLAIF_CACHE and RLAIF_CACHE_MAX_BYTES describe."""
        text = os.environ.get(SIZE_VARIABLE, "")
        if text and not (text.isascii() and text.isdigit() and int(text) > 0):
            raise SettingsError(f"{SIZE_VARIABLE}={text!r} is not a number of bytes above 0", field=SIZE_VARIABLE)
        folder = Path(os.environ.get(FOLDER_VARIABLE) or _DEFAULT_FOLDER).expanduser().absolute()
        return cls(root=folder, max_bytes=int(text) if text else _DEFAULT_MAX_BYTES)

    def fetch(self, source: str, files: Sequence[RemoteFile], *, read: Read, check: Callable[[Path], None]) -> Path:
        """The folder with these files of `source`; `check` raises CorruptionError where they are not right.

        This process keeps the two it fetched last from being evicted.
        """
        self._make_root()
        entry = _Entry(self.root, _content_id(source, files))
        started = time.monotonic()
        waiting_is_told = False
        while (waited := time.monotonic() - started) < _MAX_WAIT_SECONDS:
            if waited > _TOLD_SECONDS and not waiting_is_told:
                waiting_is_told = True
                _log.info("another process is fetching the model", uri=source)
            corruption = None
            if (lock := FileLock.try_acquire(entry.lock, exclusive=False)) is not None:
                with lock:
                    if _is_whole(entry.folder, files):
                        try:
                            check(entry.folder)
                            return _hold(entry, lock)
                        except CorruptionError as error:
                            corruption = error
                _let_go(entry)
            if (lock := FileLock.try_acquire(entry.lock, exclusive=True)) is not None:
                with lock:
                    if corruption is not None:
                        shutil.rmtree(entry.folder)
                    self._fill(entry, lock, source, files, read=read, check=check)
                    if lock.share() and _is_whole(entry.folder, files):
                        return _hold(entry, lock)
            elif corruption is not None:
                raise corruption  # others use it
            time.sleep(_POLL_SECONDS)
        raise UnavailableError(f"{source}: another process has been fetching it for an hour", reason="CACHE_LOCKED")

    @contextmanager
    def outgoing(self) -> Iterator[Path]:
        """An empty folder for what is to be published; removed after, and by whom comes next if we are killed."""
        self._make_root()
        for left in self.root.glob(f"{_OUTGOING}*.lock"):
            if (lock := FileLock.try_acquire(left, exclusive=True)) is not None:
                shutil.rmtree(left.with_suffix(""), ignore_errors=True)
                lock.remove()
        folder = Path(tempfile.mkdtemp(dir=self.root, prefix=_OUTGOING))
        lock = FileLock.acquire(folder.with_suffix(".lock"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.remove()

    def _make_root(self) -> None:
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(
                f"{FOLDER_VARIABLE}: the cache folder {self.root} cannot be made ({error.strerror})",
                field=FOLDER_VARIABLE,
            ) from error

    def _fill(
        self,
        entry: _Entry,
        lock: FileLock,
        source: str,
        files: Sequence[RemoteFile],
        *,
        read: Read,
        check: Callable[[Path], None],
    ) -> None:
        if _is_whole(entry.folder, files):
            return
        names = {file.name for file in files}
        size_bytes, started = sum(file.size_bytes for file in files), time.perf_counter()
        try:
            entry.part.mkdir(exist_ok=True)
            for stray in [path for path in entry.part.iterdir() if path.name not in names]:
                stray.unlink()
            self._make_room(entry, lock, source, size_bytes=size_bytes)
            _download(entry.part, source, files, read=read)
            try:
                check(entry.part)
            except CorruptionError:
                shutil.rmtree(entry.part)
                raise
            shutil.rmtree(entry.folder, ignore_errors=True)
            entry.part.rename(entry.folder)
            seconds = round(time.perf_counter() - started, 3)
            _log.info("model fetched", uri=source, size_bytes=size_bytes, seconds=seconds)
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            shutil.rmtree(entry.part, ignore_errors=True)
            raise self._disk_full(source) from error

    def _make_room(self, entry: _Entry, lock: FileLock, source: str, *, size_bytes: int) -> None:
        """Evicts the least recently used entries that nobody uses, until this one fits bound and disk."""
        if size_bytes > self.max_bytes:
            raise SettingsError(
                f"{source} has {size_bytes} bytes and the cache {self.root} may hold {self.max_bytes}: raise "
                f"{SIZE_VARIABLE}",
                field=SIZE_VARIABLE,
            )
        with FileLock.acquire(self.root / ".room.lock"):
            lock.write(str(size_bytes))
            present = sum(path.stat().st_size for path in entry.part.iterdir())
            others = self._entries(but=entry)
            used = size_bytes + sum(each.size_bytes for each in others)
            for other in others:
                if used <= self.max_bytes and self._free_bytes() >= size_bytes - present:
                    break
                size = other.size_bytes
                if other.evict():
                    used -= size
            if used > self.max_bytes:
                lock.write("0")
                raise UnavailableError(
                    f"{source} does not fit the cache {self.root}: it may hold {self.max_bytes} bytes and the rest is "
                    f"in use; raise {SIZE_VARIABLE}",
                    reason="CACHE_FULL",
                )
            if self._free_bytes() < size_bytes - present:
                shutil.rmtree(entry.part)
                raise self._disk_full(source)

    def _entries(self, *, but: _Entry) -> list[_Entry]:
        """What else is or is being put there, least recently used first."""
        found = [_Entry(self.root, path.stem) for path in self.root.glob("*.lock") if _is_content_id(path.stem)]
        others = [each for each in found if each.name != but.name and (each.folder.exists() or each.part.exists())]
        return sorted(others, key=lambda each: each.used_seconds)

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self.root).free

    def _disk_full(self, source: str) -> UnavailableError:
        return UnavailableError(
            f"{source} does not fit the disk of the cache {self.root}: free some space there, or set {FOLDER_VARIABLE} "
            "to a folder on another disk",
            reason="DISK_FULL",
        )


@dataclass(frozen=True)
class _Entry:
    """Paths of one entry; `part` is what has been fetched of it so far."""

    root: Path
    name: str

    @property
    def folder(self) -> Path:
        return self.root / self.name

    @property
    def part(self) -> Path:
        return self.root / f"{self.name}.part"

    @property
    def lock(self) -> Path:
        return self.root / f"{self.name}.lock"

    @property
    def size_bytes(self) -> int:
        """As its filler wrote it down; 0 once it is gone."""
        try:
            return int(self.lock.read_text(encoding="ascii") or "0")
        except (OSError, ValueError):
            return 0

    @property
    def used_seconds(self) -> float:
        """When it was last fetched."""
        try:
            return self.lock.stat().st_mtime
        except OSError:
            return 0.0

    def evict(self) -> bool:
        """Removes it unless somebody uses or fills it."""
        lock = FileLock.try_acquire(self.lock, exclusive=True)
        if lock is None:
            return False
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.part, ignore_errors=True)
        lock.remove()
        return True


_held: OrderedDict[Path, FileLock] = OrderedDict()
_holding = threading.Lock()


def is_held(entry: Path) -> bool:
    """Whether this process keeps that entry from being evicted."""
    with _holding:
        return entry.with_name(f"{entry.name}.lock") in _held


def _hold(entry: _Entry, lock: FileLock) -> Path:
    """Keeps the entry until two others have been held since; its folder."""
    os.utime(entry.lock)
    with _holding:
        before = _held.pop(entry.lock, None)
        _held[entry.lock] = lock.detach()
        if before is not None:
            before.release()
        while len(_held) > _NUM_HELD:
            _held.popitem(last=False)[1].release()
    return entry.folder


def _let_go(entry: _Entry) -> None:
    with _holding:
        if (lock := _held.pop(entry.lock, None)) is not None:
            lock.release()


def _content_id(source: str, files: Sequence[RemoteFile]) -> str:
    """Names the content: equal for equal files wherever they lie, if their SHA-256 are known."""
    total = hashlib.sha256()
    for file in sorted(files, key=lambda each: each.name):
        content = file.sha256 or f"{source}\0{file.tag}"
        total.update(f"{file.name}\0{file.size_bytes}\0{content}\n".encode())
    return total.hexdigest()


def _is_content_id(name: str) -> bool:
    return len(name) == 64 and all(character in "0123456789abcdef" for character in name)


def _is_whole(folder: Path, files: Sequence[RemoteFile]) -> bool:
    try:
        return all((folder / file.name).stat().st_size == file.size_bytes for file in files)
    except OSError:
        return False


def _download(folder: Path, source: str, files: Sequence[RemoteFile], *, read: Read) -> None:
    with ThreadPoolExecutor(max_workers=_NUM_DOWNLOADS, thread_name_prefix="download") as pool:
        started = [pool.submit(_download_file, folder / file.name, source, file, read) for file in files]
        try:
            for future in started:
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _download_file(path: Path, source: str, file: RemoteFile, read: Read) -> None:
    """Fetches what is missing of a file, and all of it again where what was there before turns out to be wrong."""
    resumed = path.exists() and path.stat().st_size > 0
    found = _append(path, source, file, read)
    if resumed and file.sha256 and found != file.sha256:
        path.unlink()
        found = _append(path, source, file, read)
    if file.sha256 and found != file.sha256:
        path.unlink()
        raise CorruptionError(
            f"{source}/{file.name} was published with SHA-256 {file.sha256}, its bytes have {found}",
            metadata={"uri": source, "file": file.name},
        )


def _append(path: Path, source: str, file: RemoteFile, read: Read) -> str:
    """Fetches from where the file ends to its size; the SHA-256 of the whole."""
    digest = hashlib.sha256()
    with path.open("ab+") as stream:
        if stream.tell() > file.size_bytes:
            stream.truncate(0)
        stream.seek(0)
        while data := stream.read(_CHUNK_BYTES):
            digest.update(data)
        position = stream.tell()
        while position < file.size_bytes:
            data = read(file.name, position, min(position + _CHUNK_BYTES, file.size_bytes))
            if not data or position + len(data) > file.size_bytes:
                raise UnavailableError(
                    f"{source}/{file.name} changed while it was fetched", reason="CHANGED_WHILE_FETCHED"
                )
            stream.write(data)
            digest.update(data)
            position += len(data)
    return digest.hexdigest()
