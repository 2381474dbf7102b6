"""Reward models: ensembles of sequence classifiers with one output, on transformers.

A response is scored as the policy would have written it: the conversation in the chat template, the generation prompt,
the response, the end of turn. The value is the head's output on the last token that is not padding.

Shapes: B sequences, T tokens of the longest, D hidden size.
"""

# ruff: noqa: N806 - tensors carry shape suffixes

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from rlaif.core.conversation import Conversation
from rlaif.engine.codec import ChatCodec
from rlaif.engine.hf.worker import Worker
from rlaif.engine.protocol import ModelIdentity, TokenIds
from rlaif.engine.reward_loading import Member, RewardModelOptions, find_members, load_member

__all__ = ["EncodedInput", "RewardEnsemble", "RewardModelEngine", "RewardModelOptions", "plan_batches"]

# What a forward pass costs beside its tokens, in tokens: reading the weights and starting the kernels.
_PASS_TOKENS_CPU, _PASS_TOKENS_GPU = 32, 1024
_TOKENIZER_THREADS = 2


@dataclass(frozen=True)
class RewardEnsemble:
    """Loaded members of one reward model."""

    members: tuple[Member, ...]

    @property
    def identities(self) -> tuple[ModelIdentity, ...]:
        """Weights of the members."""
        return tuple(member.identity for member in self.members)


@dataclass(frozen=True, eq=False, slots=True)
class EncodedInput:
    """A conversation with its response, tokenised for every member."""

    ensemble: RewardEnsemble
    ids: tuple[torch.Tensor, ...]
    """Token ids for each member; members with one tokenizer share them."""
    pooled: tuple[int, ...]
    """Position whose value each member's head reads."""
    num_tokens: int
    """Over all members: what the input costs."""
    fits: bool
    """Whether it is within every member's context."""


class RewardModelEngine:
    """Loads and runs reward models in one thread, in order of arrival; tokenises in others."""

    def __init__(self, options: RewardModelOptions, *, num_threads: int = 0) -> None:
        self._options = options
        self._pass_tokens = _PASS_TOKENS_CPU if options.device.startswith("cpu") else _PASS_TOKENS_GPU
        self._worker = Worker(num_threads=num_threads)
        # More than one, so that a short request is not held up by the texts of a long one.
        self._tokenizers = ThreadPoolExecutor(max_workers=_TOKENIZER_THREADS, thread_name_prefix="rlaif-reward-tokens")

    async def load(self, references: Sequence[ModelIdentity]) -> RewardEnsemble:
        """The ensemble; a digest that is given must be the folder's. InvalidInputError names the member.

        Files are fetched and checked beside the scoring; only reading the weights waits for its turn in the thread.
        """
        found = await asyncio.to_thread(find_members, references)
        return await self._worker.run(
            lambda _: RewardEnsemble(
                tuple(load_member(files, index=index, options=self._options) for index, files in enumerate(found))
            )
        )

    async def encode(self, ensemble: RewardEnsemble, inputs: Sequence[tuple[Conversation, str]]) -> list[EncodedInput]:
        """The inputs as `score` takes them."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._tokenizers, _encode, ensemble, inputs)

    async def count_tokens(self, ensemble: RewardEnsemble, responses: Sequence[str]) -> list[int]:
        """Tokens of each response by the first member's tokenizer, without the end of turn."""
        codec = ensemble.members[0].codec
        loop = asyncio.get_running_loop()
        encoded = await loop.run_in_executor(self._tokenizers, codec.encode_responses, responses)
        return [len(ids) - 1 for ids in encoded]

    async def score(self, inputs: Sequence[EncodedInput], *, repeatable: bool) -> list[tuple[float, ...]]:
        """Each input's value by each member of its ensemble, in order; values may be NaN. Every input must fit.

        `repeatable`: the batches follow from the lengths alone, so that the same inputs give the same floats wherever
        this runs; else a batch also ends where its padding would cost more than another pass.
        """
        return await self._worker.run(lambda _: self._score(inputs, repeatable=repeatable))

    def close(self) -> None:
        """Ends the threads."""
        self._tokenizers.shutdown(wait=True, cancel_futures=True)
        self._worker.close()

    def _score(self, inputs: Sequence[EncodedInput], *, repeatable: bool) -> list[tuple[float, ...]]:
        by_ensemble: dict[int, list[int]] = {}
        for index, encoded in enumerate(inputs):
            by_ensemble.setdefault(id(encoded.ensemble), []).append(index)
        values: list[tuple[float, ...]] = [()] * len(inputs)
        for indices in by_ensemble.values():
            members = inputs[indices[0]].ensemble.members
            by_member = [
                self._score_member(member, position, [inputs[index] for index in indices], repeatable=repeatable)
                for position, member in enumerate(members)
            ]
            for index, of_members in zip(indices, zip(*by_member, strict=True), strict=True):
                values[index] = of_members
        return values

    def _score_member(
        self, member: Member, position: int, inputs: Sequence[EncodedInput], *, repeatable: bool
    ) -> list[float]:
        sequences = [encoded.ids[position] for encoded in inputs]
        lengths = [len(ids) for ids in sequences]
        max_padding = None if repeatable else self._pass_tokens
        values = [0.0] * len(inputs)
        for batch in plan_batches(lengths, max_tokens=self._options.max_batch_tokens, max_padding=max_padding):
            scores = _forward(
                member, [sequences[index] for index in batch], [inputs[index].pooled[position] for index in batch]
            )
            for index, value in zip(batch, scores, strict=True):
                values[index] = value
        return values


