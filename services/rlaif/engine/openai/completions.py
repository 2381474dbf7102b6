"""Asking by token ids: /completions gets the very ids that every other engine would run."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlaif.core.conversation import Message
from rlaif.core.errors import UnsupportedError
from rlaif.engine.codec import ChatCodec
from rlaif.engine.openai.abilities import Abilities
from rlaif.engine.openai.answers import Position, only_choice, read_positions, stop_reason_of, token_id_of
from rlaif.engine.openai.asking import ChoiceRow, no_logprobs, text_fields, text_of
from rlaif.engine.openai.endpoint import Endpoint
from rlaif.engine.protocol import GenerateRequest, Generation, TokenIds

_PATH = "/completions"


class CompletionsWay:
    """One server asked by token ids."""

    def __init__(
        self,
        endpoint: Endpoint,
        codec: ChatCodec,
        *,
        names: Mapping[str, TokenIds],
        abilities: Abilities,
        context_length: int,
    ) -> None:
        self._endpoint, self._codec, self._names = endpoint, codec, names
        self._abilities, self._context_length = abilities, context_length

    def encode_chat(self, messages: Sequence[Message]) -> TokenIds:
        return self._codec.encode_chat(messages)

    def encode_judge_prompt(self, context: str, question: str) -> tuple[TokenIds, TokenIds]:
        return self._codec.encode_judge_prompt(context, question)

    def encode_choices(self, labels: Sequence[str]) -> tuple[TokenIds, ...]:
        return self._codec.encode_choices(labels)

    async def generate(self, request: GenerateRequest, completion: int) -> Generation:
        """One completion; its token ids and log-probabilities where the server tells tokens by their ids."""
        most = self._context_length - len(request.prompt_ids)
        fields = text_fields(request, completion, form=self._abilities.constraints, most_tokens=most)
        body = {"prompt": list(request.prompt_ids), **fields}
        if self._abilities.token_ids:
            body |= {"logprobs": 1, "return_tokens_as_token_ids": True, **self._plain_sampling()}
        choice = await self._ask(body, priority=request.priority)
        reason = stop_reason_of(choice, self._endpoint.malformed, stop_sequences=request.stop_sequences)
        text = choice.get("text")
        if not isinstance(text, str):
            raise self._endpoint.malformed("a choice without text")
        text = text_of(text, request, reason, form=self._abilities.constraints, malformed=self._endpoint.malformed)
        token_ids, logprobs = self._tokens(choice, request) if self._abilities.token_ids else ((), ())
        return Generation(text, token_ids, logprobs, reason)

    async def choice_row(self, prompt_ids: TokenIds, choices: Sequence[TokenIds]) -> ChoiceRow:
        """Log-probability of each choice after the prompt."""
        if all(len(choice) == 1 for choice in choices) and len(set(choices)) == len(choices):
            labels = tuple(choice[0] for choice in choices)
            if self._abilities.token_ids:
                return await self._exact_row(prompt_ids, labels)
            if self._abilities.top_logprobs:
                return await self._listed_row(prompt_ids, labels)
            raise no_logprobs(self._endpoint.url)
        if not self._abilities.echo:
            raise UnsupportedError(
                f"{self._endpoint.url} gives no log-probabilities of prompts, and answers of several tokens need them",
                reason="CHOICE_LOGPROBS_UNSUPPORTED",
            )
        # One may begin another, as "1" begins "10": each counts with the token that ends it.
        end = self._codec.end_of_turn
        answers = [choice if end is None else (*choice, end) for choice in choices]
        return ChoiceRow(tuple(await asyncio.gather(*(self._prompt_logprob(prompt_ids, each) for each in answers))))

    async def _exact_row(self, prompt_ids: TokenIds, labels: TokenIds) -> ChoiceRow:
        fields = {"logprobs": 1, "logprob_token_ids": list(labels), "return_tokens_as_token_ids": True}
        position = await self._next_position(prompt_ids, fields | self._plain_sampling())
        known = {token_id_of(token): logprob for token, logprob in position.listed} if position is not None else {}
        if not {*labels} <= {*known}:
            raise self._endpoint.malformed("log-probabilities that lack those of the tokens asked for")
        return ChoiceRow(tuple(known[label] for label in labels))

    async def _listed_row(self, prompt_ids: TokenIds, labels: TokenIds) -> ChoiceRow:
        position = await self._next_position(prompt_ids, {"logprobs": self._abilities.top_logprobs})
        if position is None:
            return ChoiceRow((math.nan,) * len(labels))
        found = tuple(self._listed(position, label) for label in labels)
        # Each token left out is no likelier than the least of those listed, and all of them have what is left over.
        least = math.exp(min(logprob for _, logprob in position.listed))
        return ChoiceRow(found, unlisted=min(1.0 - position.mass, least * found.count(-math.inf)))

    def _listed(self, position: Position, label: int) -> float:
        """-inf for a label that is not listed, NaN where a name listed may be another token's as well."""
        for token, logprob in position.listed:
            by_id = token_id_of(token)
            ids = (by_id,) if by_id is not None else self._names.get(token, ())
            if label in ids:
                return logprob if len(ids) == 1 else math.nan
        return -math.inf

    async def _next_position(self, prompt_ids: TokenIds, fields: Mapping[str, Any]) -> Position | None:
        """What may follow the prompt; None when the model ends here and the server says nothing of it."""
        body = {"prompt": list(prompt_ids), "max_tokens": 1, "temperature": 1.0, "top_p": 1.0, **fields}
        positions = self._positions(await self._ask(body))
        return positions[0] if positions else None

    async def _prompt_logprob(self, prompt_ids: TokenIds, answer: TokenIds) -> float:
        """Log-probability of the answer's tokens, read off the echo of prompt and answer."""
        ids = [*prompt_ids, *answer]
        fields = {"return_tokens_as_token_ids": True} if self._abilities.token_ids else {}
        body = {"prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 1, "temperature": 1.0, **fields}
        positions = self._positions(await self._ask(body))
        if len(positions) != len(ids):
            raise self._endpoint.malformed(f"{len(positions)} log-probabilities of a prompt of {len(ids)} tokens")
        return math.fsum(position.logprob for position in positions[-len(answer) :])

    async def _ask(self, body: Mapping[str, Any], *, priority: int = 0) -> Mapping[str, Any]:
        return only_choice(await self._endpoint.post(_PATH, body, priority=priority), self._endpoint.malformed)

    def _positions(self, choice: Mapping[str, Any]) -> list[Position]:
        positions = read_positions(choice.get("logprobs"), self._endpoint.malformed)
        if positions is None:
            raise self._endpoint.malformed("a choice without the log-probabilities asked for")
        return positions

    def _plain_sampling(self) -> dict[str, Any]:
        """vLLM takes what a request leaves open from the model's generation settings."""
        fields: dict[str, Any] = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
        end = self._codec.end_of_turn
        return fields if end is None else fields | {"stop_token_ids": [end]}

    def _tokens(self, choice: Mapping[str, Any], request: GenerateRequest) -> tuple[TokenIds, tuple[float, ...]]:
        positions = self._positions(choice)
        ids = [token_id_of(position.token) for position in positions]
        if None in ids:
            raise self._endpoint.malformed("tokens without their ids")
        # The server's are of the model itself, at temperature 1; of other temperatures they cannot be had.
        at_one = request.temperature in (0.0, 1.0)
        logprobs = tuple(position.logprob for position in positions) if at_one else ()
        return tuple(each for each in ids if each is not None), logprobs
