"""Texts and conversations off the wire, checked; what is wrong is named by field and limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlaif.core.conversation import Conversation, Message, Role, check_conversation
from rlaif.core.errors import InvalidInputError
from rlaif.v1 import conversation_pb2

_ROLES: dict[int, Role] = {
    conversation_pb2.ROLE_SYSTEM: "system",
    conversation_pb2.ROLE_USER: "user",
    conversation_pb2.ROLE_ASSISTANT: "assistant",
}


@dataclass(frozen=True)
class TextLimits:
    """How much one conversation may hold."""

    max_text_bytes: int
    max_turns: int


def read_conversation(messages: Sequence[conversation_pb2.Message], *, field: str, limits: TextLimits) -> Conversation:
    """A conversation that can be answered: the last turn is the user's."""
    if len(messages) > limits.max_turns:
        raise InvalidInputError(
            f"{len(messages)} turns are more than the limit of {limits.max_turns}",
            field=field,
            reason="TOO_MANY_TURNS",
        )
    turns = []
    for index, message in enumerate(messages):
        role = _ROLES.get(message.role)
        if role is None:
            raise InvalidInputError("role is not set or unknown", field=f"{field}[{index}].role")
        check_size(message.content, field=f"{field}[{index}].content", limits=limits)
        turns.append(Message(role=role, content=message.content))
    return check_conversation(turns, field=field)


def check_size(text: str, *, field: str, limits: TextLimits) -> None:
    """InvalidInputError when the text is longer than the limit."""
    size_bytes = len(text.encode())
    if size_bytes > limits.max_text_bytes:
        raise InvalidInputError(
            f"{size_bytes} bytes are more than the limit of {limits.max_text_bytes}",
            field=field,
            reason="TEXT_TOO_LARGE",
        )