def plan_batches(lengths: Sequence[int], *, max_tokens: int, max_padding: int | None = None) -> Iterator[list[int]]:
    """Indices of each batch, longest first, so that sequences of like length share one.

    A batch is filled up to `max_tokens`, padding included (a longer sequence runs alone), or until its padding would be
    more than `max_padding` tokens.
    """
    batch: list[int] = []
    padding = 0
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        longest = lengths[batch[0]] if batch else lengths[index]
        padding += longest - lengths[index]
        if (len(batch) + 1) * longest > max_tokens or (max_padding is not None and padding > max_padding):
            if batch:
                yield batch
            batch, padding = [], 0
        batch.append(index)
    if batch:
        yield batch


def _encode(ensemble: RewardEnsemble, inputs: Sequence[tuple[Conversation, str]]) -> list[EncodedInput]:
    members = ensemble.members
    of_codec = {id(member.codec): _sequences(member.codec, inputs) for member in members}
    encoded = []
    for index in range(len(inputs)):
        ids, pooled, fits = [], [], True
        for member in members:
            sequence = of_codec[id(member.codec)][index]
            ids.append(sequence)
            pooled.append(_pooled_position(sequence, member.pad_id))
            fits = fits and len(sequence) <= member.context_length
        encoded.append(
            EncodedInput(
                ensemble=ensemble,
                ids=tuple(ids),
                pooled=tuple(pooled),
                num_tokens=sum(map(len, ids)),
                fits=fits,
            )
        )
    return encoded


def _sequences(codec: ChatCodec, inputs: Sequence[tuple[Conversation, str]]) -> list[torch.Tensor]:
    responses = codec.encode_responses([response for _, response in inputs])
    chats: dict[Conversation, TokenIds] = {}
    found = []
    for (conversation, _), response in zip(inputs, responses, strict=True):
        chat = chats.get(conversation)
        if chat is None:
            chat = chats[conversation] = codec.encode_chat(conversation)
        found.append(torch.tensor(chat + response))
    return found


def _forward(member: Member, sequences: Sequence[torch.Tensor], pooled: Sequence[int]) -> list[float]:
    model: Any = member.model
    filler = member.pad_id if member.pad_id is not None else 0
    ids_BT = pad_sequence(list(sequences), batch_first=True, padding_value=filler).to(model.device)
    lengths_B = torch.tensor([len(ids) for ids in sequences])
    mask_BT = (torch.arange(ids_BT.shape[1]) < lengths_B[:, None]).long().to(model.device)
    hidden_BTD = model.base_model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
    pooled_BD = hidden_BTD[torch.arange(len(sequences), device=model.device), torch.tensor(pooled, device=model.device)]
    values: list[float] = model.score(pooled_BD)[:, 0].float().tolist()
    return values


def _pooled_position(ids: torch.Tensor, pad_id: int | None) -> int:
    """Last token that is not the padding token, as transformers' own classifiers pool: some models pad with their
    end-of-turn token, and were then trained on the token before it."""
    if pad_id is None or int(ids[-1]) != pad_id:
        return len(ids) - 1
    other = torch.nonzero(ids != pad_id)
    return int(other[-1]) if len(other) else len(ids) - 1
