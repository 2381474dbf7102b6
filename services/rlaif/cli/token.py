"""`rlaif token`: make the bearer tokens that callers send, and the rows by which services know them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from rlaif.runtime.roles import Role

app = typer.Typer(
    no_args_is_help=True,
    help="Make bearer tokens. Services know them by their SHA-256, listed in the file that listen.tokens_path names.",
)


@app.command(
    epilog="The row goes to standard output, the token to standard error: so [bold]>> tokens.yaml[/bold] appends the "
    "row alone. To replace a token: append a second row of the same name, hand out the new token, delete the first "
    "row. Example: rlaif token new training --role trainer >> tokens.yaml"
)
def new(
    name: Annotated[str, typer.Argument(help="Who will hold it, as the ledger will say.", show_default=False)],
    *,
    role: Annotated[list[Role], typer.Option(help="What the holder may do; give it several times for several roles.")],
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the token to a new file, readable by you alone, and do not show it."),
    ] = None,
    existing: Annotated[
        str, typer.Option(metavar="FILE|-", help="Make the row of a token that exists already: a file, or - for stdin.")
    ] = "",
) -> None:
    """Make a token; show it once, and print its row."""
    import yaml

    from rlaif.runtime.tokens import describe_token, new_token

    if existing and token_file:
        raise typer.BadParameter("--existing and --token-file exclude each other: that token is in a file already")
    if existing:
        token = _read(existing)
        row = describe_token(token, name=name, roles=role)
    else:
        made = new_token(name, roles=role)
        token, row = made.token, made.row
        if token_file is not None:
            _write(token_file, token)
        else:
            typer.echo(f"the token, shown only now: {token}", err=True)
    values = {"name": row.name, "sha256": row.sha256, "roles": [each.value for each in Role if each in row.roles]}
    typer.echo(yaml.safe_dump([values], sort_keys=False, default_flow_style=None, width=1000), nl=False)


def _read(source: str) -> str:
    from rlaif.runtime.settings import parse_token
    from rlaif.runtime.watched_files import read_file

    content = sys.stdin.buffer.read() if source == "-" else read_file(Path(source), key="--existing")
    return parse_token(content, source="standard input" if source == "-" else source)


def _write(path: Path, token: str) -> None:
    from rlaif.core.errors import InvalidInputError

    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise InvalidInputError(f"cannot write {path}: {error.strerror}", field="--token-file") from error
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{token}\n")
