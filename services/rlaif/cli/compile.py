"""`rlaif compile`: a pipeline as YAML for a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

EPILOG = "Example: [bold]rlaif compile -o rlaif.yaml --rounds 2[/bold], then [bold]rlaif submit[/bold] or upload it."


def compile_(
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="YAML file to write.")] = Path(
        "rlaif.yaml"
    ),
    pipeline: Annotated[
        Literal["rlaif", "label-only", "evaluate-only", "judge-benchmark"],
        typer.Option(metavar="NAME", help="rlaif, the whole loop; or label-only, evaluate-only, judge-benchmark."),
    ] = "rlaif",
    rounds: Annotated[
        int, typer.Option(min=1, max=16, metavar="N", help="Rounds to unroll; KFP has no sequential loop.")
    ] = 1,
    constitutional: Annotated[
        Literal["none", "first", "only"],
        typer.Option(help="A constitutional stage before the first round, or in place of all rounds."),
    ] = "none",
    image: Annotated[
        str, typer.Option(metavar="IMAGE", help="Image of the tasks. Default: that of this version.")
    ] = "",
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw the pipeline, as an SVG file.")
    ] = None,
    retries: Annotated[
        int,
        typer.Option(
            min=0, max=20, metavar="N", help="Times that a failed task is started again; each waits twice as long."
        ),
    ] = 2,
) -> None:
    """Compile the same graph that `rlaif run` runs locally into Kubeflow Pipelines YAML.

    What people change from run to run are parameters of the pipeline; what shapes the graph is decided here.
    """
    from rlaif.cli.inputs import writing
    from rlaif.core.errors import InvalidInputError
    from rlaif.runtime.artifacts import atomic_write_text
    from rlaif_pipelines.flow import GraphOptions, compiled_pipeline
    from rlaif_pipelines.placement import Retries

    if output.suffix not in (".yaml", ".yml"):
        raise InvalidInputError(
            f"--output {output}: must end with .yaml, by which `rlaif submit` tells a file from a name",
            field="--output",
        )
    options = GraphOptions(rounds=rounds, constitutional=constitutional, image=image, retries=Retries(count=retries))
    text = compiled_pipeline(pipeline, options)
    with writing(output, "--output"):
        atomic_write_text(output, text)
    if picture is not None:
        with writing(picture, "--picture"):
            atomic_write_text(picture, _drawn(text))
    typer.echo(f"{output}: {', '.join(_words(pipeline, rounds, constitutional))}")


def _drawn(text: str) -> str:
    import yaml

    from rlaif_pipelines.picture import draw

    return draw(next(yaml.safe_load_all(text)))


def _words(pipeline: str, rounds: int, constitutional: str) -> list[str]:
    if pipeline != "rlaif":
        return [pipeline]
    return [
        *(["constitutional stage"] if constitutional != "none" else []),
        *([f"{rounds} round{'s' if rounds > 1 else ''}"] if constitutional != "only" else []),
    ]
