"""Watch a run on Kubeflow Pipelines to its end: a table on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rlaif.cli import exits
from rlaif.cli.display import duration
from rlaif.core.errors import RlaifError
from rlaif_pipelines.submission import LogReader, PipelinesClient, Run, Task

_STYLES: Final = {
    "PENDING": "dim",
    "RUNNING": "cyan",
    "SUCCEEDED": "green",
    "SKIPPED": "dim",
    "FAILED": "bold red",
    "CANCELING": "yellow",
    "CANCELED": "yellow",
}
_EXCEPTION: Final = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt): .+")
_LAUNCHER: Final = re.compile(r"[IWEF]\d{4} .*|time=.*|\{.*\}|(?:sub-process|Error: exit status).*")


class RunFailedError(RlaifError, RuntimeError):
    """A run on the cluster failed, or somebody cancelled it."""

    reason = "RUN_FAILED"


def follow_run(client: PipelinesClient, run_id: str, *, poll_seconds: float, plain: bool = False) -> int:
    """Exit code of a run that ended well or at a gate; RunFailedError tells what failed.

    Interrupted, it leaves the run alone and says how to come back to it.
    """
    console = Console()
    live = console.is_terminal and not console.is_dumb_terminal and not plain
    looks = client.follow(run_id, pause_seconds=poll_seconds)
    try:
        [last] = deque(_shown(looks, console=console) if live else _told(looks, console=console), maxlen=1)
    except KeyboardInterrupt:
        raise exits.InterruptedRunError(
            f"no longer watching; run {run_id} goes on: `rlaif runs show {run_id} --wait` watches it again, `rlaif "
            f"cancel {run_id}` ends it"
        ) from None
    return conclude(client, last, console=console)


def conclude(client: PipelinesClient, run: Run, *, console: Console) -> int:
    """The last word on a run that has ended."""
    if run.state == "SUCCEEDED":
        if run.closed_gates:
            console.print(f"stopped by {', '.join(run.closed_gates)}: nothing was trained after it; see the report")
            return exits.STOPPED_BY_GATE
        console.print(f"run {run.run_id} succeeded", highlight=False)
        return exits.DONE
    if run.state in ("CANCELED", "CANCELING"):
        raise RunFailedError(f"run {run.run_id} was cancelled")
    task = run.failed_task
    if task is None:
        raise RunFailedError(f"run {run.run_id} failed: {run.error or 'the API does not say why'} ({run.link})")
    why = task.error or cause_in_log(client, run, task) or run.error or "the API does not say why"
    raise RunFailedError(f"task {task.name} failed: {why} (whole log: rlaif logs {run.run_id} {task.name})")


def cause_in_log(client: PipelinesClient, run: Run, task: Task) -> str:
    """The exception that a task's log ends with; empty where there is no log."""
    try:
        log = LogReader(client, run.run_id, use_kubernetes=False).read(task)
    except RlaifError:
        return ""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    exceptions = [line for line in lines if _EXCEPTION.fullmatch(line)]
    others = [line for line in lines if not _LAUNCHER.fullmatch(line)]
    return next(iter([*exceptions[-1:], *others[-1:], *lines[-1:]]), "")


def run_picture(run: Run, *, now: datetime) -> RenderableType:
    """The run and its tasks as a table."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("task")
    table.add_column("state")
    table.add_column("time", justify="right")
    for task in run.tasks:
        seconds = task.seconds(now)
        table.add_row(task.name, state_text(task), "" if seconds is None else duration(seconds))
    if not run.tasks:
        table.add_row(Text("no task has begun", "dim"), "", "")
    took = duration(((run.finished or now) - run.created).total_seconds()) if run.created else ""
    head = Text.assemble(
        (run.name, "bold"), "  ", (run.state.lower(), _STYLES.get(run.state, "")), (f"  {took}", "dim")
    )
    return Panel(Group(table, Text(run.link, "dim", overflow="fold")), title=head, title_align="left", padding=(1, 2))


def state_text(task: Task) -> Text:
    """The state in a word, with how many parts are done where there are several."""
    word = "cached" if task.cached else task.state.lower()
    parts = f" {task.num_done}/{task.num_parts}" if task.num_parts > 1 else ""
    return Text(f"{word}{parts}", _STYLES.get(task.state, ""))


def _shown(looks: Iterable[Run], *, console: Console) -> Iterator[Run]:
    with _live(console) as live:
        for run in looks:
            live.update(run_picture(run, now=datetime.now(UTC)), refresh=True)
            yield run


@contextmanager
def _live(console: Console) -> Iterator[Live]:
    live = Live(console=console, auto_refresh=False)
    live.start()
    try:
        yield live
    finally:
        live.stop()


@dataclass
class _Lines:
    """What was said of each task, so that only changes are said."""

    console: Console
    said: dict[str, str] = field(default_factory=dict)

    def tell(self, name: str, text: str) -> None:
        if self.said.get(name) != text:
            self.said[name] = text
            self.console.print(
                f"{datetime.now(UTC):%H:%M:%S}  {name:<24} {text}", highlight=False, markup=False, soft_wrap=True
            )


def _told(looks: Iterable[Run], *, console: Console) -> Iterator[Run]:
    lines = _Lines(console)
    for run in looks:
        for task in run.tasks:
            seconds = task.seconds(datetime.now(UTC)) if task.ended else None
            lines.tell(task.name, state_text(task).plain + ("" if seconds is None else f" in {duration(seconds)}"))
        lines.tell("run", run.state.lower())
        yield run
