"""`rlaif submit`: a run on a cluster's Kubeflow Pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlaif.cli.pipelines_options import (
    POLL_SECONDS,
    PlainOption,
    PollOption,
    with_client,
)

if TYPE_CHECKING:
    from rlaif_pipelines.submission import PipelinesClient

EPILOG = """
[bold]rlaif submit --host http://127.0.0.1:8888 --param run_root=/rlaif/runs/first --params run.yaml --wait[/bold]

    Start a run with the parameters of run.yaml, and watch it to its end.

[bold]rlaif submit --param run_root=/rlaif/runs/second --set rl.steps=300 --rounds 2[/bold]

    Change single settings; --set takes what `rlaif run --set` takes.

Exit codes with --wait: 0 succeeded, 1 failed or cancelled, 3 stopped by a gate, 130 no longer watching.
"""

PipelineOption = Annotated[
    str,
    typer.Option(
        "--pipeline", metavar="NAME|FILE", help="Which pipeline: its name, or a file that `rlaif compile` wrote."
    ),
]
ParamOption = Annotated[
    list[str] | None,
    typer.Option(
        "--param", metavar="NAME=VALUE", help="A parameter, or one value in it (services.judge=…); may be repeated."
    ),
]
ParamsOption = Annotated[
    Path | None, typer.Option("--params", metavar="FILE", help="Parameters as YAML or JSON; --param goes before.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of the run, such as rl.steps=300; may be repeated."),
]
RoundsOption = Annotated[
    int | None, typer.Option("--rounds", min=1, max=16, metavar="N", help="Times to sample, judge, gate, train.")
]
ExperimentOption = Annotated[
    str, typer.Option("--experiment", metavar="NAME", help="Experiment of the run; created where there is none.")
]
ServiceAccountOption = Annotated[
    str,
    typer.Option("--service-account", metavar="NAME", help="ServiceAccount of the tasks' pods.", show_default=False),
]


@with_client
def submit(
    client: PipelinesClient,
    *,
    pipeline: PipelineOption = "rlaif",
    param: ParamOption = None,
    params: ParamsOption = None,
    set_: SetOption = None,
    rounds: RoundsOption = None,
    experiment: ExperimentOption = "rlaif",
    run_name: Annotated[
        str, typer.Option("--run-name", metavar="NAME", help="Default: <pipeline>-<time>.", show_default=False)
    ] = "",
    service_account: ServiceAccountOption = "",
    pipeline_root: Annotated[
        str,
        typer.Option(
            "--pipeline-root", metavar="URI", help="Where KFP keeps its own artifacts of the run.", show_default=False
        ),
    ] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Watch the run to its end.")] = False,
    poll: PollOption = POLL_SECONDS,
    plain: PlainOption = False,
) -> int:
    """Check the parameters, upload the pipeline if it is new, create a run, and print where to watch it.

    Parameters and settings are checked before anything is sent.
    """
    from rlaif.cli.exits import DONE
    from rlaif_pipelines.submission import prepare_submission

    submission = prepare_submission(
        pipeline, params_file=params, assignments=param or (), changes=set_ or (), rounds=rounds
    )
    run = client.submit(
        submission.package,
        submission.parameters,
        experiment=experiment,
        run_name=run_name,
        service_account=service_account,
        pipeline_root=pipeline_root,
    )
    typer.echo(f"run {run.run_id} ({run.name}), pipeline version {submission.package.version}\n{run.link}")
    if not wait:
        return DONE
    from rlaif.cli.follow_run import follow_run

    return follow_run(client, run.run_id, poll_seconds=poll, plain=plain)
