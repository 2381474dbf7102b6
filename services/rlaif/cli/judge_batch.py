"""A file of JSON lines through the judge into another file, for a verb of `rlaif judge` that was given --in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rlaif.cli.exits import DONE, FAILED
from rlaif.cli.judge_connection import Where, connect
from rlaif.cli.judge_display import counted
from rlaif.cli.judge_jobs import Asking, JobKind, read_lines, request_digest, results_file, write_results
from rlaif.cli.judge_rules import How, digest_of
from rlaif.core.errors import InvalidInputError


@dataclass(frozen=True)
class Files:
    """Where many are read and written, and how many go at once."""

    lines: Path
    results: Path | None
    batch_size: int
    concurrency: int
    category: str


def run_batch(kind: JobKind[Any, Any], where: Where, how: How, files: Files, arguments: tuple[str | None, ...]) -> int:
    """Judge every line that has no result yet; exit code 0 when all have one, 1 when some failed.

    `arguments` are what the command line said of a single case, and must be none.
    """
    if any(argument is not None for argument in arguments):
        raise InvalidInputError("give arguments or --in FILE, not both", field="--in")
    if files.category:
        raise InvalidInputError('--category: with --in, each line says its own "category"', field="--category")
    if files.results is None:
        raise InvalidInputError("--out: name the file for the results of --in", field="--out")
    lines = read_lines(files.lines, kind)
    with connect(where) as connection:
        rules, options = how.rules(connection), how.options
        sha256 = digest_of(connection, rules)
        digests = {
            line.number: request_digest(line, constitution_sha256=sha256, options=options, key=kind.key)
            for line in lines
        }
        asking = Asking(connection.client, rules, options, files.batch_size, files.concurrency, where.timeout_seconds)
        with results_file(files.results, digests) as (done, results):
            left = [line for line in lines if line.number not in done]
            try:
                counts = _follow(write_results(kind, asking, left, digests, results), total=len(left), title=kind.key)
            except KeyboardInterrupt:
                typer.echo(f"interrupted: the same command continues {files.results}", err=True)
                raise
    before = f", {len(done)} were there before" if done else ""
    typer.echo(f"{len(left)} lines asked: {counted(counts)}{before}; results in {files.results}", err=True)
    if not counts["failed"]:
        return DONE
    typer.echo("The same command asks again for the lines that failed.", err=True)
    return FAILED


def _follow(counted_so_far: Iterable[Counter[str]], *, total: int, title: str) -> Counter[str]:
    """The last counts, after showing their growth."""
    counts: Counter[str] = Counter()
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        for counts in counted_so_far:  # noqa: B007 - the last one is the answer
            progress.advance(task)
    return counts
