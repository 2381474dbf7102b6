"""Which completions are decoded together: calls wait in order, join the running batch between steps and leave it."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlaif.core.errors import UnavailableError
from rlaif.engine.hf.batch import Prefill, RunningBatch
from rlaif.engine.hf.constraints import Guide
from rlaif.engine.hf.forward import ModelRunner
from rlaif.engine.hf.rows import Job, Row, RowRules
from rlaif.engine.protocol import EngineUsage, EngineWork, GenerateRequest, OnGeneration
from rlaif.runtime.logging import EventLogger

_log = EventLogger(__name__)

# Copying the cache costs about as much as a step with a fifth of the slots empty; slots that newcomers will take are
# given up later.
_COMPACT_BELOW = 0.8
_COMPACT_BELOW_WITH_NEWCOMERS = 0.5
# A forward pass for one newcomer costs a good part of a step, so a full batch waits until this share of it has left.
_JOIN_SHARE = 1 / 16
# Prompts of one forward pass differ in length by no more than this, as padding costs as much as tokens.
_ALIKE_TOKENS, _ALIKE_SHARE = 8, 0.2

_Key = tuple[int, int, int, int, int, int]


@dataclass(frozen=True)
class BatchLimits:
    """How much is computed at once. `joins` lets calls share the batch; else it is one call's until that is done."""

    max_batch_tokens: int
    max_cache_tokens: int
    joins: bool


