"""Conversations: the turns a response answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from rlaif.core.errors import InvalidInputError

Role = Literal["system", "user", "assistant"]
_LANGUAGE = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,7}")
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class Message:
    """One turn."""

    role: Role
    content: str


Conversation = tuple[Message, ...]


def parse_conversation(turns: Sequence[Mapping[str, Any]], *, field: str = "messages") -> Conversation:
    """Turns as JSON objects `{"role": …, "content": …}` into a checked conversation."""
    return check_conversation(parse_turns(turns, field=field), field=field)


def parse_turns(turns: Sequence[Mapping[str, Any]], *, field: str = "messages") -> Conversation:
    """Turns as JSON objects, each checked by itself, not whether they follow each other rightly."""
    messages = []
    for index, turn in enumerate(turns):
        role, content = turn.get("role"), turn.get("content")
        if role not in ROLES:
            raise InvalidInputError(f"role {role!r} is not one of {', '.join(ROLES)}", field=f"{field}[{index}].role")
        if not isinstance(content, str):
            raise InvalidInputError("content must be text", field=f"{field}[{index}].content")
        messages.append(Message(role=cast(Role, role), content=content))
    return tuple(messages)


def check_conversation(messages: Sequence[Message], *, field: str = "messages") -> Conversation:
    """The conversation if it can be answered: optional system turn, then user and assistant in turn, user last."""
    if not messages:
        raise InvalidInputError("a conversation needs at least one user turn", field=field)
    turns = list(messages)
    offset = 1 if turns[0].role == "system" else 0
    for index, message in enumerate(turns[offset:]):
        expected: Role = "user" if index % 2 == 0 else "assistant"
        if message.role != expected:
            raise InvalidInputError(
                f"turn {index + offset} is the {message.role}'s where the {expected}'s is due",
                field=f"{field}[{index + offset}].role",
            )
    if turns[-1].role != "user":
        raise InvalidInputError("the last turn must be the user's", field=f"{field}[{len(turns) - 1}].role")
    for index, message in enumerate(turns):
        if not message.content.strip():
            raise InvalidInputError("content is empty", field=f"{field}[{index}].content")
    return tuple(turns)


def check_language(tag: str, *, field: str) -> str:
    """The tag, if it is empty or of the form of BCP 47, for example "en" or "pt-BR"."""
    if tag and not _LANGUAGE.fullmatch(tag):
        raise InvalidInputError(f"{tag[:32]!r} is no BCP 47 tag such as en or pt-BR", field=field)
    return tag


def to_json(conversation: Sequence[Message]) -> list[dict[str, str]]:
    """The turns as JSON objects."""
    return [{"role": message.role, "content": message.content} for message in conversation]
