"""Conversations to learn from: read, checked, and as token ids that say which tokens are learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, Literal

from rlaif.core.canonical import digest
from rlaif.core.conversation import Conversation, check_conversation, parse_turns, to_json
from rlaif.core.errors import InvalidInputError
from rlaif_pipelines.training.data import number_of, read_lines
from rlaif_pipelines.training.packing import Tree
from rlaif_pipelines.training.tokens import ChatEncoder

_KEYS: Final = ("messages", "prompt", "response", "weight", "prompt_id", "category")


@dataclass(frozen=True)
class SftConversation:
    """Turns up to the last of the assistant; every token of its replies counts `weight` times."""

    prompt_id: str
    turns: Conversation
    weight: float


@dataclass(frozen=True)
class Conversations:
    """Those that can be learnt from, and how many cannot."""

    found: tuple[SftConversation, ...]
    num_weightless: int
    num_without_reply: int
    num_empty: int


@dataclass(frozen=True)
class EncodedConversation:
    """Token ids of which those marked are learnt; the first never is."""

    prompt_id: str
    ids: tuple[int, ...]
    learnt: tuple[bool, ...]
    token_weight: float

    @property
    def tree(self) -> Tree:
        """The one sequence that it is."""
        return Tree((), (self.ids,), asked=(self.learnt,))

    @property
    def num_tokens(self) -> int:
        """Tokens, read or learnt."""
        return len(self.ids)

    @property
    def num_learnt(self) -> int:
        """Tokens that are learnt."""
        return sum(self.learnt)

    @property
    def weight(self) -> float:
        """Weight of all its learnt tokens."""
        return self.token_weight * self.num_learnt


def read_conversations(path: Path) -> Conversations:
    """The conversations of the file; those without a reply, with an empty one or a weight of 0 are counted, not kept.

    InvalidInputError names the line of anything that is no conversation.
    """
    found: list[SftConversation] = []
    num_weightless = num_without_reply = num_empty = 0
    for place, line in read_lines(path, field="conversations"):
        unknown = sorted(line.keys() - set(_KEYS))
        if unknown:
            raise InvalidInputError(
                f"{place}: unknown key {unknown[0]!r}; known are {', '.join(_KEYS)}", field=unknown[0]
            )
        weight, prompt_id = number_of(line.get("weight", 1.0)), line.get("prompt_id")
        if weight is None or not 0.0 <= weight < float("inf"):
            raise InvalidInputError(f"{place}: weight is {line['weight']!r}, not a number from 0 up", field="weight")
        if not isinstance(prompt_id, str | None):
            raise InvalidInputError(f"{place}: prompt_id must be text", field="prompt_id")
        turns = _upto_last_reply(_turns(line, place=place))
        if not turns:
            num_without_reply += 1
        elif any(turn.role == "assistant" and not turn.content.strip() for turn in turns):
            num_empty += 1
        elif weight == 0.0:
            num_weightless += 1
        else:
            _check(turns, place=place)
            prompt_id = prompt_id or digest(to_json(_prompt_of(turns)))
            found.append(SftConversation(prompt_id, turns, weight))
    if not found:
        num_lines = num_weightless + num_without_reply + num_empty
        raise InvalidInputError(
            f"{path}: none of the {num_lines} conversations can be learnt from ({num_without_reply} without a reply, "
            f"{num_empty} with an empty one, {num_weightless} weigh nothing)",
            reason="NO_CONVERSATIONS",
            field="conversations",
        )
    return Conversations(tuple(found), num_weightless, num_without_reply, num_empty)


def encode_conversations(
    conversations: Sequence[SftConversation],
    *,
    encoder: ChatEncoder,
    context_length: int,
    loss_on: Literal["all_replies", "last_reply"],
) -> tuple[list[EncodedConversation], int]:
    """(conversations that fit the context, number of those that do not)."""
    encoded, num_too_long = [], 0
    for conversation in conversations:
        parts = encode_conversation(conversation, encoder=encoder, loss_on=loss_on)
        if all(part.num_tokens <= context_length for part in parts):
            encoded += parts
        else:
            num_too_long += 1
    if conversations and not encoded:
        raise InvalidInputError(f"every conversation is longer than the model's context of {context_length} tokens")
    return encoded, num_too_long


def encode_conversation(
    conversation: SftConversation, *, encoder: ChatEncoder, loss_on: Literal["all_replies", "last_reply"]
) -> list[EncodedConversation]:
    """The conversation's replies, each behind exactly the tokens that a sampler would have shown the policy.

    One sequence as a rule. Templates that render a past reply otherwise than a present one (without its reasoning,
    say) make one sequence of each reply that is rendered so.
    """
    turns = conversation.turns
    replies = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
    sequences: list[tuple[list[int], list[bool]]] = []
    for index in replies if loss_on == "all_replies" else replies[-1:]:
        prompt, reply = encoder.prompt(turns[:index]), encoder.response(turns[index].content)
        ids, learnt = sequences.pop() if sequences else ([], [])
        if list(prompt[: len(ids)]) != ids:
            sequences.append((ids, learnt))
            ids, learnt = [], []
        read = len(prompt) - len(ids)
        sequences.append(([*prompt, *reply], [*learnt, *([False] * read), *([True] * len(reply))]))
    return [
        EncodedConversation(conversation.prompt_id, tuple(ids), tuple(learnt), conversation.weight)
        for ids, learnt in sequences
    ]


def _turns(line: Mapping[str, Any], *, place: str) -> Conversation:
    """All turns of a line, each by itself as it should be."""
    if "messages" in line:
        if {"prompt", "response"} & line.keys():
            raise InvalidInputError(f"{place}: give messages, or prompt and response, not both", field="messages")
        messages = line["messages"]
        if not isinstance(messages, list) or not all(isinstance(turn, dict) for turn in messages):
            raise InvalidInputError(f"{place}: messages must be a list of turns", field="messages")
    else:
        messages = [
            {"role": role, "content": line.get(key)} for role, key in (("user", "prompt"), ("assistant", "response"))
        ]
        for key in ("prompt", "response"):
            if not isinstance(line.get(key), str):
                raise InvalidInputError(f"{place}: {key} must be text", field=key)
    try:
        return parse_turns(messages)
    except InvalidInputError as error:
        raise InvalidInputError(f"{place}: {error.field}: {error.message}", field=error.field) from error


def _upto_last_reply(turns: Conversation) -> Conversation:
    """The turns less those after the last of the assistant, which teach nothing; none where it has no turn."""
    replies = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
    return turns[: replies[-1] + 1] if replies else ()


def _prompt_of(turns: Conversation) -> Conversation:
    """The turns before the first reply."""
    return tuple(takewhile(lambda turn: turn.role != "assistant", turns))


def _check(turns: Conversation, *, place: str) -> None:
    try:
        check_conversation(turns[:-1])
    except InvalidInputError as error:
        raise InvalidInputError(f"{place}: {error.field}: {error.message}", field=error.field) from error
