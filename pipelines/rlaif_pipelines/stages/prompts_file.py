"""Prompts from a JSONL file: checked line by line, deduplicated, split.

A line holds `{"prompt": "…"}` or `{"messages": [{"role": …, "content": …}, …]}`, and may hold `prompt_id`, `category`
and `split`.
A prompt in the form of HH-RLHF ("\\n\\nHuman: … \\n\\nAssistant: … \\n\\nHuman: …") is read as its turns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from rlaif.core.canonical import digest
from rlaif.core.conversation import Conversation, Message, check_conversation, parse_conversation, to_json
from rlaif.core.errors import InvalidInputError

Split = Literal["train", "held_out"]
SPLITS: Final[tuple[Split, ...]] = ("train", "held_out")

_KEYS: Final = {"prompt", "messages", "prompt_id", "category", "split"}
_HH_TURN: Final = re.compile(r"\n\n(Human|Assistant):")


@dataclass(frozen=True)
class PromptRow:
    """One prompt; `category` None where none is given."""

    prompt_id: str
    messages: Conversation
    category: str | None
    split: Split

    def to_row(self) -> dict[str, Any]:
        """The prompt as a row of prompts.jsonl."""
        return {
            "prompt_id": self.prompt_id,
            "messages": to_json(self.messages),
            "category": self.category,
            "split": self.split,
        }


@dataclass(frozen=True)
class PromptSet:
    """Prompts of a file, and how many lines repeated an earlier one."""

    prompts: tuple[PromptRow, ...]
    num_duplicates: int

    def of(self, split: Split) -> tuple[PromptRow, ...]:
        """The prompts of one split, in file order."""
        return tuple(prompt for prompt in self.prompts if prompt.split == split)


def read_prompts(path: Path, *, held_out_share: float = 0.2) -> PromptSet:
    """The prompts of a file; InvalidInputError in one sentence, with the line's number, for what is wrong."""
    prompts: dict[str, PromptRow] = {}
    ids: dict[str, int] = {}
    num_duplicates = 0
    for number, line in _lines(path):
        prompt = _parse(line, where=f"{path}, line {number}", held_out_share=held_out_share)
        key = digest(to_json(prompt.messages))
        if key in prompts:
            num_duplicates += 1
            continue
        if prompt.prompt_id in ids:
            raise InvalidInputError(
                f"{path}, line {number}: prompt_id {prompt.prompt_id!r} is that of line {ids[prompt.prompt_id]} too",
                field="prompt_id",
            )
        ids[prompt.prompt_id] = number
        prompts[key] = prompt
    found = PromptSet(tuple(prompts.values()), num_duplicates)
    if not found.prompts:
        raise InvalidInputError(f"prompts file {path} is empty", field="prompts")
    for split in SPLITS:
        if not found.of(split):
            raise InvalidInputError(
                f"prompts file {path} leaves no {split} prompts among its {len(found.prompts)}: add prompts, or set "
                '"split" on its rows',
                field="prompts",
            )
    return found


def parse_hh(text: str) -> tuple[Message, ...]:
    """Turns of a dialogue written as HH-RLHF does; a text without its marks is one user turn."""
    marks = list(_HH_TURN.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        return (Message("user", text.strip()),)
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    turns = tuple(
        Message("user" if mark.group(1) == "Human" else "assistant", text[mark.end() : end].strip())
        for mark, end in zip(marks, ends, strict=True)
    )
    # The form's own prompts end with an empty "Assistant:", the turn that is asked for.
    return turns[:-1] if turns[-1] == Message("assistant", "") else turns


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    if path.is_dir():
        raise InvalidInputError(f"prompts file {path} is a folder", field="prompts")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InvalidInputError(f"prompts file {path} does not exist", field="prompts") from None
    except OSError as error:
        raise InvalidInputError(f"prompts file {path} cannot be read: {error.strerror}", field="prompts") from error
    for number, raw in enumerate(data.split(b"\n"), start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise InvalidInputError(
                f"{path}, line {number}: not UTF-8 (byte {error.start + 1} of the line)", field="prompts"
            ) from None
        if line:
            yield number, line


def _parse(line: str, *, where: str, held_out_share: float) -> PromptRow:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidInputError(f"{where}: not JSON: {error.msg} at column {error.colno}", field="prompts") from None
    if not isinstance(row, dict):
        raise InvalidInputError(f"{where}: must be a JSON object, not {_kind(row)}", field="prompts")
    unknown = sorted(row.keys() - _KEYS)
    if unknown:
        raise InvalidInputError(
            f"{where}: unknown field {unknown[0]!r}; known are {', '.join(sorted(_KEYS))}", field=unknown[0]
        )
    try:
        messages = _messages(row)
    except InvalidInputError as error:
        raise InvalidInputError(f"{where}: {error.field}: {error.message}", field=error.field) from None
    sha256 = digest(to_json(messages))
    category = _text(row, "category", where=where)
    prompt_id = _text(row, "prompt_id", where=where) or sha256[:16]
    split = _text(row, "split", where=where)
    if split not in (None, *SPLITS):
        raise InvalidInputError(f"{where}: split: must be train or held_out, not {split!r}", field="split")
    chosen: Split = (
        "held_out" if split == "held_out" or (split is None and _share(sha256) < held_out_share) else "train"
    )
    return PromptRow(prompt_id, messages, category, chosen)


def _messages(row: Mapping[str, Any]) -> Conversation:
    if ("prompt" in row) == ("messages" in row):
        raise InvalidInputError("a row needs either prompt or messages, and not both", field="prompt")
    if "prompt" in row:
        if not isinstance(row["prompt"], str):
            raise InvalidInputError(f"must be text, not {_kind(row['prompt'])}", field="prompt")
        return check_conversation(parse_hh(row["prompt"]), field="prompt")
    turns = row["messages"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise InvalidInputError('must be a list of {"role": …, "content": …} objects', field="messages")
    return parse_conversation(turns)


def _text(row: Mapping[str, Any], name: str, *, where: str) -> str | None:
    value = row.get(name)
    if value is not None and (not isinstance(value, str) or not value):
        raise InvalidInputError(f"{where}: {name}: must be text, not {_kind(value)}", field=name)
    return value


def _share(sha256: str) -> float:
    return int(sha256[:8], 16) / 2**32


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "empty text", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")
