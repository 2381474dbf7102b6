"""`rlaif schedule`: runs that a cluster's Kubeflow Pipelines starts by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rlaif.cli.pipelines_options import (
    LimitOption,
    PageOption,
    with_client,
)
from rlaif.cli.submit import (
    ExperimentOption,
    ParamOption,
    ParamsOption,
    PipelineOption,
    RoundsOption,
    ServiceAccountOption,
    SetOption,
)

if TYPE_CHECKING:
    from rlaif_pipelines.submission import PipelinesClient

app = typer.Typer(no_args_is_help=True, help="Runs that a cluster starts by itself, by the clock (UTC).")

ScheduleArgument = Annotated[str, typer.Argument(metavar="SCHEDULE", help="Id of the schedule.", show_default=False)]


@app.command(epilog="Example: rlaif schedule create nightly --cron '0 3 * * *' --pipeline label-only --params run.yaml")
@with_client
def create(
    client: PipelinesClient,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it.", show_default=False)],
    *,
    cron: Annotated[
        str,
        typer.Option(
            "--cron",
            metavar="EXPRESSION",
            help="When: cron's five fields, UTC, such as '0 3 * * 1-5'; or @daily.",
            show_default=False,
        ),
    ] = "",
    every: Annotated[
        str, typer.Option("--every", metavar="TIME", help="Or how often, such as 6h or 7d.", show_default=False)
    ] = "",
    pipeline: PipelineOption = "rlaif",
    param: ParamOption = None,
    params: ParamsOption = None,
    set_: SetOption = None,
    rounds: RoundsOption = None,
    experiment: ExperimentOption = "rlaif",
    service_account: ServiceAccountOption = "",
) -> None:
    """Start runs again and again with the same parameters, one at a time; missed ones are not made up for."""
    from rlaif.core.errors import InvalidInputError
    from rlaif_pipelines.submission import Trigger, prepare_submission

    if bool(cron) == bool(every):
        raise InvalidInputError("give --cron or --every, and not both", field="--cron")
    when = Trigger.of_cron(cron) if cron else Trigger.of_interval(every)
    submission = prepare_submission(
        pipeline, params_file=params, assignments=param or (), changes=set_ or (), rounds=rounds
    )
    made = client.create_schedule(
        submission.package,
        submission.parameters,
        when=when,
        name=name,
        experiment=experiment,
        service_account=service_account,
    )
    typer.echo(f"schedule {made.schedule_id} ({made.name}): {made.when}")


@app.command("list", epilog="Example: rlaif schedule list --limit 50")
@with_client
def list_(
    client: PipelinesClient,
    *,
    limit: LimitOption = 20,
    page: PageOption = "",
) -> None:
    """List schedules, the latest first."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    found = client.schedules(page_size=limit, page=page)
    if not found.schedules:
        typer.echo("no schedules")
    else:
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        for title in ("schedule", "name", "when", "state"):
            table.add_column(title, no_wrap=title == "schedule")
        for each in found.schedules:
            state = Text(each.error, "red") if each.error else Text("active" if each.active else "paused")
            table.add_row(each.schedule_id, Text(each.name), str(each.when), state)
        Console().print(table)
    if found.next_page:
        typer.echo(f"more: --page {found.next_page}")


@app.command(epilog="Example: rlaif schedule pause 3f1c…")
@with_client
def pause(client: PipelinesClient, schedule: ScheduleArgument) -> None:
    """Start no more runs until it is resumed."""
    client.pause_schedule(schedule)
    typer.echo(f"schedule {schedule} is paused")


@app.command(epilog="Example: rlaif schedule resume 3f1c…")
@with_client
def resume(client: PipelinesClient, schedule: ScheduleArgument) -> None:
    """Start runs again."""
    client.resume_schedule(schedule)
    typer.echo(f"schedule {schedule} is active")


@app.command(epilog="Example: rlaif schedule delete 3f1c…")
@with_client
def delete(client: PipelinesClient, schedule: ScheduleArgument) -> None:
    """Remove a schedule; runs that it started stay."""
    client.delete_schedule(schedule)
    typer.echo(f"schedule {schedule} is deleted")
