"""Completions being sampled: whose they are, where they stand and when they are finished."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from rlaif.engine.checks import check_generate
from rlaif.engine.codec import ChatCodec
from rlaif.engine.hf.constraints import Guide
from rlaif.engine.protocol import GenerateRequest, Generation, OnGeneration, StopReason
from rlaif.engine.sampling import UniformStream


@dataclass(eq=False)
class Job:
    """One call: its completions are told together."""

    requests: Sequence[GenerateRequest]
    on_generation: OnGeneration | None
    order: int
    """Calls are numbered as they come."""
    epoch: int
    """Swaps of weights asked for before it."""
    future: Future[list[list[Generation]]] = field(default_factory=Future)
    rows: list[Row] = field(default_factory=list)
    num_unfinished: int = 0
    num_waiting: int = 0
    begun: bool = False
    """Some of its rows have left the queue; then it is finished even when the engine closes."""
    alone: bool = False
    """Its prompts share no forward pass with those of others: one that did has failed."""
    gone: bool = False
    """Cancelled or failed; its rows are to be dropped."""

    @property
    def priority(self) -> int:
        """Of its requests the most urgent."""
        return min((request.priority for request in self.requests), default=0)

    def fail(self, error: BaseException) -> None:
        """Tells the caller, unless told before."""
        self.gone = True
        if not self.future.done():
            self.future.set_exception(error)

    def tell(self, row: Row) -> None:
        """Passes on a row's completion, and all of them once it was the last."""
        assert row.generation is not None
        if self.on_generation is not None:
            self.on_generation(row.request_index, row.completion_index, row.generation)
        self.num_unfinished -= 1
        if not self.num_unfinished:
            self.future.set_result(self.results())

    def results(self) -> list[list[Generation]]:
        """The completions of each request, in order."""
        results: list[list[Generation]] = [[] for _ in self.requests]
        for row in self.rows:
            assert row.generation is not None
            results[row.request_index].append(row.generation)
        return results


@dataclass(eq=False)
class Row:
    """One completion being sampled."""

    job: Job
    request_index: int
    completion_index: int
    request: GenerateRequest
    budget: int
    """Most tokens it may get."""
    uniforms: UniformStream
    guide: Guide | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    generation: Generation | None = None

    @property
    def length(self) -> int:
        """Tokens of the prompt and of the completion so far."""
        return len(self.request.prompt_ids) + len(self.token_ids)

    @property
    def longest(self) -> int:
        """Most tokens that prompt and completion can come to."""
        return len(self.request.prompt_ids) + self.budget


@dataclass(frozen=True)
class RowRules:
    """What a row may hold and what ends it."""

    codec: ChatCodec
    stop_ids: frozenset[int]
    context_length: int
    vocabulary_size: int

    def check(self, requests: Sequence[GenerateRequest]) -> None:
        """Raises InvalidInputError for a prompt that leaves no room for a completion or holds what is no token."""
        check_generate(requests, context_length=self.context_length, vocabulary_size=self.vocabulary_size)

    def fill(self, job: Job, guides: Sequence[Guide | None]) -> None:
        """Gives the job one row a completion; `guides` has one for each request that is constrained."""
        job.rows = [
            Row(
                job=job,
                request_index=index,
                completion_index=completion,
                request=request,
                budget=min(request.max_tokens, self.context_length - len(request.prompt_ids)),
                uniforms=UniformStream(request.seed, stream=request.stream, completion=completion),
                guide=guide.fresh() if guide else None,
            )
            for index, (request, guide) in enumerate(zip(job.requests, guides, strict=True))
            for completion in range(request.num_completions)
        ]
        job.num_unfinished = len(job.rows)

    def append(self, row: Row, token: int, logprob: float) -> Generation | None:
        """The completion, if the token was its last."""
        row.token_ids.append(token)
        row.logprobs.append(logprob)
        if row.guide is not None:
            row.guide.take(token)
        if token in self.stop_ids:
            return self._generation(row, "end_of_turn")
        if row.request.stop_sequences and self._stops(row):
            return self._generation(row, "stop_sequence")
        if len(row.token_ids) == row.budget:
            return self._generation(row, "max_tokens")
        return None

    def _stops(self, row: Row) -> bool:
        # A token is at least a byte of text, so a match that is new lies within this many tokens.
        num_tail = max(len(stop.encode()) for stop in row.request.stop_sequences) + 4
        tail = self.codec.decode(row.token_ids[-num_tail:])
        return any(stop in tail for stop in row.request.stop_sequences)

    def _generation(self, row: Row, stop_reason: StopReason) -> Generation:
        text = self.codec.decode(row.token_ids)
        if stop_reason == "stop_sequence":
            found = [text.find(stop) for stop in row.request.stop_sequences if stop in text]
            text = text[: min(found)] if found else text
        return Generation(
            text=text, token_ids=tuple(row.token_ids), logprobs=tuple(row.logprobs), stop_reason=stop_reason
        )
