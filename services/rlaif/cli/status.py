"""`rlaif status`: which services run, and whether they are healthy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rlaif.cli.addresses import Announcement

EPILOG = (
    "Exit code 0 when every service is healthy, 1 otherwise. Also reads a run folder: rlaif status --state runs/first."
)


def status(
    *,
    state: Annotated[Path, typer.Option(help="Folder that `rlaif up` was given.")] = Path("runs/services"),
) -> int:
    """Show the services that were started from a folder."""
    from rich.console import Console
    from rich.table import Table

    from rlaif.cli.addresses import GRPC_SERVICES, announce_path, is_serving, read_announcement

    table = Table(box=None, header_style="bold")
    for title in ("service", "state", "address", "metrics", "process", "memory"):
        table.add_column(title, justify="right" if title == "memory" else "left")
    num_healthy = 0
    for name, grpc_service in GRPC_SERVICES.items():
        announcement = read_announcement(announce_path(state, name))
        if announcement is None:
            table.add_row(name, "[dim]not started[/dim]", "", "", "", "")
            continue
        alive = is_service(announcement)
        healthy = alive and is_serving(announcement.address, grpc_service)
        num_healthy += healthy
        state_text = (
            "[green]healthy[/green]" if healthy else "[yellow]not serving[/yellow]" if alive else "[red]gone[/red]"
        )
        memory = f"{_rss_bytes(announcement.pid) / 2**20:.0f} MiB" if alive else ""
        metrics = announcement.metrics_address or ""
        table.add_row(name, state_text, announcement.address, metrics, str(announcement.pid), memory)
    Console().print(table)
    return 0 if num_healthy == len(GRPC_SERVICES) else 1


def is_service(announcement: Announcement) -> bool:
    """Whether the announced process still runs and is that service, not a later process of the same number."""
    import psutil

    from rlaif.cli.addresses import module_of

    try:
        process = psutil.Process(announcement.pid)
        command = process.cmdline()
        return process.status() != psutil.STATUS_ZOMBIE and module_of(announcement.name) in command
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _rss_bytes(pid: int) -> int:
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
