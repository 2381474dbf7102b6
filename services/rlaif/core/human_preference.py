"""People's preferences from the forms that data sets have them in: ours, TRL's, and Anthropic's HH-RLHF."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlaif.core.conversation import Conversation, Message, Role, check_conversation, check_language, parse_conversation
from rlaif.core.errors import InvalidInputError
from rlaif.core.preference import Preference

_TURN = re.compile(r"\n\n(Human|Assistant):")
_SPEAKERS: Mapping[str, Role] = {"Human": "user", "Assistant": "assistant"}
_LABELS = ("annotator", "category", "language", "constitution")


@dataclass(frozen=True)
class HumanPreference:
    """What a person said of two responses to one conversation."""

    conversation: Conversation
    first: str
    second: str
    preference: Preference
    annotator: str = ""
    category: str = ""
    language: str = ""
    constitution: str = ""
    """Resource name of the constitution the person judged by; empty for none."""


def parse_preference(row: Mapping[str, Any]) -> HumanPreference:
    """A row of one of these forms; InvalidInputError names the field that is wrong.

    * ours: `messages` or `prompt`, `first`, `second`, `preference` ("first", "second", "tie" or "abstain");
    * TRL's: `prompt`, `chosen`, `rejected`, texts or messages; without `prompt`, both lists begin with it;
    * HH-RLHF's: `chosen`, `rejected`, two transcripts "\\n\\nHuman: …\\n\\nAssistant: …" that differ in the last turn.

    `annotator`, `category`, `language` and `constitution` may stand in any of them.
    """
    if "chosen" in row or "rejected" in row:
        conversation, first, second = _chosen_and_rejected(row)
        preference = Preference.FIRST
    else:
        conversation = _prompt(row)
        first, second = _text(row, "first"), _text(row, "second")
        preference = _preference(row.get("preference"))
    if first == second:
        raise InvalidInputError("both responses are the same text", field="second")
    said = {key: _label(row, key) for key in _LABELS}
    check_language(said["language"], field="language")
    return HumanPreference(conversation, first, second, preference, **said)


def _chosen_and_rejected(row: Mapping[str, Any]) -> tuple[Conversation, str, str]:
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if row.get("prompt") is not None:
            return _prompt(row), chosen.strip(), rejected.strip()
        return _shared(_transcript(chosen, field="chosen"), _transcript(rejected, field="rejected"))
    if isinstance(chosen, list) and isinstance(rejected, list):
        if row.get("prompt") is not None:
            return _prompt(row), _answer(chosen, field="chosen"), _answer(rejected, field="rejected")
        return _shared(_turns(chosen, field="chosen"), _turns(rejected, field="rejected"))
    raise InvalidInputError("chosen and rejected must both be texts or both be lists of messages", field="chosen")


def _shared(chosen: list[Message], rejected: list[Message]) -> tuple[Conversation, str, str]:
    if chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        raise InvalidInputError("the last turn must be the assistant's", field="chosen")
    if chosen[:-1] != rejected[:-1]:
        raise InvalidInputError("chosen and rejected answer different conversations", field="rejected")
    return check_conversation(chosen[:-1], field="chosen"), chosen[-1].content, rejected[-1].content


def _prompt(row: Mapping[str, Any]) -> Conversation:
    value = row.get("messages", row.get("prompt"))
    field = "messages" if "messages" in row else "prompt"
    if isinstance(value, list):
        return parse_conversation([_mapping(turn, field=field) for turn in value], field=field)
    if not isinstance(value, str) or not value.strip():
        raise InvalidInputError("must be a text or a list of messages", field=field)
    if not value.startswith("\n\nHuman:"):
        return (Message("user", value),)
    turns = _transcript(value, field=field)
    # Data sets end the prompt where the answer begins.
    return check_conversation(turns[:-1] if turns[-1] == Message("assistant", "") else turns, field=field)


def _transcript(text: str, *, field: str) -> list[Message]:
    before, *parts = _TURN.split(text)
    if before.strip() or not parts:
        raise InvalidInputError('must be a transcript that begins with "\\n\\nHuman:"', field=field)
    speakers, texts = parts[::2], parts[1::2]
    return [Message(_SPEAKERS[who], said.strip()) for who, said in zip(speakers, texts, strict=True)]


def _turns(turns: list[Any], *, field: str) -> list[Message]:
    messages = []
    for index, turn in enumerate(turns):
        said = _mapping(turn, field=field)
        role, content = said.get("role"), said.get("content")
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            raise InvalidInputError("must be a message of a role and a text", field=f"{field}[{index}]")
        messages.append(Message(role, content))
    if not messages:
        raise InvalidInputError("must hold at least one message", field=field)
    return messages


def _answer(turns: list[Any], *, field: str) -> str:
    messages = _turns(turns, field=field)
    if len(messages) != 1 or messages[0].role != "assistant":
        raise InvalidInputError("must be one message of the assistant when there is a prompt", field=field)
    return messages[0].content


def _mapping(value: Any, *, field: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidInputError('must be a list of {"role": …, "content": …}', field=field)
    return value


def _preference(value: Any) -> Preference:
    try:
        return Preference(value)
    except ValueError as error:
        names = ", ".join(each.value for each in Preference)
        raise InvalidInputError(f"must be one of {names}, not {value!r}", field="preference") from error


def _text(row: Mapping[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise InvalidInputError(f"must be a text, not {value!r}", field=field)
    return value


def _label(row: Mapping[str, Any], field: str) -> str:
    return _text(row, field) if row.get(field) is not None else ""
