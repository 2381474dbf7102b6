"""`rlaif judge`: compare, rank, score, criticise, rewrite and audit, one at a time or by the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlaif.cli.json_values import json_value
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


app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Ask a judge. Without --address it is the one that `rlaif up` runs; where none runs, the playground's is "
    "started for the call. A text may be given as it is, as @FILE, or as - for standard input.",
)


_RANKABLE = range(2, 17)


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
    from rlaif.cli.judge_batch import Files, run_batch
    from rlaif.cli.judge_connection import Where, connect
    from rlaif.cli.judge_rules import How

    how = How.of(constitution, principle, only, seed, reasoning=reasoning)
    if in_ is not None:
        where = Where(address, state, tls_ca, token_file, timeout or BATCH_SECONDS)
        return run_batch(
            jobs.COMPARE, where, how, Files(in_, out, batch, concurrency, category), (prompt, first, second)
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
    from rlaif.cli.judge_batch import Files, run_batch
    from rlaif.cli.judge_connection import Where, connect
    from rlaif.cli.judge_rules import How
    from rlaif.core.errors import InvalidInputError

    how = How.of(constitution, principle, only, seed, reasoning=reasoning)
    if in_ is not None:
        where = Where(address, state, tls_ca, token_file, timeout or BATCH_SECONDS)
        return run_batch(jobs.RANK, where, how, Files(in_, out, 1, concurrency, category), (prompt, *(responses or ())))
    given: dict[str, str | None] = {f"RESPONSE {number}": text for number, text in enumerate(responses or (), start=1)}
    conversation, texts = _texts(prompt, given or {"RESPONSE": None}, out=out)
    if len(texts) not in _RANKABLE:
        raise InvalidInputError(f"RESPONSE…: {len(texts)} cannot be ranked; give 2 to 16", field="RESPONSE")
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
    from rlaif.cli.judge_batch import Files, run_batch
    from rlaif.cli.judge_connection import Where, connect
    from rlaif.cli.judge_rules import How

    how = How.of(constitution, principle, only, seed)
    if in_ is not None:
        where = Where(address, state, tls_ca, token_file, timeout or BATCH_SECONDS)
        return run_batch(jobs.SCORE, where, how, Files(in_, out, batch, concurrency, category), (prompt, response))
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
    from rlaif.cli.judge_batch import Files, run_batch
    from rlaif.cli.judge_connection import Where, connect, explained
    from rlaif.cli.judge_rules import How

    how = How.of(constitution, principle, only, seed)
    if in_ is not None:
        where = Where(address, state, tls_ca, token_file, timeout or BATCH_SECONDS)
        return run_batch(jobs.CRITIQUE, where, how, Files(in_, out, 1, concurrency, category), (prompt, response))
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
    from rlaif.cli.judge_batch import Files, run_batch
    from rlaif.cli.judge_connection import Where, connect, explained
    from rlaif.cli.judge_rules import How
    from rlaif.cli.judge_texts import read_argument
    from rlaif.core.errors import InvalidInputError

    how = How.of(constitution, principle, only, seed)
    if in_ is not None:
        if critique is not None:
            raise InvalidInputError('--critique: with --in, each line says its own "critique"', field="--critique")
        where = Where(address, state, tls_ca, token_file, timeout or BATCH_SECONDS)
        return run_batch(jobs.REVISE, where, how, Files(in_, out, 1, concurrency, category), (prompt, response))
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
    from rlaif.cli.judge_rules import How

    pairs = [line.item for line in jobs.read_lines(probe, jobs.COMPARE, option="--probe")] if probe else []
    how = How.of(constitution, principle, None)
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


def _show(result: Any, as_json: bool, page: str, *parts: Any) -> int:
    """Print an answer for people or machines; an answer that is an abstention is an answer."""
    from dataclasses import asdict

    if as_json:
        typer.echo(json.dumps(asdict(result), ensure_ascii=False, indent=2, default=json_value))
        return 0
    from rich.console import Console

    from rlaif.cli import judge_display

    shown: RenderableType = getattr(judge_display, page)(*parts)
    Console().print(shown)
    return 0
