"""Arguments and options that the verbs of `rlaif judge` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

WHICH, HOW, MANY, ANSWER = "Which judge", "By which rules", "Many at once", "The answer"
TEXT_HELP = "A text, @FILE or -."
SINGLE_SECONDS, BATCH_SECONDS = 60.0, 600.0

Prompt = Annotated[
    str | None,
    typer.Argument(
        metavar="PROMPT",
        help='What the user asked: a text, @FILE or -; @FILE.json holds [{"role": …, "content": …}].',
        show_default=False,
    ),
]
Response = Annotated[str | None, typer.Argument(metavar="RESPONSE", help=TEXT_HELP, show_default=False)]
ConstitutionOption = Annotated[
    str,
    typer.Option(
        "--constitution",
        metavar="NAME|FILE",
        help="A constitution that the judge has, a shipped one, or a YAML file. Default: the judge's only one.",
        rich_help_panel=HOW,
        show_default=False,
    ),
]
PrincipleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--principle",
        metavar="TEXT",
        help="Judge by this principle in place of a constitution; may be repeated.",
        rich_help_panel=HOW,
    ),
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--only", metavar="ID", help="Apply this principle of the constitution; may be repeated.", rich_help_panel=HOW
    ),
]
CategoryOption = Annotated[
    str,
    typer.Option(
        "--category",
        metavar="NAME",
        help="Category of the conversation: principles that do not apply to it are left out.",
        rich_help_panel=HOW,
        show_default=False,
    ),
]
SeedOption = Annotated[
    int,
    typer.Option("--seed", min=0, max=2**64 - 1, metavar="N", help="Seed of everything drawn.", rich_help_panel=HOW),
]
ReasoningOption = Annotated[
    bool,
    typer.Option(
        "--reasoning", help="Have the judge write a rationale first, where its model can.", rich_help_panel=HOW
    ),
]
AddressOption = Annotated[
    str,
    typer.Option("--address", metavar="HOST:PORT", help="A running judge.", rich_help_panel=WHICH, show_default=False),
]
StateOption = Annotated[
    Path,
    typer.Option("--state", metavar="FOLDER", help="Folder that `rlaif up` was given.", rich_help_panel=WHICH),
]
TlsOption = Annotated[
    Path | None,
    typer.Option("--tls-ca", metavar="FILE", help="PEM certificates to trust; turns TLS on.", rich_help_panel=WHICH),
]
TokenOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file", metavar="FILE", help="Bearer token to send; RLAIF_TOKEN does the same.", rich_help_panel=WHICH
    ),
]
TimeoutOption = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        min=0.1,
        metavar="SECONDS",
        help=f"Deadline of a call. Default: {SINGLE_SECONDS:g}, with --in {BATCH_SECONDS:g} a batch.",
        rich_help_panel=WHICH,
        show_default=False,
    ),
]
InOption = Annotated[
    Path | None,
    typer.Option("--in", metavar="FILE", help="JSON lines to judge in place of arguments.", rich_help_panel=MANY),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE",
        help="Results of --in, a JSON line each; lines that it holds already are not asked again.",
        rich_help_panel=MANY,
    ),
]
BatchOption = Annotated[
    int, typer.Option("--batch", min=1, max=1024, metavar="N", help="Lines a call.", rich_help_panel=MANY)
]
ConcurrencyOption = Annotated[
    int, typer.Option("--concurrency", min=1, max=64, metavar="N", help="Calls in flight.", rich_help_panel=MANY)
]
JsonOption = Annotated[bool, typer.Option("--json", help="For machines: one JSON document.", rich_help_panel=ANSWER)]
DEFAULT_STATE = Path("runs/services")
