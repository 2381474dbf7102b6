"""`rlaif logs`: what the tasks of a run on a cluster print."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from rlaif.cli.pipelines_options import (
    POLL_SECONDS,
    PollOption,
    RunArgument,
    with_client,
)

if TYPE_CHECKING:
    from rlaif_pipelines.submission import LogReader, PipelinesClient, Run, Task

EPILOG = (
    "Read from the Kubeflow Pipelines API, else from the pods with your kubeconfig. "
    "Example: rlaif logs 3f1c… label --follow"
)

_OVERLAP = 1000
"""Characters by which the end of a log is known again."""


@with_client
def logs(
    client: PipelinesClient,
    run: RunArgument,
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="Only this task; without it all, in order.", show_default=False)
    ] = "",
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the task, or the run, ends.")] = False,
    poll: PollOption = POLL_SECONDS,
    kubernetes: Annotated[
        bool, typer.Option("--kubernetes/--no-kubernetes", help="Ask the Kubernetes API where the other has no log.")
    ] = True,
) -> int:
    """Print logs of a run's tasks; of each, its last attempt."""
    from rlaif_pipelines.submission import LogReader

    reader = LogReader(client, run, use_kubernetes=kubernetes)
    if follow:
        return _follow(client, run, task, reader=reader, poll_seconds=poll)
    chosen = _chosen(client.run(run), task)
    return _print(chosen, reader=reader, headed=not task)


def _print(tasks: list[Task], *, reader: LogReader, headed: bool) -> int:
    """0, or 1 where a log is missing; of one task alone that is an error."""
    from rlaif.cli.exits import DONE, FAILED
    from rlaif.core.errors import NotFoundError

    code = DONE
    for task in tasks:
        if headed:
            typer.echo(f"==> {task.name} ({task.state.lower()}) <==")
        try:
            typer.echo(reader.read(task), nl=False)
        except NotFoundError as error:
            if not headed:
                raise
            code = FAILED
            typer.echo(error.message, err=True)
    return code


def _follow(client: PipelinesClient, run_id: str, name: str, *, reader: LogReader, poll_seconds: float) -> int:
    """Prints what is new at each look; the API cannot stream a log."""
    from rlaif.cli.exits import DONE
    from rlaif.core.errors import NotFoundError

    printed: dict[str, str] = {}
    ended: set[str] = set()
    speaker = name
    for run in client.follow(run_id, pause_seconds=poll_seconds, sleep=time.sleep):
        for task in [task for task in run.tasks if task.name == name] if name else run.tasks:
            if task.name in ended or task.state in ("PENDING", "SKIPPED") or task.cached:
                continue
            try:
                text = reader.read(task)
            except NotFoundError:  # its container has not begun, or its pod is gone
                text = ""
            new = _news(text, before=printed.get(task.name, ""))
            printed[task.name] = text or printed.get(task.name, "")
            if new:
                if task.name != speaker:
                    speaker = task.name
                    typer.echo(f"==> {speaker} <==")
                typer.echo(new, nl=False)
            if task.ended is not None:
                ended.add(task.name)
        if name in ended:
            return DONE
    if name:
        _chosen(run, name)
    return DONE


def _news(text: str, *, before: str) -> str:
    """What of a log was not there at the last look: all of it where it is another attempt's."""
    if text.startswith(before):
        return text[len(before) :]
    # Of a log that is longer than what is read of it the beginning goes as it grows.
    end = before[-_OVERLAP:]
    place = text.rfind(end) if len(end) == _OVERLAP else -1
    return text if place < 0 else text[place + len(end) :]


def _chosen(run: Run, name: str) -> list[Task]:
    import difflib

    from rlaif.core.errors import NotFoundError

    begun = [task for task in run.tasks if task.state not in ("PENDING", "SKIPPED") and not task.cached]
    if not name:
        return begun
    names = [task.name for task in run.tasks]
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(names) or 'none yet'}"
        raise NotFoundError(f"run {run.run_id} has no task {name}; {hint}", field="TASK")
    chosen = [task for task in begun if task.name == name]
    if not chosen:
        raise NotFoundError(f"task {name} has not run: it prints nothing", field="TASK")
    return chosen
