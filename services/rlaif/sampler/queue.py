"""The engine's turns: calls that sample, side by side where the engine batches them itself, and swaps of weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlaif.core.errors import DeadlineError, QuotaExceededError, UnavailableError
from rlaif.engine.protocol import Engine, GenerateRequest, Generation, ModelIdentity
from rlaif.runtime.telemetry import Follower
from rlaif.sampler.gate import Gate
from rlaif.sampler.metrics import SamplerMetrics

_MIN_RETRY_SECONDS = 0.1

OnSampled = Callable[[ModelIdentity, int, int, Generation], None]
"""Called with (weights, request index, completion index, completion) as each completion finishes."""


@dataclass(frozen=True)
class Sampled:
    """Completions of each request, and the weights that sampled all of them."""

    identity: ModelIdentity
    generations: list[list[Generation]]


class SamplingQueue:
    """Runs calls on an engine behind a bounded queue; every call sees one version of the weights from start to end.

    With `overlaps` calls go to the engine as they come, and it batches them. Without it one is there at a time, so that
    its results cannot depend on the neighbours.
    """

    def __init__(self, engine: Engine, *, overlaps: bool, max_queue_completions: int, metrics: SamplerMetrics) -> None:
        self._engine, self._metrics = engine, metrics
        self._max_queue = max_queue_completions
        self._count_given = Follower(metrics.prompt_tokens, lambda: engine.work.prompt_tokens)
        self._count_computed = Follower(metrics.computed_prompt_tokens, lambda: engine.work.computed_prompt_tokens)
        self._gate = Gate(max_readers=None if overlaps else 1)
        self._num_accepted = 0
        self._closed = False
        self._call_seconds = 0.0

    @property
    def identity(self) -> ModelIdentity:
        """Weights now being served."""
        return self._engine.identity

    @property
    def num_running(self) -> int:
        """Completions being sampled."""
        return self._engine.usage.running_completions

    @property
    def num_waiting(self) -> int:
        """Completions accepted that are not being sampled yet."""
        return max(0, self._num_accepted - self.num_running)

    async def sample(
        self,
        requests: Sequence[GenerateRequest],
        *,
        check: Callable[[ModelIdentity], None] = lambda _: None,
        on_sampled: OnSampled | None = None,
    ) -> Sampled:
        """The completions, sampled by one version of the weights. Cancelling the call stops its work.

        `check` may refuse the weights once it is the call's turn. QuotaExceededError when the queue is full.
        """
        num_completions = sum(request.num_completions for request in requests)
        self._admit(num_completions)
        arrival = time.perf_counter()
        self._num_accepted += num_completions
        try:
            async with self._gate.reading(priority=min((request.priority for request in requests), default=0)):
                start = time.perf_counter()
                self._metrics.queue_wait_seconds.observe(start - arrival)
                identity = self._engine.identity
                check(identity)
                generations = await self._generate(requests, identity, on_sampled)
        finally:
            self._num_accepted -= num_completions
            self._count_given()
            self._count_computed()
        self._call_seconds = time.perf_counter() - start
        self._metrics.engine_seconds.observe(self._call_seconds)
        self._metrics.call_completions.observe(num_completions)
        return Sampled(identity, generations)

    async def load(self, identity: ModelIdentity, *, timeout_seconds: float | None = None) -> None:
        """Swaps weights once the calls in flight are done, those that come meanwhile waiting.

        DeadlineError when the calls in flight take longer than the timeout; the others then go on with the old weights.
        """
        inside = False
        try:
            async with self._gate.writing(timeout_seconds=timeout_seconds):
                inside = True
                await self._engine.load(identity)
        except TimeoutError as error:
            if inside:
                raise
            raise DeadlineError(
                f"the requests in flight did not end within {timeout_seconds:g} s, so version {identity.version} could "
                "not be swapped in"
            ) from error

    def close(self) -> None:
        """Refuses new calls."""
        self._closed = True

    async def _generate(
        self, requests: Sequence[GenerateRequest], identity: ModelIdentity, on_sampled: OnSampled | None
    ) -> list[list[Generation]]:
        if on_sampled is None:
            return await self._engine.generate(requests)

        def tell(request: int, completion: int, generation: Generation) -> None:
            on_sampled(identity, request, completion, generation)

        return await self._engine.generate(requests, on_generation=tell)

    def _admit(self, num_completions: int) -> None:
        if self._closed:
            raise UnavailableError("the service is shutting down", reason="SHUTTING_DOWN")
        waiting = self.num_waiting
        if waiting and waiting + num_completions > self._max_queue:
            raise QuotaExceededError(
                f"{waiting} completions are waiting and at most {self._max_queue} may",
                retry_after_seconds=max(_MIN_RETRY_SECONDS, self._call_seconds),
            )
