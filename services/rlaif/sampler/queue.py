"""The engine's turns: one request's batch, or one swap of weights, at a time and in order of arrival."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlaif.core.errors import QuotaExceededError, UnavailableError
from rlaif.engine.protocol import Engine, GenerateRequest, Generation, ModelIdentity
from rlaif.sampler.metrics import SamplerMetrics

_MIN_RETRY_SECONDS = 0.1

OnSampled = Callable[[ModelIdentity, int, int, Generation], None]
"""Called with (weights, request index, completion index, completion) as each completion finishes."""


@dataclass(frozen=True)
class Sampled:
    """Completions of each request, and the weights that sampled all of them."""

    identity: ModelIdentity
    generations: list[list[Generation]]


@dataclass(eq=False)
class _Job:
    """What one caller submitted; never split over batches."""

    requests: Sequence[GenerateRequest]
    on_sampled: OnSampled | None
    arrival: float
    result: Sampled | None = None

    @property
    def num_completions(self) -> int:
        return sum(request.num_completions for request in self.requests)


class SamplingQueue:
    """Runs jobs on an engine.

    Without `mix` every job is a batch of its own, so its results cannot depend on the neighbours. With it, the job
    whose turn comes takes along others that wait.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        mix: bool,
        max_batch_completions: int,
        max_queue_completions: int,
        metrics: SamplerMetrics,
    ) -> None:
        self._engine, self._metrics = engine, metrics
        self._mix, self._max_batch = mix, max_batch_completions
        self._max_queue = max_queue_completions
        self._waiting: list[_Job] = []
        # Locks of asyncio are fair: turns come in order of arrival.
        self._turn = asyncio.Lock()
        self._closed = False
        self._batch_seconds = 0.0

    @property
    def identity(self) -> ModelIdentity:
        """Weights now being served."""
        return self._engine.identity

    @property
    def num_waiting(self) -> int:
        """Completions waiting for a batch."""
        return sum(job.num_completions for job in self._waiting)

    async def sample(self, requests: Sequence[GenerateRequest], *, on_sampled: OnSampled | None = None) -> Sampled:
        """The completions, sampled by one version of the weights. Cancelling the call stops its work.

        QuotaExceededError when the queue is full.
        """
        job = _Job(requests, on_sampled, time.perf_counter())
        self._admit(job)
        try:
            async with self._turn:
                if job.result is None:
                    await self._run(job)
        finally:
            self._leave(job)
        assert job.result is not None
        return job.result

    async def load(self, identity: ModelIdentity) -> None:
        """Swaps weights once the batch in flight is done."""
        async with self._turn:
            await self._engine.load(identity)

    def close(self) -> None:
        """Refuses new jobs."""
        self._closed = True

    def _admit(self, job: _Job) -> None:
        if self._closed:
            raise UnavailableError("the service is shutting down", reason="SHUTTING_DOWN")
        waiting = self.num_waiting
        if waiting and waiting + job.num_completions > self._max_queue:
            raise QuotaExceededError(
                f"{waiting} completions are waiting and at most {self._max_queue} may",
                retry_after_seconds=max(_MIN_RETRY_SECONDS, self._batch_seconds),
            )
        self._waiting.append(job)

    def _leave(self, job: _Job) -> None:
        if job in self._waiting:
            self._waiting.remove(job)

    async def _run(self, leader: _Job) -> None:
        jobs = self._take(leader)
        start = time.perf_counter()
        for job in jobs:
            self._metrics.queue_wait_seconds.observe(start - job.arrival)
        places = [(job, index) for job in jobs for index in range(len(job.requests))]
        identity = self._engine.identity

        def tell(request: int, completion: int, generation: Generation) -> None:
            job, index = places[request]
            if job.on_sampled is not None:
                job.on_sampled(identity, index, completion, generation)

        streamed = any(job.on_sampled is not None for job in jobs)
        generations = await self._engine.generate(
            [job.requests[index] for job, index in places], on_generation=tell if streamed else None
        )
        seconds = time.perf_counter() - start
        self._batch_seconds = seconds
        self._metrics.engine_seconds.observe(seconds)
        self._metrics.batch_completions.observe(sum(map(len, generations)))
        rest = iter(generations)
        for job in jobs:
            job.result = Sampled(identity, [next(rest) for _ in job.requests])

    def _take(self, leader: _Job) -> list[_Job]:
        """The leader and, when mixing, those waiting that fit beside it.

        If the leader is cancelled, the others are run when their own turns come.
        """
        jobs, num_completions = [leader], leader.num_completions
        for job in self._waiting if self._mix else ():
            # A stream is not taken along: were its leader cancelled, it would tell its completions twice.
            if job is leader or job.result is not None or job.on_sampled is not None:
                continue
            if num_completions + job.num_completions <= self._max_batch:
                jobs.append(job)
                num_completions += job.num_completions
        for job in jobs:
            self._leave(job)
        return jobs
