"""Asking by messages: /chat/completions of a server whose tokenizer is not at hand.

What people or models wrote goes as the content of a message and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlaif.core.conversation import Message
from rlaif.core.errors import InvalidInputError
from rlaif.engine.openai.abilities import Abilities
from rlaif.engine.openai.answers import Position, only_choice, read_positions, stop_reason_of
from rlaif.engine.openai.asking import ChoiceRow, no_logprobs, text_fields, text_of
from rlaif.engine.openai.endpoint import CONTENT_FILTERED, Endpoint
from rlaif.engine.openai.message_ids import decode_content, decode_messages, encode_content, encode_messages
from rlaif.engine.openai.settings import OpenAiSettings
from rlaif.engine.protocol import GenerateRequest, Generation, TokenIds

_PATH = "/chat/completions"


class ChatWay:
    """One server asked by messages; ids are opaque (see message_ids), and completions come without token ids."""

    def __init__(
        self, endpoint: Endpoint, settings: OpenAiSettings, *, abilities: Abilities, context_length: int
    ) -> None:
        self._endpoint, self._abilities, self._context_length = endpoint, abilities, context_length
        self._max_tokens_field = settings.max_tokens_field
        self._whole_tokens = set(abilities.tokens_seen)
        """What was seen to be a single token of the server's."""

    def encode_chat(self, messages: Sequence[Message]) -> TokenIds:
        return encode_messages(messages)

    def encode_judge_prompt(self, context: str, question: str) -> tuple[TokenIds, TokenIds]:
        return encode_messages((Message("user", context),)), encode_content(question)

    def encode_choices(self, labels: Sequence[str]) -> tuple[TokenIds, ...]:
        return tuple(map(encode_content, labels))

    async def generate(self, request: GenerateRequest, completion: int) -> Generation:
        """One completion, its text alone."""
        fields = text_fields(
            request,
            completion,
            form=self._abilities.constraints,
            most_tokens=self._context_length - len(request.prompt_ids),
            max_tokens_field=self._max_tokens_field,
        )
        choice = await self._ask(request.prompt_ids, fields, priority=request.priority)
        if choice.get("finish_reason") == "content_filter":
            raise InvalidInputError(
                f"{self._endpoint.url} filters what its model writes", field="messages", reason=CONTENT_FILTERED
            )
        malformed = self._endpoint.malformed
        reason = stop_reason_of(choice, malformed, stop_sequences=request.stop_sequences)
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else None
        if not isinstance(text, str):
            if not isinstance(message, dict) or text is not None:
                raise malformed("a choice without a message's content")
            # Null is what a model that ends at once, or only thinks, has said.
            return Generation("", (), (), reason)
        return Generation(
            text_of(text, request, reason, form=self._abilities.constraints, malformed=malformed), (), (), reason
        )

    async def choice_row(self, prompt_ids: TokenIds, choices: Sequence[TokenIds]) -> ChoiceRow:
        """Log-probability of each label as the answer's first token, leading white space aside."""
        if not self._abilities.top_logprobs:
            raise no_logprobs(self._endpoint.url)
        labels = [decode_content(choice) for choice in choices]
        unknown = ChoiceRow((math.nan,) * len(labels))
        fields = {
            self._max_tokens_field: 1,
            "temperature": 1.0,
            "top_p": 1.0,
            "logprobs": True,
            "top_logprobs": self._abilities.top_logprobs,
        }
        try:
            choice = await self._ask(prompt_ids, fields)
        except InvalidInputError as error:
            if error.reason == CONTENT_FILTERED:
                return unknown
            raise
        if choice.get("finish_reason") == "content_filter":
            return unknown
        positions = read_positions(choice.get("logprobs"), self._endpoint.malformed)
        if positions is None:
            raise self._endpoint.malformed("a choice without the log-probabilities asked for")
        return self._row(positions[0], labels) if positions else unknown

    def _row(self, position: Position, labels: Sequence[str]) -> ChoiceRow:
        """A label's probability is that of all listed tokens that are the label after leading white space."""
        tokens = [(token.lstrip(), logprob) for token, logprob in position.listed]
        self._whole_tokens |= {token for token, _ in tokens} & {*labels}
        values = [_logsum([logprob for token, logprob in tokens if token == label]) for label in labels]
        begun = [label for label in labels if self._may_be_in_pieces(label, tokens)]
        for index, label in enumerate(labels):
            # Of a token that begins a longer label it cannot be told which of the two it would become.
            if label in begun or any(longer != label and longer.startswith(label) for longer in begun):
                values[index] = math.nan
        # What is not listed may hold any spelling of a label, so all of it bounds them.
        return ChoiceRow(tuple(values), unlisted=1.0 - position.mass)

    def _may_be_in_pieces(self, label: str, tokens: Sequence[tuple[str, float]]) -> bool:
        if label in self._whole_tokens:
            return False
        return any(token and token != label and label.startswith(token) for token, _ in tokens)

    async def _ask(self, prompt_ids: TokenIds, fields: Mapping[str, Any], *, priority: int = 0) -> Mapping[str, Any]:
        messages = [{"role": turn.role, "content": turn.content} for turn in decode_messages(prompt_ids)]
        answer = await self._endpoint.post(_PATH, {"messages": messages, **fields}, priority=priority)
        return only_choice(answer, self._endpoint.malformed)


def _logsum(logprobs: Sequence[float]) -> float:
    total = math.fsum(map(math.exp, logprobs))
    # vLLM writes -9999 for a probability of 0.
    return math.log(total) if total else max(logprobs, default=-math.inf)
