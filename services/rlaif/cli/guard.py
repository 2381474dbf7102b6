"""Ends whatever a run left behind, however the run ended.

Every process that a run starts inherits RLAIF_OWNER, also through sessions, groups and parents of its own. The guard
waits for end-of-file on its standard input, which the kernel delivers even when the run is killed with -9, and then
kills every process that carries the mark. It imports the standard library only and runs isolated (`python -I -S`),
so that it costs a few megabytes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

OWNER_VARIABLE = "RLAIF_OWNER"
_PROC = Path("/proc")
_PATIENCE_SECONDS = 10.0


def owned_pids(owner: str) -> list[int]:
    """Processes that inherited the mark; a zombie has no environment and is not among them. Linux only."""
    mark = f"{OWNER_VARIABLE}={owner}".encode()
    found = []
    for entry in _PROC.iterdir() if _PROC.is_dir() else ():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def kill_owned(owner: str) -> list[int]:
    """Kill marked processes until a look finds none; returns whom it killed. They may fork while we look."""
    killed: list[int] = []
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        pids = owned_pids(owner)
        if not pids:
            break
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
        time.sleep(0.02)
    return killed


def main() -> None:
    """Wait until the run is over, then clean up after it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while sys.stdin.buffer.read(1):
        pass
    kill_owned(sys.argv[1])


if __name__ == "__main__":
    main()
