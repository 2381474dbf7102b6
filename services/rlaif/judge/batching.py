"""Shared batches: the work of many callers, run together or one caller at a time, behind a bounded queue."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rlaif.core.errors import QuotaExceededError, UnavailableError

Item = TypeVar("Item")
Result = TypeVar("Result")

_MIN_RETRY_SECONDS = 0.1


@dataclass(frozen=True)
class _Unit(Generic[Item, Result]):
    """What one caller submitted; never split over batches."""

    items: Sequence[Item]
    results: asyncio.Future[list[Result]]
    arrival: float


class Batcher(Generic[Item, Result]):
    """Runs submitted units in arrival order, one batch at a time.

    With `mix` a batch joins units of several callers: it starts when `max_batch_items` are waiting or the oldest has
    waited `max_delay_seconds`. Without it every unit is a batch of its own, so results cannot depend on the neighbours.
    """

    def __init__(
        self,
        execute: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        mix: bool,
        max_batch_items: int,
        max_delay_seconds: float,
        max_queue_items: int,
    ) -> None:
        self._execute = execute
        self._mix = mix
        self._max_batch_items = max_batch_items
        self._max_delay_seconds = max_delay_seconds
        self._max_queue_items = max_queue_items
        self._queue: deque[_Unit[Item, Result]] = deque()
        self._num_queued = 0
        self._changed = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._batch_seconds = 0.0
        self._closed = False

    @property
    def num_queued(self) -> int:
        """Items waiting for a batch."""
        return self._num_queued

    async def submit(self, items: Sequence[Item]) -> list[Result]:
        """One result an item, in order; QuotaExceededError when the queue is full."""
        if not items:
            return []
        if self._closed:
            raise UnavailableError("the service is shutting down", reason="SHUTTING_DOWN")
        queued = self.num_queued
        if queued and queued + len(items) > self._max_queue_items:
            raise QuotaExceededError(
                f"{queued} items are waiting and at most {self._max_queue_items} may",
                retry_after_seconds=max(_MIN_RETRY_SECONDS, self._batch_seconds),
            )
        loop = asyncio.get_running_loop()
        unit: _Unit[Item, Result] = _Unit(items, loop.create_future(), loop.time())
        self._queue.append(unit)
        self._num_queued += len(items)
        self._changed.set()
        if self._worker is None:
            # In no caller's context: its deadline and trace are not those of the batches to come.
            self._worker = asyncio.create_task(self._run(), context=contextvars.Context())
        return await unit.results

    async def close(self) -> None:
        """Ends the work that was accepted, then stops."""
        self._closed = True
        self._changed.set()
        if self._worker is not None:
            await self._worker

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
        loop = asyncio.get_running_loop()
        due = self._queue[0].arrival + self._max_delay_seconds
        while self.num_queued < self._max_batch_items and not self._closed and (left := due - loop.time()) > 0:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except TimeoutError:
                return

    def _take(self) -> list[_Unit[Item, Result]]:
        units: list[_Unit[Item, Result]] = []
        num_items = 0
        while self._queue:
            unit = self._queue[0]
            if units and (not self._mix or num_items + len(unit.items) > self._max_batch_items):
                break
            self._queue.popleft()
            self._num_queued -= len(unit.items)
            if not unit.results.cancelled():
                units.append(unit)
                num_items += len(unit.items)
        return units

    async def _run_batch(self, units: Sequence[_Unit[Item, Result]]) -> None:
        items = [item for unit in units for item in unit.items]
        try:
            results = list(await self._execute(items))
            assert len(results) == len(items)
        except Exception as error:  # noqa: BLE001 - every caller of the batch gets it
            for unit in units:
                if not unit.results.done():
                    unit.results.set_exception(error)
            return
        position = 0
        for unit in units:
            if not unit.results.done():
                unit.results.set_result(results[position : position + len(unit.items)])
            position += len(unit.items)
