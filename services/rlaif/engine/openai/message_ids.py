"""Conversations as opaque ids, for servers whose tokenizer is not at hand.

An id is a role or up to 16 bytes of a content, so what people or models wrote can never become a turn. The ids are read
back exactly. They are fewer than the prompt's tokens will be, so their number refuses nothing that might fit: the
server, which alone can count, has the last word.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlaif.core.conversation import ROLES, Message, Role
from rlaif.engine.protocol import TokenIds

_CHUNK_BYTES = 16
# Roles are 0, 1, 2; a chunk begins with a byte of its own, so that every chunk is larger and keeps its zeros.
_CHUNK_MARK = b"\x01"


def encode_messages(messages: Sequence[Message]) -> TokenIds:
    """Ids of a conversation."""
    return tuple(each for message in messages for each in (ROLES.index(message.role), *encode_content(message.content)))


def encode_content(text: str) -> TokenIds:
    """Ids of a part of a content; parts join to the content of the turn before them."""
    data = text.encode()
    return tuple(
        int.from_bytes(_CHUNK_MARK + data[start : start + _CHUNK_BYTES], "big")
        for start in range(0, len(data), _CHUNK_BYTES)
    )


def decode_messages(ids: Sequence[int]) -> tuple[Message, ...]:
    """The conversation that these ids are of."""
    turns: list[tuple[Role, list[int]]] = []
    for each in ids:
        if each < len(ROLES):
            turns.append((ROLES[each], []))
        else:
            turns[-1][1].append(each)
    return tuple(Message(role, decode_content(content)) for role, content in turns)


def decode_content(ids: Sequence[int]) -> str:
    """The text that these ids are of."""
    return b"".join(each.to_bytes((each.bit_length() + 7) // 8, "big")[1:] for each in ids).decode()
