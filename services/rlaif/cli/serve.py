"""`rlaif serve`: one service in the foreground."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

EPILOG = (
    "Example: [bold]rlaif serve judge --config judge.yaml --set engine.num_threads=4[/bold]. "
    "SIGTERM drains and ends it."
)


class ServiceName(StrEnum):
    """The services there are."""

    SAMPLER = "sampler"
    JUDGE = "judge"
    REWARD = "reward"
    OVERSIGHT = "oversight"


def serve(
    service: Annotated[ServiceName, typer.Argument(help="Which service.")],
    *,
    config: Annotated[Path, typer.Option(help="YAML settings file.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be repeated.")
    ] = None,
) -> None:
    """Run one service in the foreground; this process becomes the service."""
    from rlaif.core.errors import SettingsError

    if not config.is_file():
        raise SettingsError(f"--config {config}: there is no such file", field="--config")
    overrides = [part for override in set_ or () for part in ("--set", override)]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", f"rlaif.{service.value}", "--config", str(config), *overrides])  # noqa: S606
