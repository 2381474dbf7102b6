"""Child processes that never outlive this one: not on success, failure, Ctrl-C or kill -9."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from rlaif.cli import guard
from rlaif.cli.exits import ChildDiedError, DiskFullError, is_disk_full, tells_of_full_disk

_TAIL_BYTES = 64 * 1024


@dataclass(frozen=True)
class Child:
    """One running process and where it writes."""

    name: str
    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def pid(self) -> int:
        """Process id, also the id of its process group."""
        return self.process.pid

    def raise_if_dead(self) -> None:
        """ChildDiedError, with its last words, if it has ended."""
        exit_code = self.process.poll()
        if exit_code is not None:
            raise death_of(self.name, exit_code=exit_code, log_path=self.log_path)


class ProcessFamily:
    """Starts children and ends them all on exit. `owner` marks them and everything they start in turn."""

    def __init__(self, *, owner: str, drain_seconds: float = 10.0) -> None:
        self._owner = owner
        self._drain_seconds = drain_seconds
        self._children: list[Child] = []
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        guard.kill_owned(self._owner)  # left by an earlier run whose guard was killed too
        self._guard = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-I", "-S", guard.__file__, self._owner],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._end_children()
        finally:
            self._dismiss_guard()

    def start(self, name: str, module: str, *arguments: str, log_path: Path, environment: Mapping[str, str]) -> Child:
        """Start `python -m module arguments…` in a process group of its own, its output appended to `log_path`."""
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "rlaif.cli.tether", str(os.getpid()), module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**environment, guard.OWNER_VARIABLE: self._owner},
                process_group=0,
            )
        child = Child(name=name, process=process, log_path=log_path)
        self._children.append(child)
        return child

    def raise_if_dead(self, *, apart_from: Child) -> None:
        """The error of the first child that has ended, `apart_from` one that may."""
        for child in self._children:
            if child is not apart_from:
                child.raise_if_dead()

    def _end_children(self) -> None:
        """Latest first, so that nobody loses a server it still calls; a second Ctrl-C cuts the drain short."""
        try:
            for child in reversed(self._children):
                end_process_group(child.process, drain_seconds=self._drain_seconds)
        finally:
            for child in self._children:
                _signal_group(child.pid, signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(timeout=5)

    def _dismiss_guard(self) -> None:
        if self._guard is None or self._guard.stdin is None:
            return
        self._guard.stdin.close()
        try:
            self._guard.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self._guard.kill()


@contextlib.contextmanager
def temporary_place() -> Iterator[Path]:
    """A folder for what a call's own services write, gone after it; but not where one died whose log is named."""
    place = Path(tempfile.mkdtemp(prefix="rlaif-"))
    try:
        yield place
    except ChildDiedError:
        raise
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    shutil.rmtree(place, ignore_errors=True)


def end_process_group(process: subprocess.Popen[bytes], *, drain_seconds: float) -> None:
    """SIGTERM to the group, then SIGKILL if it is still there after the drain."""
    if process.poll() is None:
        _signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=drain_seconds)
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def child_environment(
    base: Mapping[str, str], *, num_threads: int, offline: bool, extra: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Environment of services and stages: threads that sleep when idle, no network where all models are local."""
    environment = {
        **base,
        "OMP_NUM_THREADS": str(num_threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        # About half a millisecond: waking a sleeping thread costs more than the small products of a decoding step.
        "GOMP_SPINCOUNT": "10000",
        "KMP_BLOCKTIME": "0",
        "MALLOC_ARENA_MAX": "2",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        **(extra or {}),
    }
    if offline:
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return environment


def death_of(name: str, *, exit_code: int, log_path: Path) -> ChildDiedError | DiskFullError:
    """The sentence for a child that ended: who, how, its last words, where to read more."""
    words = last_words(log_path)
    if tells_of_full_disk(words) or is_disk_full(log_path.parent):
        return DiskFullError(
            f"the disk is full: {name} said {words!r} (log: {log_path}); free some space, then start the same command "
            "again; it continues"
        )
    how = f"was killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"ended with exit code {exit_code}"
    said = f": {words}" if words else " and wrote nothing"
    return ChildDiedError(f"{name} {how}{said} (log: {log_path})", exit_code=exit_code)


def last_words(log_path: Path) -> str:
    """The last line of a log that says something; of a JSON line its message and error."""
    try:
        with log_path.open("rb") as log:
            log.seek(max(0, log_path.stat().st_size - _TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((text for text in map(_spoken, reversed(lines)) if text), "")


def _spoken(line: str) -> str:
    line = line.strip()
    if not line.startswith("{"):
        return line if any(map(str.isalnum, line)) else ""
    try:
        event = json.loads(line)
    except json.JSONDecodeError:
        return line
    parts: Sequence[str] = [str(event[key]) for key in ("message", "event", "error", "detail") if event.get(key)]
    return ": ".join(dict.fromkeys(parts))


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def wait_for_exit(pids: Sequence[int], *, timeout_seconds: float) -> list[int]:
    """Pids still there when the time is up; for processes that are not our children."""
    deadline = time.monotonic() + timeout_seconds
    remaining = [pid for pid in pids if is_running(pid)]
    while remaining and time.monotonic() < deadline:
        time.sleep(0.05)
        remaining = [pid for pid in remaining if is_running(pid)]
    return remaining


def is_running(pid: int) -> bool:
    """Whether a process of that id is there and not a zombie."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
