"""What a user hands to the judge: arguments, files, standard input, and lines of JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlaif.cli.inputs import read_text_file
from rlaif.core.conversation import Conversation, Message, parse_conversation
from rlaif.core.errors import InvalidInputError


def read_argument(value: str, *, name: str) -> str:
    """The text of an argument: itself, the file after "@", or standard input for "-"; "@@" begins a text with "@".

    Of a file and of standard input the last line break is left out: it ends the line, it is none of the text.
    """
    if value == "-":
        return check_text(_less_last_break(sys.stdin.read()), name=name)
    if value.startswith("@@"):
        return check_text(value[1:], name=name)
    if value.startswith("@"):
        return _less_last_break(read_text_file(Path(value[1:]), option=name))
    return check_text(value, name=name)


def check_text(text: str, *, name: str) -> str:
    """The text; InvalidInputError when the bytes that it was read from were not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"{name}: is not UTF-8 text", field=name) from error
    return text


def _less_last_break(text: str) -> str:
    return text[:-1].removesuffix("\r") if text.endswith("\n") else text


def read_conversation(value: str, *, name: str) -> Conversation:
    """An argument as a conversation: one user turn, or the turns of a JSON file of messages."""
    text = read_argument(value, name=name)
    if not (value.startswith("@") and value.endswith(".json")):
        return (Message("user", text),)
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidInputError(
            f"{name} {value[1:]}:{error.lineno}: not valid JSON: {error.msg}", field=name
        ) from error
    turns = document.get("messages") if isinstance(document, dict) else document
    return _turns(turns, place=f"{name} {value[1:]}")


def row_conversation(row: Mapping[str, Any], *, place: str) -> Conversation:
    """The conversation of a JSON line: its "messages", or its "prompt" as one user turn."""
    if "messages" in row:
        return _turns(row["messages"], place=place)
    return (Message("user", row_text(row, "prompt", place=place)),)


def row_text(row: Mapping[str, Any], key: str, *, place: str, default: str | None = None) -> str:
    """A text of a JSON line; InvalidInputError names the line when it is missing or no text."""
    value = row.get(key, default)
    if not isinstance(value, str):
        raise InvalidInputError(f"{place}: {key} must be a text", field=key)
    return value


def row_texts(row: Mapping[str, Any], key: str, *, place: str) -> tuple[str, ...]:
    """A list of texts of a JSON line."""
    value = row.get(key)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise InvalidInputError(f"{place}: {key} must be a list of texts", field=key)
    return tuple(value)


def _turns(turns: Any, *, place: str) -> Conversation:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise InvalidInputError(f'{place}: messages must be a list of {{"role": …, "content": …}}', field="messages")
    try:
        return parse_conversation(turns)
    except InvalidInputError as error:
        raise InvalidInputError(f"{place}: {error.field}: {error.message}", field=error.field) from error
