"""Many calls of the judge from a file of JSON lines into another, which a later run continues."""

from __future__ import annotations

import fcntl
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final, Generic, TypeVar

from rlaif.cli.inputs import read_text_file, writing
from rlaif.cli.json_values import json_value
from rlaif.cli.judge_texts import row_conversation, row_text, row_texts
from rlaif.client.bulk import Bulk, run_bulk
from rlaif.client.judge import (
    Critique,
    JudgeClient,
    JudgeOptions,
    Ranking,
    ResponsePair,
    ResponseToScore,
    Revision,
    Rules,
    Score,
    Verdict,
)
from rlaif.core.canonical import canonical_json, digest
from rlaif.core.conversation import Conversation
from rlaif.core.errors import InvalidInputError, RlaifError
from rlaif.runtime.artifacts import atomic_write_text

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Asking:
    """What all calls of a job share."""

    client: JudgeClient
    rules: Rules
    options: JudgeOptions
    batch_size: int
    concurrency: int
    timeout_seconds: float

    def one_by_one(
        self, items: Iterable[_Item], call: Callable[[_Item, float], _Result]
    ) -> Iterator[_Result | RlaifError]:
        """Results of a call that takes one item, in order."""
        bulk = Bulk(1, self.concurrency, self.timeout_seconds, errors="return")
        for batch in run_bulk(items, lambda batch, seconds: [call(batch[0], seconds)], bulk):
            yield from batch


@dataclass(frozen=True)
class Ranked:
    """Responses to rank."""

    conversation: Conversation
    responses: tuple[str, ...]
    category: str


@dataclass(frozen=True)
class Flawed:
    """A response to rewrite; an empty critique is asked for first."""

    conversation: Conversation
    response: str
    critique: str
    category: str


@dataclass(frozen=True)
class JobKind(Generic[_Item, _Result]):
    """How one verb reads a line, asks, names its result and counts it."""

    key: str
    read: Callable[[Mapping[str, Any], str], _Item]
    ask: Callable[[Asking, Iterable[_Item]], Iterator[_Result | RlaifError]]
    outcome: Callable[[_Result], str]


def _category(row: Mapping[str, Any], place: str) -> str:
    return _optional(row, "category", place)


def _optional(row: Mapping[str, Any], key: str, place: str) -> str:
    return row_text({key: row.get(key) or ""}, key, place=place)


def _read_pair(row: Mapping[str, Any], place: str) -> ResponsePair:
    return ResponsePair(
        row_conversation(row, place=place),
        row_text(row, "first", place=place),
        row_text(row, "second", place=place),
        _category(row, place),
        _optional(row, "language", place),
    )


def _read_response(row: Mapping[str, Any], place: str) -> ResponseToScore:
    return ResponseToScore(
        row_conversation(row, place=place), row_text(row, "response", place=place), _category(row, place)
    )


def _read_ranked(row: Mapping[str, Any], place: str) -> Ranked:
    return Ranked(row_conversation(row, place=place), row_texts(row, "responses", place=place), _category(row, place))


def _read_flawed(row: Mapping[str, Any], place: str) -> Flawed:
    return Flawed(
        row_conversation(row, place=place),
        row_text(row, "response", place=place),
        row_text(row, "critique", place=place, default=""),
        _category(row, place),
    )


def _compare(asking: Asking, pairs: Iterable[ResponsePair]) -> Iterator[Verdict | RlaifError]:
    return asking.client.compare_each(
        asking.rules,
        pairs,
        options=asking.options,
        batch_size=asking.batch_size,
        concurrency=asking.concurrency,
        timeout_seconds=asking.timeout_seconds,
    )


def _score(asking: Asking, responses: Iterable[ResponseToScore]) -> Iterator[Score | RlaifError]:
    return asking.client.score_each(
        asking.rules,
        responses,
        options=asking.options,
        batch_size=asking.batch_size,
        concurrency=asking.concurrency,
        timeout_seconds=asking.timeout_seconds,
    )


def _rank(asking: Asking, items: Iterable[Ranked]) -> Iterator[Ranking | RlaifError]:
    def call(item: Ranked, seconds: float) -> Ranking:
        return asking.client.rank(
            asking.rules,
            item.conversation,
            responses=item.responses,
            category=item.category,
            options=asking.options,
            timeout_seconds=seconds,
        )

    return asking.one_by_one(items, call)


def _critique(asking: Asking, items: Iterable[ResponseToScore]) -> Iterator[Critique | RlaifError]:
    def call(item: ResponseToScore, seconds: float) -> Critique:
        return asking.client.critique(
            asking.rules,
            item.conversation,
            response=item.response,
            category=item.category,
            options=asking.options,
            timeout_seconds=seconds,
        )

    return asking.one_by_one(items, call)


@dataclass(frozen=True)
class Rewritten:
    """A rewrite and the critique that it answers; no revision when there was no critique."""

    critique: str
    revision: Revision | None
    abstention_reason: str | None


def revise(asking: Asking, item: Flawed, seconds: float) -> Rewritten:
    """The rewrite that answers a critique; without one the judge is asked for it first."""
    critique, principle_ids = item.critique, asking.options.principle_ids
    if not critique:
        asked = asking.client.critique(
            asking.rules,
            item.conversation,
            response=item.response,
            category=item.category,
            options=asking.options,
            timeout_seconds=seconds,
        )
        if asked.abstention_reason:
            return Rewritten("", None, asked.abstention_reason)
        critique, principle_ids = asked.text, asked.principle_ids
    revision = asking.client.revise(
        asking.rules,
        item.conversation,
        response=item.response,
        critique=critique,
        principle_ids=principle_ids,
        seed=asking.options.seed,
        category=item.category,
        timeout_seconds=seconds,
    )
    return Rewritten(critique, revision, revision.abstention_reason)


