"""Files of `rlaif labels`: people's preferences in, training rows out."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from rlaif.cli.inputs import read_text_file
from rlaif.client.preference_labels import NotExported, PairTexts, preference_row, texts_id
from rlaif.core.canonical import canonical_json
from rlaif.core.errors import InvalidInputError, PreconditionError
from rlaif.core.human_preference import HumanPreference, parse_preference
from rlaif.v1 import ledger_service_pb2 as pb

FileFormat = Literal["jsonl", "parquet"]
_ROWS_AT_ONCE = 1000


def read_preferences(
    path: Path, *, defaults: Mapping[str, str], skip_invalid: bool
) -> tuple[list[HumanPreference], list[InvalidInputError]]:
    """Preferences of a file of JSON lines, plain or .gz, and the lines that were skipped.

    `defaults` fill in what rows do not say: annotator, category, language, constitution. Unless `skip_invalid`,
    the first wrong line is an error and nothing is read.
    """
    preferences: list[HumanPreference] = []
    wrong: list[InvalidInputError] = []
    for number, row in _rows(path):
        try:
            given = _object(row)
            missing = {key: value for key, value in defaults.items() if value and not given.get(key)}
            preferences.append(parse_preference({**given, **missing}))
        except InvalidInputError as error:
            told = InvalidInputError(f"{path}:{number}: {error.field}: {error.message}", field=error.field)
            if not skip_invalid:
                raise told from error
            wrong.append(told)
    return preferences, wrong


def read_texts(path: Path) -> dict[str, PairTexts]:
    """Texts of pairs by their identity, from rows of `messages` or `prompt`, `first` and `second`.

    A run's labels.jsonl is such a file, and so is what `rlaif judge compare --in` reads.
    """
    found: dict[str, PairTexts] = {}
    for number, row in _rows(path):
        try:
            messages = row["messages"] if "messages" in row else [{"role": "user", "content": row["prompt"]}]
            texts = (messages, row["first"], row["second"])
            found[texts_id(texts)] = texts
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidInputError(
                f"{path}:{number}: must have messages or prompt, first and second", field="--texts"
            ) from error
    return found


def write_rows(
    path: Path, labels: Iterable[pb.Label], *, texts: Mapping[str, PairTexts], file_format: FileFormat
) -> tuple[int, Counter[str]]:
    """Writes the labels that can be trained on; gives their number, and how many others there were, by reason.

    The file is whole or absent. PreconditionError when there are labels, but the texts of none are known.
    """
    left_out: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        for label in labels:
            row = preference_row(label, texts=texts)
            if isinstance(row, NotExported):
                left_out[row.reason] += 1
            else:
                yield row

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        num_rows = (_write_parquet if file_format == "parquet" else _write_jsonl)(partial, rows())
        if not num_rows and left_out["no_texts"]:
            raise PreconditionError(
                f"the ledger kept only digests of all {left_out['no_texts']} labels, and --texts names no file that "
                "has them",
                reason="NO_TEXTS",
            )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return num_rows, left_out


def _write_jsonl(path: Path, rows: Iterator[dict[str, Any]]) -> int:
    num_rows = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            num_rows += 1
    return num_rows


def _write_parquet(path: Path, rows: Iterator[dict[str, Any]]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    texts = ("source", "annotator", "judge", "constitution", "category", "language", "label")
    schema = pa.schema(
        [(name, messages) for name in ("prompt", "chosen", "rejected")]
        + [("probability_chosen", pa.float64()), ("order_consistent", pa.bool_())]
        + [(name, pa.string()) for name in texts]
    )
    num_rows = 0
    batch: list[dict[str, Any]] = []
    with pq.ParquetWriter(path, schema) as writer:
        for row in rows:
            batch.append(row)
            num_rows += 1
            if len(batch) == _ROWS_AT_ONCE:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                batch.clear()
        writer.write_table(pa.Table.from_pylist(batch, schema=schema))
    return num_rows


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise InvalidInputError(f"{path}:{number}: not valid JSON: {error.msg}", field="file") from error


def _lines(path: Path) -> Iterable[str]:
    if path.suffix != ".gz":
        # splitlines() would also break at separators that JSON texts may hold.
        return read_text_file(path, "file").split("\n")
    import gzip

    try:
        return gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path}: cannot be read as gzipped UTF-8 text: {error}", field="file") from error


def _object(row: Any) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise InvalidInputError("must be a JSON object", field="row")
    try:
        canonical_json(row)
    except UnicodeEncodeError as error:
        raise InvalidInputError("holds half a character (a lone surrogate)", field="row") from error
    except ValueError as error:
        raise InvalidInputError("holds NaN or an infinite number", field="row") from error
    return row
