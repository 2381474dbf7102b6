"""`rlaif labels`: how good labels are, people's labels in, training rows out, calibrations."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlaif.cli.ledger import DEFAULT_FOLDER, Folder, Target, open_ledger, oversight_settings

if TYPE_CHECKING:
    from rlaif.cli.labels_calibrate import Fitted
    from rlaif.client.ledger import LedgerClient

app = typer.Typer(
    no_args_is_help=True, help="Labels: their quality, people's labels in, training rows out, calibrations."
)

Ledger = Annotated[
    Path, typer.Option("--ledger", help="Run folder or `rlaif up` folder of the ledger.", show_default="runs/services")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


class Source(StrEnum):
    """Whose labels."""

    AI = "ai"
    HUMAN = "human"


class ExportFormat(StrEnum):
    """Of the file that is written."""

    JSONL = "jsonl"
    PARQUET = "parquet"


class MethodName(StrEnum):
    """Kind of calibration."""

    TEMPERATURE = "temperature"
    ISOTONIC = "isotonic"


@app.command(epilog="Example: rlaif labels quality runs/first --by category --by length")
def quality(
    folder: Folder = DEFAULT_FOLDER,
    *,
    target: Target = "",
    constitution: Annotated[str, typer.Option(help="Only labels under this constitution.")] = "",
    judge: Annotated[str, typer.Option(help="Only labels of the judge with this digest of weights.")] = "",
    since: Annotated[datetime | None, typer.Option(help="Only labels made from this time on, UTC.")] = None,
    until: Annotated[datetime | None, typer.Option(help="Only labels made before this time, UTC.")] = None,
    by: Annotated[
        list[str] | None, typer.Option(help="Also by slice: judge, constitution, category, language or length.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say how good the judge's labels are: agreement with people, position and length bias, calibration."""
    from rich.console import Console

    from rlaif.cli.labels_display import quality_json, quality_page
    from rlaif.client.review import ReviewClient
    from rlaif.core.errors import InvalidInputError
    from rlaif.core.label_statistics import DIMENSIONS

    for dimension in by or ():
        if dimension not in DIMENSIONS:
            raise InvalidInputError(f"--by {dimension}: there are {', '.join(DIMENSIONS)}", field="--by")
    with oversight_settings(folder, target) as settings, ReviewClient(settings) as reviews:
        report = reviews.label_quality(
            constitution=_constitution(constitution),
            judge_digest=judge,
            start=_utc(since),
            end=_utc(until),
            slices=by or [],
        )
    if as_json:
        typer.echo(json.dumps(quality_json(report), indent=2))
    else:
        Console().print(quality_page(report))


@app.command(
    "import",
    epilog="A line is {messages or prompt, first, second, preference}, TRL's {prompt, chosen, rejected}, or HH-RLHF's "
    "{chosen, rejected}. A file imported twice counts once. Example: rlaif labels import people.jsonl --annotator ada",
)
def import_(
    files: Annotated[list[Path], typer.Argument(help="Files of JSON lines, plain or .gz.")],
    *,
    ledger: Ledger = DEFAULT_FOLDER,
    target: Target = "",
    annotator: Annotated[str, typer.Option(help="Pseudonym of who judged, for rows that do not say.")] = "",
    category: Annotated[str, typer.Option(help="Category, for rows that do not say.")] = "",
    language: Annotated[str, typer.Option(help="Language, such as en or pt-BR, for rows that do not say.")] = "",
    constitution: Annotated[str, typer.Option(help="Constitution judged by, for rows that do not say.")] = "",
    digests: Annotated[bool, typer.Option("--digests", help="Keep digests of the texts, not the texts.")] = False,
    skip_invalid: Annotated[bool, typer.Option(help="Leave out lines that are wrong, and say which.")] = False,
    as_json: Json = False,
) -> None:
    """Record people's preferences in the ledger, to measure, calibrate and train by."""
    from rlaif.cli.labels_files import read_preferences
    from rlaif.client.preference_labels import human_labels

    defaults = {
        "annotator": annotator,
        "category": category,
        "language": language,
        "constitution": _constitution(constitution),
    }
    read = [read_preferences(path, defaults=defaults, skip_invalid=skip_invalid) for path in files]
    preferences = [preference for found, _ in read for preference in found]
    skipped = [error for _, wrong in read for error in wrong]
    for error in skipped:
        sys.stderr.write(f"skipped {error.message}\n")
    num_new = 0
    with open_ledger(ledger, target) as client:
        labels = list(human_labels(preferences, keep_texts=not digests))
        for start in range(0, len(labels), _IMPORT_SIZE):
            num_new += client.import_labels(labels[start : start + _IMPORT_SIZE])
    if as_json:
        counts = {"num_read": len(preferences), "num_new": num_new, "num_skipped": len(skipped)}
        typer.echo(json.dumps(counts))
    else:
        typer.echo(f"{num_new} labels recorded, {len(preferences) - num_new} were there already")


