"""`rlaif runs`: what runs on a cluster's Kubeflow Pipelines."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rlaif.cli.json_values import json_value
from rlaif.cli.pipelines_options import (
    POLL_SECONDS,
    LimitOption,
    PageOption,
    PlainOption,
    PollOption,
    RunArgument,
    with_client,
)

if TYPE_CHECKING:
    from rlaif_pipelines.submission import PipelinesClient, Run

app = typer.Typer(no_args_is_help=True, help="Look at runs on a cluster; `rlaif submit` starts them.")

StateName = Literal["pending", "running", "succeeded", "skipped", "failed", "canceling", "canceled", "paused"]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list", epilog="Example: rlaif runs list --state failed --experiment rlaif")
@with_client
def list_(
    client: PipelinesClient,
    *,
    experiment: Annotated[
        str, typer.Option("--experiment", metavar="NAME", help="Only of this experiment.", show_default=False)
    ] = "",
    state: Annotated[StateName | None, typer.Option("--state", help="Only in this state.")] = None,
    limit: LimitOption = 20,
    page: PageOption = "",
    as_json: JsonOption = False,
) -> None:
    """List runs, the latest first."""
    found = client.runs(experiment=experiment, state=(state or "").upper(), page_size=limit, page=page)
    if as_json:
        typer.echo(json.dumps({"runs": [_plain(run) for run in found.runs], "next_page": found.next_page}))
        return
    if not found.runs:
        typer.echo("no runs")
    else:
        _print_runs(found.runs)
    if found.next_page:
        typer.echo(f"more: --page {found.next_page}")


@app.command(epilog="Example: rlaif runs show 3f1c… --wait")
@with_client
def show(
    client: PipelinesClient,
    run: RunArgument,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Watch it to its end; exit codes as of `rlaif submit`.")] = False,
    poll: PollOption = POLL_SECONDS,
    plain: PlainOption = False,
    as_json: JsonOption = False,
) -> int:
    """Show a run and its tasks."""
    from datetime import UTC

    from rich.console import Console

    from rlaif.cli.exits import DONE
    from rlaif.cli.follow_run import cause_in_log, follow_run, run_picture

    if wait:
        return follow_run(client, run, poll_seconds=poll, plain=plain)
    found = client.run(run)
    if as_json:
        typer.echo(json.dumps(_plain(found)))
        return DONE
    console = Console()
    console.print(run_picture(found, now=datetime.now(UTC)))
    failed = found.failed_task
    if failed is not None:
        why = failed.error or cause_in_log(client, found, failed) or found.error
        console.print(f"{failed.name} failed{f': {why}' if why else ''}", markup=False, highlight=False)
    return DONE


def _print_runs(runs: tuple[Run, ...]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from rlaif.cli.display import duration

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title, width in {"run": 36, "state": 9, "created": 11, "took": None, "name": None}.items():
        table.add_column(title, no_wrap=True, min_width=width)
    for run in runs:
        took = (run.finished - run.created).total_seconds() if run.finished and run.created else None
        table.add_row(
            run.run_id,
            run.state.lower(),
            f"{run.created:%m-%d %H:%M}" if run.created else "",
            "" if took is None else duration(took),
            Text(run.name),
        )
    Console().print(table)


def _plain(run: Run) -> dict[str, Any]:
    """As JSON has it."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(run), default=json_value))
    return values