class DecodeScheduler:
    """The stepper of an engine's worker: each step lets newcomers in and continues every row by one token.

    A step runs at most one forward pass over prompts and one over the running rows, so that neither starves the other.
    Swaps of weights are marked by epochs: rows asked for after one wait until it is done.
    """

    def __init__(
        self, rules: RowRules, runner: ModelRunner, limits: BatchLimits, *, takes_newcomers: bool, work: EngineWork
    ) -> None:
        """`takes_newcomers` says whether the model's cache lets rows join one by one; `work` counts the prompts."""
        self._rules, self._limits, self._takes_newcomers, self._work = rules, limits, takes_newcomers, work
        self._lock = threading.Lock()
        self._waiting: list[tuple[_Key, Row]] = []
        """A heap."""
        self._jobs: set[Job] = set()
        self._orders = itertools.count()
        self._asked_epoch = self._open_epoch = 0
        self._someone_left = False
        self._num_running = 0
        """Rows that left the queue and are not finished."""
        self._cache_usage = 0.0
        self._prefill: Prefill | None = None
        self._set_runner(runner)

    def replace_runner(self, runner: ModelRunner) -> None:
        """Decodes with another model from now on; nothing may be running."""
        assert self._batch.num_rows == 0
        self._set_runner(runner)

    def check(self, requests: Sequence[GenerateRequest]) -> None:
        """Raises InvalidInputError for what cannot be sampled."""
        self._rules.check(requests)

    def submit(
        self,
        requests: Sequence[GenerateRequest],
        guides: Sequence[Guide | None],
        on_generation: OnGeneration | None,
    ) -> Job:
        """Queues a call, with a guide for each constrained request; its future gets the result.

        Then the worker is to be woken.
        """
        with self._lock:
            job = Job(requests, on_generation, order=next(self._orders), epoch=self._asked_epoch)
            # Told by the worker alone: the caller cannot cancel it meanwhile.
            job.future.set_running_or_notify_cancel()
            self._rules.fill(job, guides)
            if job.rows:
                self._jobs.add(job)
                self._wait(job.rows)
            else:
                job.future.set_result(job.results())
        return job

    def cancel(self, job: Job) -> None:
        """Has the job's rows dropped before the next step."""
        job.gone = True
        self._someone_left = True

    def usage(self) -> EngineUsage:
        """Rows that run and rows that wait."""
        with self._lock:
            return EngineUsage(self._num_running, len(self._waiting), self._cache_usage)

    def close_epoch(self) -> int:
        """Makes calls from now on wait for `open_epoch`; the epoch of those that came before."""
        with self._lock:
            self._asked_epoch += 1
            return self._asked_epoch - 1

    def drained(self, epoch: int) -> bool:
        """Whether no row of that epoch or an earlier one is left."""
        with self._lock:
            return not (self._num_running or self._someone_left or self._waits(epoch))

    def open_epoch(self, epoch: int) -> None:
        """Lets in the calls of that epoch."""
        with self._lock:
            self._open_epoch = max(self._open_epoch, epoch)

    def busy(self) -> bool:
        """Whether a step would do anything."""
        with self._lock:
            return self._someone_left or bool(self._num_running) or self._waits(self._open_epoch)

    def step(self) -> None:
        """Drops who left, lets newcomers in, continues the rest by one token."""
        try:
            self._drop()
            if not self._let_in() and self._batch.num_rows:
                self._continue()
        except Exception as error:  # noqa: BLE001 - told to every caller it concerns
            self._fail_running(error)

    def close(self) -> None:
        """Refuses the calls none of whose rows have begun."""
        with self._lock:
            jobs = [job for job in self._jobs if not job.begun]
        for job in jobs:
            self._fail(job, UnavailableError("the engine is closed"))
        self._drop()

    def _set_runner(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._batch = RunningBatch(runner, context_length=self._rules.context_length)

    def _wait(self, rows: Sequence[Row]) -> None:
        for row in rows:
            row.job.num_waiting += 1
            heapq.heappush(self._waiting, (self._key(row), row))

    def _waits(self, epoch: int) -> bool:
        return bool(self._waiting) and self._waiting[0][0][0] <= epoch

    def _key(self, row: Row) -> _Key:
        job = row.job
        # A batch of one call takes calls whole. Alike lengths stand together, so that little is padding.
        priority = row.request.priority if self._limits.joins else job.priority
        return job.epoch, priority, job.order, len(row.request.prompt_ids), row.request_index, row.completion_index

    def _recount(self) -> None:
        with self._lock:
            self._num_running = self._batch.num_rows + (len(self._prefill.rows) if self._prefill else 0)
            self._cache_usage = min(1.0, self._batch.num_tokens / self._limits.max_cache_tokens)

    def _drop(self) -> None:
        if not self._someone_left:
            return
        with self._lock:
            self._someone_left = False
            self._waiting = [(key, row) for key, row in self._waiting if not row.job.gone]
            heapq.heapify(self._waiting)
            self._jobs = {job for job in self._jobs if not job.gone}
        if self._prefill is not None and all(row.job.gone for row in self._prefill.rows):
            self._prefill = None
        self._batch.free(lambda row: row.job.gone)
        if not self._batch.num_rows:
            self._batch.clear()
        self._recount()

    def _let_in(self) -> bool:
        """Runs a forward pass over prompts, if any are due; whether the next step should do the same at once."""
        if self._prefill is None and (rows := self._next_rows()):
            max_tokens = self._limits.max_batch_tokens if self._takes_newcomers else 0
            self._prefill = Prefill(self._runner, rows, max_tokens=max_tokens)
            self._work.prompt_tokens += sum(len(row.request.prompt_ids) for row in rows)
            self._work.computed_prompt_tokens += self._prefill.num_tokens
        prefill = self._prefill
        if prefill is None:
            return False
        try:
            done = prefill.advance()
        except Exception as error:  # noqa: BLE001 - told to whom it concerns
            self._isolate(prefill, error)
            return True
        if done:
            self._prefill = None
            self._batch.join(prefill)
            self._recount()
        # The prompts of one call alone hold up nobody else's tokens.
        return not self._limits.joins and (not done or self._num_due() > 0)

    def _isolate(self, prefill: Prefill, error: Exception) -> None:
        """A forward pass that failed is tried again call by call, and fails the one that cannot be helped."""
        self._prefill = None
        jobs = {row.job for row in prefill.rows}
        if len(jobs) > 1:
            for job in jobs:
                job.alone = True
            with self._lock:
                self._wait(prefill.rows)
        else:
            self._fail(jobs.pop(), error)
        self._recount()

    def _next_rows(self) -> list[Row]:
        """The rows of the next forward pass over prompts, taken from the queue: the first and those of alike length."""
        num_due = self._num_due()
        rows: list[Row] = []
        passed_over: list[tuple[_Key, Row]] = []
        prompts: set[tuple[int, ...]] = set()
        running = self._batch.rows
        width, longest = 0, max((row.longest for row in running), default=0)
        with self._lock:
            while self._waiting and len(rows) + len(passed_over) < num_due:
                row = self._waiting[0][1]
                if rows and self._apart(row, rows[0]):
                    break
                prompt = row.request.prompt_ids
                if rows and self._takes_newcomers and not _alike(len(prompt), len(rows[0].request.prompt_ids)):
                    passed_over.append(heapq.heappop(self._waiting))
                    continue
                prompts.add(prompt)
                width, longest = max(width, len(prompt)), max(longest, row.longest)
                too_wide = self._takes_newcomers and width * len(prompts) > self._limits.max_batch_tokens
                too_many = longest * (len(running) + len(rows) + 1) > self._limits.max_cache_tokens
                if rows and (too_wide or too_many):
                    break
                heapq.heappop(self._waiting)
                row.job.begun = True
                row.job.num_waiting -= 1
                rows.append(row)
            for waiting in passed_over:
                heapq.heappush(self._waiting, waiting)
            self._num_running += len(rows)
        return rows

    def _apart(self, row: Row, first: Row) -> bool:
        job, other = row.job, first.job
        later = job.epoch > self._open_epoch
        return later or (job is not other and (not self._limits.joins or job.alone or other.alone))

    def _num_due(self) -> int:
        """Waiting rows that may be let in now, as far as the first of them tells."""
        with self._lock:
            if not self._waits(self._open_epoch) or not self._batch.takes_newcomers:
                return 0
            head, num_waiting = self._waiting[0][1], len(self._waiting)
        running = self._batch.rows
        if not self._limits.joins:
            num_waiting = head.job.num_waiting
            if running and running[0].job is not head.job:
                return 0
        longest = max([head.longest, *(row.longest for row in running)])
        room = self._limits.max_cache_tokens // longest - len(running)
        if not running:
            return max(1, min(num_waiting, room))
        return min(num_waiting, room) if room >= min(num_waiting, max(1, int(_JOIN_SHARE * len(running)))) else 0

    def _continue(self) -> None:
        tokens, logprobs = self._batch.draw(self._allowed())
        for row, token, logprob in zip(self._batch.slots, tokens, logprobs, strict=True):
            if row is not None:
                self._append(row, token, logprob)
        finished = [row for row in self._batch.rows if row.generation is not None]
        self._batch.free(lambda row: row.generation is not None or row.job.gone)
        self._recount()
        self._tell(finished)
        compact_below = _COMPACT_BELOW_WITH_NEWCOMERS if self._num_due() else _COMPACT_BELOW
        self._batch.forward(tokens, compact_below=compact_below)

    def _allowed(self) -> dict[int, npt.NDArray[np.bool_]]:
        """The tokens that constraints allow next, by slot."""
        allowed = {}
        for slot, row in enumerate(self._batch.slots):
            if row is not None and row.guide is not None:
                try:
                    allowed[slot] = row.guide.allowed()
                except Exception as error:  # noqa: BLE001 - one caller's constraint is no one else's matter
                    self._fail(row.job, error)
        return allowed

    def _append(self, row: Row, token: int, logprob: float) -> None:
        try:
            row.generation = self._rules.append(row, token, logprob)
        except Exception as error:  # noqa: BLE001 - one caller's row is no one else's matter
            self._fail(row.job, error)

    def _tell(self, finished: Sequence[Row]) -> None:
        for row in finished:
            if row.job.gone:
                continue
            try:
                row.job.tell(row)
            except Exception as error:  # noqa: BLE001 - the caller's event loop is gone
                self._fail(row.job, error)
            if not row.job.num_unfinished:
                with self._lock:
                    self._jobs.discard(row.job)

    def _fail(self, job: Job, error: Exception) -> None:
        job.fail(error)
        self._someone_left = True

    def _fail_running(self, error: Exception) -> None:
        """What befalls the running batch befalls all who are in it, and leaves the engine as good as new."""
        _log.exception("decoding failed")
        jobs = {row.job for row in [*self._batch.rows, *(self._prefill.rows if self._prefill else ())]}
        self._prefill = None
        self._batch.clear()
        for job in jobs:
            self._fail(job, error)
        self._recount()


def _alike(length: int, other: int) -> bool:
    """Whether prompts of these lengths can stand together without much padding."""
    return abs(length - other) <= max(_ALIKE_TOKENS, _ALIKE_SHARE * other)
