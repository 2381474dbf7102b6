"""`rlaif constitution`: list, show, validate, compare, audit and import the principles that a judge applies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rlaif.core.audit import Finding
    from rlaif.core.constitution import Constitution

app = typer.Typer(
    no_args_is_help=True,
    help="Read, check and write constitutions. None of these needs a model or a running service.",
)

Source = Annotated[str, typer.Argument(metavar="FILE|NAME", help="A YAML file or a shipped name.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="For machines: one JSON document on standard output.")]


@app.command("list", epilog="Example: rlaif constitution list")
def list_(*, as_json: AsJson = False) -> None:
    """List the constitutions that ship with the product."""
    from rlaif.cli.inputs import find_constitution, shipped_constitutions

    found = [find_constitution(name).constitution for name in sorted(shipped_constitutions())]
    if as_json:
        _print_json([_identity(each) | {"description": each.description} for each in found])
        return
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("name", "version", "principles", "sha256", "what for"):
        table.add_column(title, justify="right" if title in ("version", "principles") else "left")
    for each in found:
        table.add_row(
            each.constitution_id, str(each.version), str(len(each.principles)), each.sha256[:12], each.description
        )
    _print(table)


@app.command(epilog="Example: rlaif constitution show helpful-harmless")
def show(source: Source, *, as_json: AsJson = False) -> None:
    """Show a constitution with its principles, weights and digest."""
    from dataclasses import asdict

    from rlaif.cli.inputs import find_constitution

    constitution = find_constitution(source, option="constitution").constitution
    if as_json:
        _print_json(_identity(constitution) | asdict(constitution))
        return
    _print(_page(constitution))


@app.command(epilog="Exit code 2 when a file is wrong. Example: rlaif constitution validate my.yaml another.yaml")
def validate(
    files: Annotated[list[str], typer.Argument(metavar="FILE…", help="YAML files to check.", show_default=False)],
) -> int:
    """Check constitution files; what is wrong is named by file, line and field."""
    from rlaif.cli.exits import DONE, WRONG_INPUT
    from rlaif.cli.inputs import find_constitution
    from rlaif.core.errors import InvalidInputError

    wrong = False
    for file in files:
        try:
            constitution = find_constitution(file, option="constitution").constitution
        except InvalidInputError as error:
            wrong = True
            typer.echo(f"wrong  {error.message}", err=True)
        else:
            typer.echo(
                f"valid  {file}: {constitution.name} version {constitution.version}, "
                f"{len(constitution.principles)} principles, sha256 {constitution.sha256}"
            )
    return WRONG_INPUT if wrong else DONE


@app.command(
    epilog="Exit code 0 when they are the same, 1 when not. Example: rlaif constitution diff old.yaml new.yaml"
)
def diff(
    old: Annotated[str, typer.Argument(metavar="OLD", help="A YAML file or a shipped name.", show_default=False)],
    new: Annotated[str, typer.Argument(metavar="NEW", help="A YAML file or a shipped name.", show_default=False)],
    *,
    as_json: AsJson = False,
) -> int:
    """Say what changed between two constitutions, principle by principle."""
    from dataclasses import asdict, is_dataclass

    from rlaif.cli.inputs import find_constitution
    from rlaif.core.constitution_diff import diff_constitutions

    before = find_constitution(old, option="old").constitution
    after = find_constitution(new, option="new").constitution
    changes = diff_constitutions(before, after)
    if as_json:

        def plain(value: Any) -> Any:
            return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value

        rows = [
            {"kind": each.kind, "field": each.field, "old": plain(each.old), "new": plain(each.new)} for each in changes
        ]
        _print_json({"old": _identity(before), "new": _identity(after), "changes": rows})
    elif changes:
        from rlaif.cli.constitution_display import diff_page

        _print(diff_page(before, after, changes))
    else:
        typer.echo(f"the same: sha256 {after.sha256}")
    return 1 if changes else 0


@app.command(
    epilog="Examples: rlaif constitution audit my.yaml. In a build, --strict ends with exit code 3 when something is "
    "to be changed. With probe pairs and in the judge model's own words: rlaif judge audit."
)
def audit(
    source: Source,
    *,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit code 3 when there are findings beyond advice on validation.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Audit a constitution as a rubric, from its wording alone; works without a model."""
    from rlaif.cli.exits import DONE, STOPPED_BY_GATE
    from rlaif.cli.inputs import find_constitution
    from rlaif.core.audit import FindingKind, audit_constitution

    constitution = find_constitution(source, option="constitution").constitution
    findings = audit_constitution(constitution)
    if as_json:
        _print_json(_identity(constitution) | {"findings": list(map(finding_row, findings))})
    else:
        from rlaif.cli.constitution_display import findings_page

        _print(findings_page(constitution.name, findings))
    to_change = any(finding.kind is not FindingKind.VALIDATION for finding in findings)
    return STOPPED_BY_GATE if strict and to_change else DONE


@app.command(
    "import",
    epilog="Examples: rlaif constitution import instructions.json --id harmless-cai --out harmless-cai.yaml; "
    "rlaif constitution import house-rules.txt --id house --out house.yaml",
)
def import_(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="JSON lists of critique and revision instructions as released with Constitutional AI, or text with "
            "one principle a paragraph.",
            show_default=False,
        ),
    ],
    *,
    id_: Annotated[str, typer.Option("--id", metavar="ID", help="Id of the constitution: lower-case, digits, '-'.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="YAML file to write; an existing one is not replaced.")],
) -> None:
    """Make a constitution of published instructions or of plain text."""
    from rlaif.cli.inputs import read_text_file, writing
    from rlaif.core.constitution_import import import_constitution
    from rlaif.core.constitution_yaml import constitution_yaml
    from rlaif.core.errors import InvalidInputError
    from rlaif.runtime.artifacts import atomic_write_text

    if out.exists():
        raise InvalidInputError(f"--out {out}: is there already; give another name", field="--out")
    text = read_text_file(file, option="file")
    try:
        constitution = import_constitution(text, constitution_id=id_, source=file.name)
    except InvalidInputError as error:
        if error.field == "id":
            raise InvalidInputError(f"--id {id_}: must be lower-case letters, digits and '-'", field="--id") from error
        raise
    with writing(out, "--out"):
        atomic_write_text(out, constitution_yaml(constitution))
    typer.echo(
        f"{len(constitution.principles)} principles written to {out}; all weigh the same: say which matters more"
    )
    typer.echo(f"See what is left to do with: rlaif constitution audit {out}")


def finding_row(finding: Finding) -> dict[str, Any]:
    """A finding as JSON."""
    return {
        "kind": finding.kind.value,
        "principle_ids": list(finding.principle_ids),
        "description": finding.description,
        "suggestion": finding.suggestion,
    }


def _identity(constitution: Constitution) -> dict[str, Any]:
    return {"name": constitution.name, "version": constitution.version, "sha256": constitution.sha256}


def _page(constitution: Constitution) -> RenderableType:
    from rlaif.cli.constitution_display import constitution_page

    return constitution_page(constitution)


def _print(page: RenderableType) -> None:
    from rich.console import Console

    Console().print(page)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))
