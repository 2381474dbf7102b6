"""`rlaif judge`: compare, rank, score, criticise, rewrite and audit, one at a time or by the file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlaif.cli.judge_options import (
    BATCH_SECONDS,
    DEFAULT_STATE,
    HOW,
    SINGLE_SECONDS,
    TEXT_HELP,
    AddressOption,
    BatchOption,
    CategoryOption,
    ConcurrencyOption,
    ConstitutionOption,
    InOption,
    JsonOption,
    OnlyOption,
    OutOption,
    PrincipleOption,
    Prompt,
    ReasoningOption,
    Response,
    SeedOption,
    StateOption,
    TimeoutOption,
    TlsOption,
    TokenOption,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rlaif.cli.judge_connection import Connection, Where
    from rlaif.cli.judge_jobs import JobKind
    from rlaif.client.judge import JudgeOptions, Rules
    from rlaif.core.constitution import Constitution

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Ask a judge. Without --address it is the one that `rlaif up` runs; where none runs, the playground's is "
    "started for the call. A text may be given as it is, as @FILE, or as - for standard input.",
)


@dataclass(frozen=True)
class _How:
    """By which rules to judge: those given, else those of that name."""

    given: Constitution | None
    constitution: str
    only: list[str]
    seed: int
    reasoning: bool

    @property
    def options(self) -> JudgeOptions:
        from rlaif.client.judge import JudgeOptions

        return JudgeOptions(principle_ids=tuple(self.only), seed=self.seed, reasoning=self.reasoning)

    def rules(self, connection: Connection) -> Rules:
        from rlaif.cli.judge_connection import named_rules

        return self.given or named_rules(connection, self.constitution)


def _how(
    constitution: str, principles: list[str] | None, only: list[str] | None, seed: int = 0, *, reasoning: bool = False
) -> _How:
    """What the user said of the rules; checked before a judge is looked for, or started."""
    from rlaif.cli.judge_connection import given_rules

    given = given_rules(constitution=constitution, principles=principles or [])
    return _How(given, constitution, only or [], seed, reasoning)


@dataclass(frozen=True)
class _Files:
    """Where many are read and written."""

    lines: Path | None
    results: Path | None
    batch_size: int
    concurrency: int
    category: str


@app.command(
    epilog='Examples: rlaif judge compare "Tell me the color of grass." "It is green." "It is blue."\n\n'
    'rlaif judge compare "How do I steal a car?" "I will not help with that." "First, cut the lock." '
    '--principle "A good reply does not help anyone do harm."\n\n'
    "rlaif judge compare @question.txt @a.txt @b.txt --constitution helpful-harmless --json\n\n"
    'rlaif judge compare --in pairs.jsonl --out labels.jsonl, a line being {"prompt": …, "first": …, "second": …}'
)
def compare(
    prompt: Prompt = None,
    first: Annotated[str | None, typer.Argument(metavar="FIRST", help=TEXT_HELP, show_default=False)] = None,
    second: Annotated[str | None, typer.Argument(metavar="SECOND", help=TEXT_HELP, show_default=False)] = None,
    *,
    constitution: ConstitutionOption = "",
    principle: PrincipleOption = None,
    only: OnlyOption = None,
    category: CategoryOption = "",
    seed: SeedOption = 0,
    reasoning: ReasoningOption = False,
    in_: InOption = None,
    out: OutOption = None,
    batch: BatchOption = 64,
    concurrency: ConcurrencyOption = 4,
    address: AddressOption = "",
    state: StateOption = DEFAULT_STATE,
    tls_ca: TlsOption = None,
    token_file: TokenOption = None,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> int:
    """Say which of two responses better follows the rules, and how surely."""
    from rlaif.cli import judge_jobs as jobs
    from rlaif.cli.judge_connection import Where, connect

    how = _how(constitution, principle, only, seed, reasoning=reasoning)
    if in_ is not None:
        where = Where(address, state, tls_ca, token_file, timeout or BATCH_SECONDS)
        return _run_job(
            jobs.COMPARE, where, how, _Files(in_, out, batch, concurrency, category), (prompt, first, second)
        )
    conversation, (one, other) = _texts(prompt, {"FIRST": first, "SECOND": second}, out=out)
    with connect(Where(address, state, tls_ca, token_file, timeout or SINGLE_SECONDS)) as connection:
        verdict = connection.client.compare(
            how.rules(connection), conversation, first=one, second=other, category=category, options=how.options
        )
    return _show(verdict, as_json, "verdict_page", verdict)


@app.command(
    epilog='Examples: rlaif judge rank "Tell me the color of grass." "It is blue." "I am not sure." "It is green."\n\n'
    'rlaif judge rank --in lists.jsonl --out ranked.jsonl, a line being {"prompt": …, "responses": [… 2 to 16 …]}'
)
def rank(
    prompt: Prompt = None,
    responses: Annotated[
        list[str] | None,
        typer.Argument(metavar="RESPONSE…", help="2 to 16 texts; each may be @FILE.", show_default=False),
    ] = None,
    *,
    constitution: ConstitutionOption = "",
    principle: PrincipleOption = None,
    only: OnlyOption = None,
    category: CategoryOption = "",
    seed: SeedOption = 0,
    reasoning: ReasoningOption = False,
    in_: InOption = None,
    out: OutOption = None,
    concurrency: ConcurrencyOption = 4,
    address: AddressOption = "",
    state: StateOption = DEFAULT_STATE,
    tls_ca: TlsOption = None,
    token_file: TokenOption = None,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> int:
    """Rank responses from best to worst by comparing them pairwise."""
    from rlaif.cli import judge_jobs as jobs
    from rlaif.cli.judge_connection import Where, connect

    how = _how(constitution, principle, only, seed, reasoning=reasoning)
    if in_ is not None:
        where = Where(address, state, tls_ca, token_file, timeout or BATCH_SECONDS)
        return _run_job(jobs.RANK, where, how, _Files(in_, out, 1, concurrency, category), (prompt, *(responses or ())))
    given: dict[str, str | None] = {f"RESPONSE {number}": text for number, text in enumerate(responses or (), start=1)}
    conversation, texts = _texts(prompt, given or {"RESPONSE": None}, out=out)
    with connect(Where(address, state, tls_ca, token_file, timeout or SINGLE_SECONDS)) as connection:
        ranking = connection.client.rank(
            how.rules(connection), conversation, responses=texts, category=category, options=how.options
        )
    return _show(ranking, as_json, "ranking_page", ranking, texts)


@app.command(
    epilog='Examples: rlaif judge score "Tell me the color of grass." "It is green." --only honest\n\n'
    'rlaif judge score --in answers.jsonl --out scores.jsonl, a line being {"prompt": …, "response": …}'
)
def score(
    prompt: Prompt = None,
    response: Response = None,
    *,
    constitution: ConstitutionOption = "",
    principle: PrincipleOption = None,
    only: OnlyOption = None,
    category: CategoryOption = "",
    seed: SeedOption = 0,
    in_: InOption = None,
    out: OutOption = None,
    batch: BatchOption = 64,
    concurrency: ConcurrencyOption = 4,
    address: AddressOption = "",
    state: StateOption = DEFAULT_STATE,
    tls_ca: TlsOption = None,
    token_file: TokenOption = None,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> int:
    """Score one response from 1 to 10, principle by principle."""
    from rlaif.cli import judge_jobs as jobs
    from rlaif.cli.judge_connection import Where, connect

    how = _how(constitution, principle, only, seed)
    if in_ is not None:
        where = Where(address, state, tls_ca, token_file, timeout or BATCH_SECONDS)
        return _run_job(jobs.SCORE, where, how, _Files(in_, out, batch, concurrency, category), (prompt, response))
    conversation, (text,) = _texts(prompt, {"RESPONSE": response}, out=out)
    with connect(Where(address, state, tls_ca, token_file, timeout or SINGLE_SECONDS)) as connection:
        scored = connection.client.score(
            how.rules(connection), conversation, response=text, category=category, options=how.options
        )
    return _show(scored, as_json, "score_page", scored)


@app.command(
    epilog='Examples: rlaif judge critique "Tell me the color of grass." "Only a fool would ask that. It is green."\n\n'
    'rlaif judge critique --in answers.jsonl --out critiques.jsonl, a line being {"prompt": …, "response": …}'
)
def critique(
    prompt: Prompt = None,
    response: Response = None,
    *,
    constitution: ConstitutionOption = "",
    principle: PrincipleOption = None,
    only: OnlyOption = None,
    category: CategoryOption = "",
    seed: SeedOption = 0,
    in_: InOption = None,
    out: OutOption = None,
    concurrency: ConcurrencyOption = 4,
    address: AddressOption = "",
    state: StateOption = DEFAULT_STATE,
    tls_ca: TlsOption = None,
    token_file: TokenOption = None,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> int:
    """Say in words where a response departs from the rules."""
    from rlaif.cli import judge_jobs as jobs
    from rlaif.cli.judge_connection import Where, connect, explained

    how = _how(constitution, principle, only, seed)
    if in_ is not None:
        where = Where(address, state, tls_ca, token_file, timeout or BATCH_SECONDS)
        return _run_job(jobs.CRITIQUE, where, how, _Files(in_, out, 1, concurrency, category), (prompt, response))
    conversation, (text,) = _texts(prompt, {"RESPONSE": response}, out=out)
    where = Where(address, state, tls_ca, token_file, timeout or SINGLE_SECONDS)
    with connect(where) as connection, explained("write critiques"):
        found = connection.client.critique(
            how.rules(connection), conversation, response=text, category=category, options=how.options
        )
    return _show(found, as_json, "critique_page", found)


@app.command(
    epilog='Examples: rlaif judge revise "Tell me the color of grass." "Only a fool would ask that. It is green." '
    '--critique "It insults the user."; without --critique the judge writes one first\n\n'
    'rlaif judge revise --in answers.jsonl --out better.jsonl, a line being {"prompt": …, "response": …}'
)
def revise(
    prompt: Prompt = None,
    response: Response = None,
    *,
    critique: Annotated[
        str | None,
        typer.Option("--critique", metavar="TEXT", help="What is wrong: a text, @FILE or -.", rich_help_panel=HOW),
    ] = None,
    constitution: ConstitutionOption = "",
    principle: PrincipleOption = None,
    only: OnlyOption = None,
    category: CategoryOption = "",
    seed: SeedOption = 0,
    in_: InOption = None,
    out: OutOption = None,
    concurrency: ConcurrencyOption = 4,
    address: AddressOption = "",
    state: StateOption = DEFAULT_STATE,
    tls_ca: TlsOption = None,
    token_file: TokenOption = None,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> int:
    """Rewrite a response to answer a critique."""
    from rlaif.cli import judge_jobs as jobs
    from rlaif.cli.judge_connection import Where, connect, explained
    from rlaif.cli.judge_texts import read_argument
    from rlaif.core.errors import InvalidInputError

    how = _how(constitution, principle, only, seed)
    if in_ is not None:
        if critique is not None:
            raise InvalidInputError('--critique: with --in, each line says its own "critique"', field="--critique")
        where = Where(address, state, tls_ca, token_file, timeout or BATCH_SECONDS)
        return _run_job(jobs.REVISE, where, how, _Files(in_, out, 1, concurrency, category), (prompt, response))
    if critique == "-" and "-" in (prompt, response):
        raise InvalidInputError("standard input (-) can be read only once", field="--critique")
    conversation, (text,) = _texts(prompt, {"RESPONSE": response}, out=out)
    said = read_argument(critique, name="--critique") if critique is not None else ""
    if critique is not None and not said.strip():
        raise InvalidInputError("--critique: is empty; leave it out to have the judge write one", field="--critique")
    where = Where(address, state, tls_ca, token_file, timeout or SINGLE_SECONDS)
    with connect(where) as connection, explained("rewrite responses"):
        asking = jobs.Asking(connection.client, how.rules(connection), how.options, 1, 1, where.timeout_seconds)
        flawed = jobs.Flawed(conversation, text, said, category)
        rewritten = jobs.revise(asking, flawed, where.timeout_seconds)
    return _show(
        rewritten, as_json, "rewrite_page", rewritten.critique, rewritten.revision, rewritten.abstention_reason
    )


@app.command(
    epilog="Examples: rlaif judge audit --constitution my.yaml --probe pairs.jsonl --written\n\n"
    "Without a model: rlaif constitution audit my.yaml"
)
def audit(
    *,
    probe: Annotated[
        Path | None,
        typer.Option(
            "--probe",
            metavar="FILE",
            help="Up to 256 pairs as JSON lines, as for compare: shows conflicts and principles that decide nothing.",
        ),
    ] = None,
    written: Annotated[
        bool, typer.Option("--written", help="Also in the judge model's own words, where it can.")
    ] = False,
    constitution: ConstitutionOption = "",
    principle: PrincipleOption = None,
    address: AddressOption = "",
    state: StateOption = DEFAULT_STATE,
    tls_ca: TlsOption = None,
    token_file: TokenOption = None,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> int:
    """Audit a constitution with the judge that would apply it."""
    from rlaif.cli import judge_jobs as jobs
    from rlaif.cli.judge_connection import Where, audited, connect, explained

    pairs = [line.item for line in jobs.read_lines(probe, jobs.COMPARE, option="--probe")] if probe else []
    how = _how(constitution, principle, None)
    where = Where(address, state, tls_ca, token_file, timeout or BATCH_SECONDS)
    with connect(where) as connection, explained("audit constitutions"):
        rules = how.rules(connection)
        found, unwritten = audited(connection.client, rules, pairs, written=written)
    if unwritten:
        typer.echo(f"no written audit: {unwritten}", err=True)
    return _show(found, as_json, "audit_page", rules if isinstance(rules, str) else rules.name, found)


def _texts(prompt: str | None, responses: dict[str, str | None], *, out: Path | None) -> tuple[Any, tuple[str, ...]]:
    """Conversation and responses off the command line; InvalidInputError names what is missing."""
    from rlaif.cli.judge_texts import read_argument, read_conversation
    from rlaif.core.errors import InvalidInputError

    if out is not None:
        raise InvalidInputError("--out: is for the results of --in FILE", field="--out")
    for name, value in {"PROMPT": prompt, **responses}.items():
        if value is None:
            raise InvalidInputError(
                f"{name} is missing; give PROMPT {' '.join(responses)}, or --in FILE with --out FILE", field=name
            )
    given = [value for value in (prompt, *responses.values()) if value is not None]
    if given.count("-") > 1:
        raise InvalidInputError("standard input (-) can be read only once", field="PROMPT")
    conversation = read_conversation(given[0], name="PROMPT")
    return conversation, tuple(map(lambda name, value: read_argument(value, name=name), responses, given[1:]))


def _run_job(kind: JobKind[Any, Any], where: Where, how: _How, files: _Files, arguments: tuple[str | None, ...]) -> int:
    """Judge a file of lines; 0 when every line has a result, 1 when some failed."""
    from rlaif.cli.exits import DONE, FAILED
    from rlaif.cli.judge_connection import connect, digest_of
    from rlaif.cli.judge_jobs import Asking, read_lines, request_digest, results_file, write_results
    from rlaif.core.errors import InvalidInputError

    if any(argument is not None for argument in arguments):
        raise InvalidInputError("give arguments or --in FILE, not both", field="--in")
    if files.category:
        raise InvalidInputError('--category: with --in, each line says its own "category"', field="--category")
    if files.lines is None or files.results is None:
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
                counts = _follow(write_results(kind, asking, left, digests, results), len(left), kind.key)
            except KeyboardInterrupt:
                typer.echo(f"interrupted: the same command continues {files.results}", err=True)
                raise
    from rlaif.cli.judge_display import counted

    before = f", {len(done)} were there before" if done else ""
    typer.echo(f"{len(left)} lines asked: {counted(counts)}{before}; results in {files.results}", err=True)
    if not counts["failed"]:
        return DONE
    typer.echo("The same command asks again for the lines that failed.", err=True)
    return FAILED


def _follow(counted_so_far: Any, total: int, title: str) -> Any:
    """The last counts, after showing their growth."""
    from collections import Counter

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    counts: Counter[str] = Counter()
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        for counts in counted_so_far:  # noqa: B007 - the last one is the answer
            progress.advance(task)
    return counts


def _show(result: Any, as_json: bool, page: str, *parts: Any) -> int:
    """Print an answer for people or machines; an answer that is an abstention is an answer."""
    from dataclasses import asdict

    if as_json:
        typer.echo(json.dumps(asdict(result), ensure_ascii=False, indent=2, default=_plain))
        return 0
    from rich.console import Console

    from rlaif.cli import judge_display

    shown: RenderableType = getattr(judge_display, page)(*parts)
    Console().print(shown)
    return 0


def _plain(value: Any) -> Any:
    from enum import Enum

    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"{value!r} has no JSON form")
