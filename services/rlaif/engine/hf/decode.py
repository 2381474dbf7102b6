"""Batched sampling: each distinct prompt is prefilled once, its completions share that cache, finished rows leave.

Shapes: P distinct prompts, B rows (one a completion), T tokens, V vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from rlaif.engine.checks import check_generate
from rlaif.engine.codec import ChatCodec
from rlaif.engine.hf.cache import buffer_cache
from rlaif.engine.hf.forward import ModelRunner, positions_of
from rlaif.engine.hf.worker import CancelledWorkError
from rlaif.engine.protocol import GenerateRequest, Generation, OnGeneration, StopReason
from rlaif.engine.sampling import Sampler, uniforms

# Copying the cache costs about as much as a step with a fifth of the rows idle.
_COMPACT_BELOW = 0.8


@dataclass
class _Row:
    """One completion being sampled."""

    request_index: int
    completion_index: int
    request: GenerateRequest
    budget: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    generation: Generation | None = None


@dataclass(frozen=True)
class Decoder:
    """Samples from one model."""

    runner: ModelRunner
    codec: ChatCodec
    stop_ids: frozenset[int]
    context_length: int
    max_cache_tokens: int

    def check(self, requests: Sequence[GenerateRequest]) -> None:
        """Raises InvalidInputError for a prompt that leaves no room for a completion."""
        check_generate(requests, context_length=self.context_length)

    def generate(
        self, requests: Sequence[GenerateRequest], *, cancelled: threading.Event, on_generation: OnGeneration | None
    ) -> list[list[Generation]]:
        """Completions of each request, in order."""
        rows = [
            _Row(index, completion, request, min(request.max_tokens, self.context_length - len(request.prompt_ids)))
            for index, request in enumerate(requests)
            for completion in range(request.num_completions)
        ]
        for wave in self._waves(rows):
            self._decode(wave, cancelled, on_generation)
        results: list[list[Generation]] = [[] for _ in requests]
        for row in rows:
            assert row.generation is not None
            results[row.request_index].append(row.generation)
        return results

    def _waves(self, rows: Sequence[_Row]) -> Iterator[list[_Row]]:
        """Rows that fit the cache together; alike lengths together, so that little is padding."""
        wave: list[_Row] = []
        longest = 0
        for row in sorted(rows, key=lambda row: (len(row.request.prompt_ids), row.request_index)):
            longest = max(longest, len(row.request.prompt_ids) + row.budget)
            if wave and longest * (len(wave) + 1) > self.max_cache_tokens:
                yield wave
                wave, longest = [], len(row.request.prompt_ids) + row.budget
            wave.append(row)
        if wave:
            yield wave

    def _decode(self, rows: list[_Row], cancelled: threading.Event, on_generation: OnGeneration | None) -> None:
        device = self.runner.device
        prompts = list(dict.fromkeys(row.request.prompt_ids for row in rows))
        place = {prompt: index for index, prompt in enumerate(prompts)}
        prompt_of_row_B = torch.tensor([place[row.request.prompt_ids] for row in rows], device=device)

        ids_PT, mask_PT = self.runner.left_padded(prompts)
        positions_PT = positions_of(mask_PT)
        logits_PKV, cache = self.runner.forward(ids_PT, mask_PT, positions_PT, use_cache=True)
        buffer_cache(cache, prompt_of_row_B)
        logits_BV = logits_PKV[prompt_of_row_B, -1]
        mask_BT = mask_PT[prompt_of_row_B]
        positions_B1 = positions_PT[prompt_of_row_B, -1:]

        uniforms_BT = self._uniforms(rows)
        sampler = Sampler(
            torch.tensor([row.request.temperature for row in rows], device=device),
            torch.tensor([row.request.top_p for row in rows], dtype=torch.float64, device=device),
        )
        for step in range(max(row.budget for row in rows)):
            if cancelled.is_set():
                raise CancelledWorkError
            tokens_B, logprobs_B = sampler.draw(logits_BV, uniforms_BT[:, step])
            alive = self._record(rows, tokens_B.tolist(), logprobs_B.tolist(), on_generation)
            if not alive:
                return
            if len(alive) <= _COMPACT_BELOW * len(rows):
                kept_B = torch.tensor(alive, device=device)
                rows = [rows[index] for index in alive]
                cache.batch_select_indices(kept_B)
                sampler = sampler.select(kept_B)
                tokens_B, uniforms_BT, mask_BT = tokens_B[kept_B], uniforms_BT[kept_B], mask_BT[kept_B]
                positions_B1 = positions_B1[kept_B]
            positions_B1 = positions_B1 + 1
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(rows), 1)], dim=-1)
            logits_BKV, cache = self.runner.forward(
                tokens_B[:, None], mask_BT, positions_B1, cache=cache, use_cache=True
            )
            logits_BV = logits_BKV[:, -1]

    def _uniforms(self, rows: Sequence[_Row]) -> torch.Tensor:
        longest = max(row.budget for row in rows)
        uniforms_BT = torch.zeros(len(rows), longest, dtype=torch.float64)
        for index, row in enumerate(rows):
            request = row.request
            drawn = uniforms(request.seed, stream=request.stream, completion=row.completion_index, count=row.budget)
            uniforms_BT[index, : row.budget] = torch.from_numpy(drawn)
        return uniforms_BT.to(self.runner.device)

    def _record(
        self, rows: Sequence[_Row], tokens: list[int], logprobs: list[float], on_generation: OnGeneration | None
    ) -> list[int]:
        """Appends a token to each unfinished row; the places of those that go on."""
        alive = []
        for index, (row, token, logprob) in enumerate(zip(rows, tokens, logprobs, strict=True)):
            if row.generation is not None:
                continue
            row.token_ids.append(token)
            row.logprobs.append(logprob)
            row.generation = self._finished(row)
            if row.generation is None:
                alive.append(index)
            elif on_generation is not None:
                on_generation(row.request_index, row.completion_index, row.generation)
        return alive

    def _finished(self, row: _Row) -> Generation | None:
        if row.token_ids[-1] in self.stop_ids:
            return self._generation(row, "end_of_turn")
        if row.request.stop_sequences and self._stops(row):
            return self._generation(row, "stop_sequence")
        if len(row.token_ids) == row.budget:
            return self._generation(row, "max_tokens")
        return None

    def _stops(self, row: _Row) -> bool:
        # A token is at least a byte of text, so a match that is new lies within this many tokens.
        num_tail = max(len(stop.encode()) for stop in row.request.stop_sequences) + 4
        tail = self.codec.decode(row.token_ids[-num_tail:])
        return any(stop in tail for stop in row.request.stop_sequences)

    def _generation(self, row: _Row, stop_reason: StopReason) -> Generation:
        text = self.codec.decode(row.token_ids)
        if stop_reason == "stop_sequence":
            found = [text.find(stop) for stop in row.request.stop_sequences if stop in text]
            text = text[: min(found)] if found else text
        return Generation(
            text=text, token_ids=tuple(row.token_ids), logprobs=tuple(row.logprobs), stop_reason=stop_reason
        )
