"""Shared batches: the work of many callers in fair turns, run together or one at a time, behind a bounded queue."""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rlaif.core.errors import InvalidInputError, QuotaExceededError, UnavailableError
from rlaif.runtime.context import current_caller

Item = TypeVar("Item")
Result = TypeVar("Result")

_MIN_RETRY_SECONDS = 0.1


@dataclass(frozen=True)
class _Unit(Generic[Item, Result]):
    """What one caller submitted, or a turn's worth of it; never split over batches."""

    items: Sequence[Item]
    size: int
    results: asyncio.Future[list[Result]]
    caller: str
    arrival: float


class Batcher(Generic[Item, Result]):
    """Runs submitted units one batch at a time, each caller in its turn.

    Callers share the engine fairly by size (start-time fair queueing, Goyal, Vin and Cheng 1996): who has had little
    goes first, so a single item waits for one turn of a long job, not for all of it. Units of one caller keep their
    order. With `mix` a batch joins units of several callers: it starts when `max_batch_size` are waiting or the oldest
    has waited `max_delay_seconds`. Without it every unit is a batch of its own, so results cannot depend on the
    neighbours. Sizes count items, or what `size_of` says of each; `on_wait` hears how long each unit waited, seconds.
    """

    def __init__(
        self,
        execute: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        mix: bool,
        max_batch_size: int,
        max_delay_seconds: float,
        max_queue_size: int,
        max_turn_size: int | None = None,
        size_of: Callable[[Item], int] | None = None,
        unit: str = "items",
        on_wait: Callable[[float], None] | None = None,
    ) -> None:
        self._execute = execute
        self._mix = mix
        self._max_batch_size = max_batch_size
        self._max_delay_seconds = max_delay_seconds
        self._max_queue_size = max_queue_size
        self._max_turn_size = max_turn_size
        self._size_of = size_of
        self._unit = unit
        self._on_wait = on_wait
        self._queue: list[tuple[float, int, _Unit[Item, Result]]] = []
        """A heap by start tag, then arrival."""
        self._order = itertools.count()
        self._clock = 0.0
        self._finish: dict[str, float] = {}
        """Where each caller's next unit starts at the earliest; those behind the clock are forgotten."""
        self._queued: Counter[str] = Counter()
        self._size_queued = 0
        self._changed = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._batch_seconds = 0.0
        self._closed = False

    @property
    def size_queued(self) -> int:
        """What waits for a batch."""
        return self._size_queued

    async def submit(self, items: Sequence[Item]) -> list[Result]:
        """One result an item, in order; QuotaExceededError when the queue, or the caller's share of it, is full."""
        if not items:
            return []
        if self._closed:
            raise UnavailableError("the service is shutting down", reason="SHUTTING_DOWN")
        caller = current_caller()
        sizes = [1] * len(items) if self._size_of is None else list(map(self._size_of, items))
        self._admit(sum(sizes), caller=caller)
        units = [self._enqueue(part, size=size, caller=caller) for part, size in self._turns(items, sizes)]
        self._changed.set()
        if self._worker is None:
            # In no caller's context: its deadline and trace are not those of the batches to come.
            self._worker = asyncio.create_task(self._run(), context=contextvars.Context())
        results: list[Result] = []
        try:
            for unit in units:
                results.extend(await unit.results)
        finally:
            for unit in units:
                if not unit.results.cancel() and not unit.results.cancelled():
                    # Read, so that the failure of a later turn is not reported as never retrieved.
                    unit.results.exception()
            if any(unit.results.cancelled() for unit in units):
                self._withdraw(caller)
        return results

    def check_room(self) -> None:
        """QuotaExceededError when the caller could not submit anything now: asked before work that goes ahead of it."""
        self._admit(1, caller=current_caller())

    async def close(self) -> None:
        """Ends the work that was accepted, then stops."""
        self._closed = True
        self._changed.set()
        if self._worker is not None:
            await self._worker

    def _admit(self, size: int, *, caller: str) -> None:
        """A full queue refuses whoever holds more than an equal share of it; twice its size refuses everyone."""
        queued, most = self.size_queued, self._max_queue_size
        if not queued or queued + size <= most:
            return
        share = most // len({*self._queued, caller})
        if self._queued[caller] + size <= share and queued + size <= 2 * most:
            return
        raise QuotaExceededError(
            f"{queued} {self._unit} are waiting and at most {most} may, of one caller at most {share}",
            retry_after_seconds=max(_MIN_RETRY_SECONDS, self._batch_seconds),
        )

    def _turns(self, items: Sequence[Item], sizes: Sequence[int]) -> Iterator[tuple[Sequence[Item], int]]:
        """(items, their size) of each turn; an item larger than a turn has one to itself."""
        most, start, total = self._max_turn_size, 0, 0
        for index, size in enumerate(sizes):
            if most is not None and index > start and total + size > most:
                yield items[start:index], total
                start, total = index, 0
            total += size
        yield items[start:], total

    def _enqueue(self, items: Sequence[Item], *, size: int, caller: str) -> _Unit[Item, Result]:
        loop = asyncio.get_running_loop()
        unit: _Unit[Item, Result] = _Unit(items, size, loop.create_future(), caller, loop.time())
        start = max(self._clock, self._finish.get(caller, 0.0))
        self._finish[caller] = start + size
        heapq.heappush(self._queue, (start, next(self._order), unit))
        self._queued[caller] += size
        self._size_queued += size
        return unit

    def _withdraw(self, caller: str) -> None:
        """Takes what a caller gave up out of the queue: it holds no place, and the caller is not charged for it."""
        gone = [entry for entry in self._queue if entry[-1].caller == caller and entry[-1].results.cancelled()]
        if not gone:
            return
        self._queue = [entry for entry in self._queue if not entry[-1].results.cancelled()]
        heapq.heapify(self._queue)
        left = [start + unit.size for start, _, unit in self._queue if unit.caller == caller]
        self._finish[caller] = max([min(start for start, _, _ in gone), *left])
        for _, _, unit in gone:
            self._discount(unit)

    def _dequeue(self) -> _Unit[Item, Result]:
        self._clock, _, unit = heapq.heappop(self._queue)
        self._discount(unit)
        return unit

    def _discount(self, unit: _Unit[Item, Result]) -> None:
        self._size_queued -= unit.size
        self._queued[unit.caller] -= unit.size
        if not self._queued[unit.caller]:
            del self._queued[unit.caller]
            self._finish = {caller: finish for caller, finish in self._finish.items() if finish > self._clock}

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self._queue and not self._closed:
                self._changed.clear()
                await self._changed.wait()
            if not self._queue:
                return
            if self._mix:
                await self._wait_for_company()
            units = self._take()
            if not units:
                continue
            start = loop.time()
            await self._run_batch(units)
            self._batch_seconds = 0.8 * self._batch_seconds + 0.2 * (loop.time() - start)

    async def _wait_for_company(self) -> None:
        if self.size_queued >= self._max_batch_size:
            return
        loop = asyncio.get_running_loop()
        due = min(unit.arrival for _, _, unit in self._queue) + self._max_delay_seconds
        while self.size_queued < self._max_batch_size and not self._closed and (left := due - loop.time()) > 0:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except TimeoutError:
                return

    def _take(self) -> list[_Unit[Item, Result]]:
        units: list[_Unit[Item, Result]] = []
        size, now = 0, asyncio.get_running_loop().time()
        while self._queue:
            unit = self._queue[0][-1]
            if units and (not self._mix or size + unit.size > self._max_batch_size):
                break
            self._dequeue()
            if not unit.results.cancelled():
                units.append(unit)
                size += unit.size
                if self._on_wait is not None:
                    self._on_wait(now - unit.arrival)
        return units

    async def _run_batch(self, units: Sequence[_Unit[Item, Result]]) -> None:
        """What is refused as wrong input is run again in halves: what one caller sent must not fail its neighbours."""
        items = [item for unit in units for item in unit.items]
        try:
            results = list(await self._execute(items))
            assert len(results) == len(items)
        except Exception as error:  # noqa: BLE001 - every caller of the batch gets it
            if isinstance(error, InvalidInputError) and len(units) > 1:
                half = len(units) // 2
                for part in (units[:half], units[half:]):
                    if wanted := [unit for unit in part if not unit.results.done()]:
                        await self._run_batch(wanted)
                return
            for unit in units:
                if not unit.results.done():
                    unit.results.set_exception(error)
            return
        position = 0
        for unit in units:
            if not unit.results.done():
                unit.results.set_result(results[position : position + len(unit.items)])
            position += len(unit.items)
