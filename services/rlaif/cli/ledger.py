"""`rlaif ledger`: verify the chain, list events, export labels; from a running service or from a folder's file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rlaif.client.ledger import LedgerClient
    from rlaif.runtime.settings import ClientSettings

app = typer.Typer(no_args_is_help=True, help="Read the append-only ledger of labels and decisions.")

Folder = Annotated[
    Path, typer.Argument(help="Run folder or `rlaif up` folder whose ledger to read.", show_default="runs/services")
]
Target = Annotated[str, typer.Option(help="host:port of a running oversight service, in place of a folder.")]
DEFAULT_FOLDER = Path("runs/services")


@app.command(epilog="Exit code 0 when the chain is whole, 1 when it is broken. Example: rlaif ledger verify runs/first")
def verify(folder: Folder = DEFAULT_FOLDER, *, target: Target = "") -> int:
    """Recompute the hash chain and name the first altered, missing or reordered event."""
    with open_ledger(folder, target) as ledger:
        found = ledger.verify()
    if found.broken_at:
        typer.echo(f"BROKEN at {found.broken_at}: {found.fault.replace('_', ' ')} ({found.num_events} events)")
        return 1
    typer.echo(f"whole: {found.num_events} events, {found.num_labels} labels, head {found.head_sha256}")
    return 0


@app.command(epilog="Example: rlaif ledger events runs/first --type gate")
def events(
    folder: Folder = DEFAULT_FOLDER,
    *,
    target: Target = "",
    type_: Annotated[str, typer.Option("--type", help="Only events of this type.")] = "",
    subject: Annotated[str, typer.Option(help="Only events about this resource.")] = "",
) -> None:
    """Print events, oldest first, one JSON object a line."""
    from google.protobuf.json_format import MessageToDict

    with open_ledger(folder, target) as ledger:
        for event in ledger.list_events(event_type=type_, subject=subject):
            typer.echo(json.dumps(MessageToDict(event, preserving_proto_field_name=True), ensure_ascii=False))


@app.command(epilog="Example: rlaif ledger export runs/first -o labels.jsonl")
def export(
    folder: Folder = DEFAULT_FOLDER,
    *,
    target: Target = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; without it, standard output.")
    ] = None,
) -> None:
    """Write every label, oldest first, one JSON object a line."""
    from google.protobuf.json_format import MessageToDict

    from rlaif.runtime.artifacts import atomic_write_text

    with open_ledger(folder, target) as ledger:
        lines = [
            json.dumps(MessageToDict(label, preserving_proto_field_name=True), ensure_ascii=False)
            for label in ledger.export_labels()
        ]
    text = "".join(f"{line}\n" for line in lines)
    if output is None:
        typer.echo(text, nl=False)
        return
    atomic_write_text(output, text)
    typer.echo(f"{len(lines)} labels written to {output}")


@contextmanager
def oversight_settings(folder: Path, target: str) -> Iterator[ClientSettings]:
    """How to reach the service at `target`, the one that runs from `folder`, or one started for this call."""
    from rlaif.cli.addresses import announce_path, read_announcement
    from rlaif.cli.remote import remote_settings
    from rlaif.cli.status import is_service
    from rlaif.runtime.settings import ClientSettings

    if target:
        yield remote_settings(target)
        return
    announcement = read_announcement(announce_path(folder, "oversight"))
    if announcement and is_service(announcement):
        yield ClientSettings(target=announcement.address)
        return
    with _temporary_oversight(folder) as address:
        yield ClientSettings(target=address)


@contextmanager
def open_ledger(folder: Path, target: str) -> Iterator[LedgerClient]:
    """A client of the ledger at `target`, of the one that runs from `folder`, or of one started for this call."""
    from rlaif.client.ledger import LedgerClient

    with oversight_settings(folder, target) as settings, LedgerClient(settings) as ledger:
        yield ledger


@contextmanager
def _temporary_oversight(folder: Path) -> Iterator[str]:
    from rlaif.cli.addresses import module_of
    from rlaif.cli.processes import ProcessFamily, child_environment, temporary_place
    from rlaif.cli.services import start_oversight
    from rlaif.core.errors import InvalidInputError

    database = folder.resolve() / "ledger.sqlite"
    if not database.is_file():
        raise InvalidInputError(f"{folder} has no ledger.sqlite and no oversight service runs from it", field="folder")
    environment = child_environment(os.environ, num_threads=1, offline=True)
    with temporary_place() as place, ProcessFamily(owner=f"ledger:{place}") as family:
        announcement = start_oversight(
            place,
            database=database,
            launch=lambda service, config: family.start(
                service,
                module_of(service),
                "--config",
                str(config),
                log_path=place / "logs" / f"{service}.log",
                environment=environment,
            ),
        )
        yield announcement.address
