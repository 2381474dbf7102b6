"""`rlaif compile`: the pipeline as YAML for a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

EPILOG = "Example: [bold]rlaif compile -o rlaif.yaml --rounds 2[/bold], then upload the file to Kubeflow Pipelines."


def compile_(
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="YAML file to write.")] = Path("rlaif.yaml"),
    rounds: Annotated[int, typer.Option(min=1, max=16, help="Rounds to unroll; KFP has no sequential loop.")] = 1,
    constitutional: Annotated[
        Literal["none", "first", "only"],
        typer.Option(help="A constitutional stage before the first round, or in place of all rounds."),
    ] = "none",
) -> None:
    """Compile the same graph that `rlaif run` runs locally into Kubeflow Pipelines YAML."""
    from rlaif_pipelines.flow import compile_pipeline

    compile_pipeline(output, rounds=rounds, constitutional=constitutional)
    after = "" if constitutional == "only" else f"{rounds} round{'s' if rounds > 1 else ''}"
    before = "" if constitutional == "none" else "constitutional stage"
    typer.echo(f"{output}: {', '.join(filter(None, (before, after)))}")
