"""`rlaif playground`: the embedded tiny world and its models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="The embedded playground: a tiny world, a policy and a judge.")


@app.callback()
def _group() -> None:
    """Keeps `build` a verb of its own: a Typer app with a single command would swallow its name."""


@app.command(epilog="Example: rlaif playground build --out build/playground")
def build(
    *,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for the tokenizer, the models and the build record.")
    ] = Path("build/playground"),
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the whole build.")] = 0,
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="Threads; the weights depend on it.")] = 2,
) -> None:
    """Rebuild world, tokenizer, policy and judge from nothing; about 20 minutes on two cores."""
    from rlaif_pipelines.playground.build import build as build_playground
    from rlaif_pipelines.playground.held_out import headlines

    record = build_playground(out, seed=seed, threads=threads)
    for line in headlines(record["figures"]["judge"]):
        typer.echo(line, err=True)
    typer.echo(str(out))
