"""`rlaif cancel`: end a run on a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from rlaif.cli.pipelines_options import (
    RunArgument,
    with_client,
)

if TYPE_CHECKING:
    from rlaif_pipelines.submission import PipelinesClient

EPILOG = "Finished stages stay; a run submitted again with the same run_root continues. Example: rlaif cancel 3f1c…"


@with_client
def cancel(client: PipelinesClient, run: RunArgument) -> None:
    """Stop the tasks of a run and start no more."""
    from rlaif.core.errors import PreconditionError

    found = client.run(run)
    if found.has_ended:
        raise PreconditionError(f"run {run} has ended already: {found.state.lower()}")
    client.cancel(run)
    typer.echo(f"run {run} is being cancelled; `rlaif runs show {run} --wait` watches it end")