@app.command(epilog="Example: rlaif labels export runs/first -o labels.parquet")
def export(
    folder: Folder = DEFAULT_FOLDER,
    *,
    target: Target = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .jsonl or .parquet.")],
    file_format: Annotated[
        ExportFormat | None, typer.Option("--format", help="Format, where the name does not say.")
    ] = None,
    source: Annotated[Source, typer.Option(help="The judge's labels or people's.")] = Source.AI,
    constitution: Annotated[str, typer.Option(help="Only labels under this constitution.")] = "",
    texts: Annotated[
        Path | None,
        typer.Option(
            help="JSON lines of messages or prompt, first, second: for labels of which the ledger kept digests only.",
            show_default="labels.jsonl of the run folder",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write labels in TRL's preference form (prompt, chosen, rejected) with the soft label as probability_chosen."""
    from rlaif.cli.labels_files import read_texts, write_rows
    from rlaif.v1 import ledger_service_pb2 as pb

    parquet = file_format is ExportFormat.PARQUET or (file_format is None and output.suffix == ".parquet")
    beside = folder / "labels.jsonl"
    place = texts or (beside if not target and beside.is_file() else None)
    with open_ledger(folder, target) as client:
        labels = client.export_labels(
            source=pb.LABEL_SOURCE_AI if source is Source.AI else pb.LABEL_SOURCE_HUMAN,
            constitution=_constitution(constitution),
        )
        num_rows, left_out = write_rows(
            output, labels, texts=read_texts(place) if place else {}, file_format="parquet" if parquet else "jsonl"
        )
    if as_json:
        typer.echo(json.dumps({"num_rows": num_rows, "num_left_out": dict(left_out)}))
        return
    typer.echo(f"{num_rows} labels written to {output}")
    if left_out:
        said = ", ".join(f"{count} {_LEFT_OUT[reason]}" for reason, count in sorted(left_out.items()))
        typer.echo(f"left out: {said}")


@app.command(
    epilog="Exit code 0 when a file was written, 1 when there are too few labels, 3 when no calibration helps. "
    "Example: rlaif labels calibrate runs/first -o calibrations"
)
def calibrate(
    folder: Folder = DEFAULT_FOLDER,
    *,
    target: Target = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the files.")] = Path("calibrations"),
    method: Annotated[
        MethodName, typer.Option(help="One temperature, or any rising map (needs more labels).")
    ] = MethodName.TEMPERATURE,
    constitution: Annotated[str, typer.Option(help="Only labels under this constitution.")] = "",
    anyway: Annotated[bool, typer.Option("--anyway", help="Also write a calibration that does not help.")] = False,
    as_json: Json = False,
) -> int:
    """Fit the judge's probabilities to people's votes: one file for each judge, template and constitution."""
    from rich.console import Console

    from rlaif.cli import exits
    from rlaif.cli.labels_calibrate import fit, reviewed_labels
    from rlaif.cli.labels_display import calibration_page
    from rlaif.core.errors import PreconditionError
    from rlaif.v1 import ledger_service_pb2 as pb

    name = _constitution(constitution)
    with open_ledger(folder, target) as client:
        groups = reviewed_labels(
            client.export_labels(source=pb.LABEL_SOURCE_HUMAN),
            client.export_labels(source=pb.LABEL_SOURCE_AI, constitution=name),
        )
        if not groups:
            raise PreconditionError(
                "people have voted on none of the judge's comparisons: import their labels with `rlaif labels import`",
                reason="TOO_FEW_LABELS",
            )
        results = [fit(candidates, method=method.value) for candidates in groups]
        written = {
            result.calibration.name: _write(result, output, client)
            for result in results
            if result.calibration is not None and (result.helps or anyway)
        }
    fitted = [(result.calibration, result) for result in results if result.calibration is not None]
    refused = [result for result in results if result.calibration is None]
    if as_json:
        rows = [
            {"path": str(written.get(calibration.name, "")), "helps": result.helps} | calibration.to_json()
            for calibration, result in fitted
        ]
        typer.echo(json.dumps({"calibrations": rows, "refused": [result.refused for result in refused]}, indent=2))
    else:
        for calibration, _ in fitted:
            path = written.get(calibration.name)
            Console().print(calibration_page(calibration))
            # Not by Rich, which would break a long path.
            typer.echo(f"written to {path}" if path else "does not help: not written (--anyway writes it)")
        for result in refused:
            judge = result.candidates.key.judge_digest[:12]
            typer.echo(f"{result.candidates.constitution}, judge {judge}: {result.refused}")
    if written:
        return exits.DONE
    return exits.STOPPED_BY_GATE if fitted else exits.FAILED


_IMPORT_SIZE = 500
_LEFT_OUT = {
    "abstained": "without a verdict",
    "tie": "ties",
    "score": "scores, which are no comparisons",
    "no_texts": "of which only digests are known",
}


def _write(result: Fitted, folder: Path, ledger: LedgerClient) -> Path:
    from rlaif.runtime.artifacts import atomic_write_text

    calibration = result.calibration
    assert calibration is not None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{calibration.calibration_id}.json"
    atomic_write_text(path, json.dumps(calibration.to_json(), indent=2) + "\n")
    ledger.record_event("calibration_fitted", subject=calibration.name, payload=calibration.to_json())
    return path


def _constitution(name: str) -> str:
    return f"constitutions/{name}" if name and not name.startswith("constitutions/") else name


def _utc(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment and moment.tzinfo is None else moment
