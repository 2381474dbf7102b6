"""`rlaif report`: the report of a run folder, built again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EPILOG = (
    "Example: [bold]rlaif report runs/first[/bold]. Works on failed and stopped runs too: "
    "what is not known is left out."
)


def report(folder: Annotated[Path, typer.Argument(help="Run folder, the --out of `rlaif run`.")]) -> None:
    """Write report.html and report.json from the files of a run folder."""
    from rlaif_pipelines.report import build

    typer.echo(str(build(folder)))
