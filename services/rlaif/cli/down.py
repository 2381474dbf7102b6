"""`rlaif down`: stop what `rlaif up` started."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Annotated

import typer

EPILOG = "Calls in flight finish first; what has not ended within the drain is killed. The ledger and logs stay."


def down(
    *,
    state: Annotated[Path, typer.Option(help="Folder that `rlaif up` was given.")] = Path("runs/services"),
    drain_seconds: Annotated[float, typer.Option(min=0, help="How long calls in flight may take.")] = 10.0,
) -> None:
    """Stop the services that were started from a folder."""
    from rlaif.cli.addresses import GRPC_SERVICES, announce_path, read_announcement
    from rlaif.cli.processes import wait_for_exit
    from rlaif.cli.status import is_service

    announcements = [read_announcement(announce_path(state, name)) for name in GRPC_SERVICES]
    running = {each.pid: each.name for each in announcements if each and is_service(each)}
    for pid in running:
        _signal(pid, signal.SIGTERM)
    late = wait_for_exit(list(running), timeout_seconds=drain_seconds)
    for pid in late:
        _signal(pid, signal.SIGKILL)
    wait_for_exit(late, timeout_seconds=5)
    for name in GRPC_SERVICES:
        announce_path(state, name).unlink(missing_ok=True)
    for pid, name in running.items():
        typer.echo(f"{name:<10} {'killed after the drain' if pid in late else 'stopped'}")
    if not running:
        typer.echo(f"nothing runs from {state}")


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