def _revise(asking: Asking, items: Iterable[Flawed]) -> Iterator[Rewritten | RlaifError]:
    return asking.one_by_one(items, lambda item, seconds: revise(asking, item, seconds))


def _written(result: Critique | Ranking | Score) -> str:
    return "abstained" if result.abstention_reason else "answered"


def _rewritten(result: Rewritten) -> str:
    if result.revision is None or result.abstention_reason:
        return "abstained"
    return "unchanged" if result.revision.unchanged else "rewritten"


COMPARE: Final = JobKind("verdict", _read_pair, _compare, lambda verdict: verdict.preference)
SCORE: Final = JobKind("score", _read_response, _score, _written)
RANK: Final = JobKind("ranking", _read_ranked, _rank, _written)
CRITIQUE: Final = JobKind("critique", _read_response, _critique, _written)
REVISE: Final = JobKind("rewrite", _read_flawed, _revise, _rewritten)


@dataclass(frozen=True)
class Line(Generic[_Item]):
    """One line of the input, from 1."""

    number: int
    row: Mapping[str, Any]
    item: _Item


def read_lines(path: Path, kind: JobKind[_Item, _Result], *, option: str = "--in") -> list[Line[_Item]]:
    """All lines of a job, checked; InvalidInputError names file, line and key. Empty lines do not count."""
    lines = []
    for number, text in enumerate(read_text_file(path, option=option).split("\n"), start=1):
        if not text.strip():
            continue
        place = f"{option} {path}:{number}"
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise InvalidInputError(f"{place}: not valid JSON: {error.msg}", field=option) from error
        if not isinstance(row, dict):
            raise InvalidInputError(f"{place}: must be a JSON object", field=option)
        _check_plain(row, place=place, option=option)
        lines.append(Line(number, row, kind.read(row, place)))
    return lines


def _check_plain(row: Mapping[str, Any], *, place: str, option: str) -> None:
    """Python reads more than JSON is: halves of characters, and numbers that are none."""
    try:
        canonical_json(row)
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"{place}: holds half a character (a lone surrogate)", field=option) from error
    except ValueError as error:
        raise InvalidInputError(f"{place}: holds NaN or an infinite number", field=option) from error


def request_digest(line: Line[Any], *, constitution_sha256: str, options: JudgeOptions, key: str) -> str:
    """SHA-256 of all that decides what is asked for a line."""
    return digest([key, dict(line.row), constitution_sha256, asdict(options)])


@contextmanager
def results_file(path: Path, digests: Mapping[int, str]) -> Iterator[tuple[set[int], IO[str]]]:
    """(lines that have a result, file to append to). Torn lines and errors are taken out, to be tried again.

    InvalidInputError when another process writes it, or when it holds results of another job.
    """
    with writing(path, "--out"):
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = _open_locked(path)
    with opened as present:
        present.seek(0)
        texts = present.readlines()
        kept = _keep_results(path, texts, digests)
        if len(kept) == len(texts):
            yield set(kept), present
            return
        atomic_write_text(path, "".join(kept.values()))
        with _open_locked(path) as results:
            yield set(kept), results


def _open_locked(path: Path) -> IO[str]:
    results = path.open("a+", encoding="utf-8", newline="\n")
    try:
        fcntl.flock(results, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        results.close()
        raise InvalidInputError(f"--out {path}: another process writes it now", field="--out") from None
    return results


def _keep_results(path: Path, texts: Sequence[str], digests: Mapping[int, str]) -> dict[int, str]:
    kept: dict[int, str] = {}
    for text in texts:
        if not text.endswith("\n"):
            continue  # cut off when an earlier run was killed
        try:
            row = json.loads(text)
            number, request_sha256 = row["line"], row["request_sha256"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise InvalidInputError(
                f"--out {path}: holds something else than results; give another file", field="--out"
            ) from None
        if digests.get(number) != request_sha256:
            raise InvalidInputError(
                f"--out {path}: its line {number} answers another input, constitution or option; give another file",
                field="--out",
            )
        if "error" not in row:
            kept[number] = text
    return kept


def write_results(
    kind: JobKind[_Item, _Result],
    asking: Asking,
    lines: Sequence[Line[_Item]],
    digests: Mapping[int, str],
    results: IO[str],
) -> Iterator[Counter[str]]:
    """Ask for each line and append its result; yields the outcomes counted so far after every line."""
    counts: Counter[str] = Counter()
    answers = kind.ask(asking, (line.item for line in lines))
    for line, answer in zip(lines, answers, strict=True):
        row: dict[str, Any] = {"line": line.number, "request_sha256": digests[line.number], "input": line.row}
        if isinstance(answer, RlaifError):
            row["error"] = {"reason": answer.reason, "message": answer.message, "field": answer.field}
            counts["failed"] += 1
        else:
            row[kind.key] = asdict(answer)  # type: ignore[call-overload]
            counts[kind.outcome(answer)] += 1
        results.write(json.dumps(row, ensure_ascii=False, default=json_value) + "\n")
        results.flush()
        yield counts
