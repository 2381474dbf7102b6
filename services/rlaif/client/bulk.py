"""Many items through a batched call: in order, a bounded number of batches in flight, failures raised or returned.

A full queue is waited out for as long as it asks, within the batch's time. A batch that the service refuses as wrong
input is cut in halves until the items that are wrong stand alone, so that one bad item does not fail the others.
"""

from __future__ import annotations

import asyncio
import contextvars
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Literal, TypeVar

from rlaif.core.errors import InvalidInputError, QuotaExceededError, RlaifError

Errors = Literal["raise", "return"]
"""What becomes of an item that fails: its error is raised, or stands in the place of its result."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_INDEX = re.compile(r"(?<=\[)\d+(?=\])")


@dataclass(frozen=True)
class Bulk:
    """How a job is cut and sent; ValueError when batch size or concurrency is below 1. The time is of each batch."""

    batch_size: int
    concurrency: int
    timeout_seconds: float
    errors: Errors

    def __post_init__(self) -> None:
        for name in ("batch_size", "concurrency"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    def batches(self, items: Iterable[_Item]) -> Iterator[tuple[int, list[_Item]]]:
        """(position of its first item, items) of each batch, read from `items` only when wanted."""
        rest, start = iter(items), 0
        while batch := list(islice(rest, self.batch_size)):
            yield start, batch
            start += len(batch)


Send = Callable[[Sequence[_Item], float], Sequence[_Result]]
"""(items, seconds left) to one result an item."""
AioSend = Callable[[Sequence[_Item], float], Awaitable[Sequence[_Result]]]


def run_bulk(items: Iterable[_Item], send: Send[_Item, _Result], bulk: Bulk) -> Iterator[list[_Result | RlaifError]]:
    """Results of each batch, in order. Left early, batches in flight are not waited for."""
    executor = ThreadPoolExecutor(bulk.concurrency, thread_name_prefix="rlaif-bulk")
    batches = bulk.batches(items)

    def start(start_index: int, batch: Sequence[_Item]) -> Future[list[_Result | RlaifError]]:
        return executor.submit(contextvars.copy_context().run, _send, start_index, batch, send, bulk)

    try:
        waiting = deque(start(*batch) for batch in islice(batches, bulk.concurrency))
        while waiting:
            results = waiting.popleft().result()
            waiting.extend(start(*batch) for batch in islice(batches, 1))
            yield results
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


async def run_bulk_aio(
    items: Iterable[_Item], send: AioSend[_Item, _Result], bulk: Bulk
) -> AsyncGenerator[list[_Result | RlaifError], None]:
    """Results of each batch, in order. Left early, batches in flight are cancelled."""
    batches = bulk.batches(items)

    def start(start_index: int, batch: Sequence[_Item]) -> asyncio.Task[list[_Result | RlaifError]]:
        return asyncio.create_task(_send_aio(start_index, batch, send, bulk))

    waiting = deque(start(*batch) for batch in islice(batches, bulk.concurrency))
    try:
        while waiting:
            results = await waiting[0]
            waiting.popleft()
            waiting.extend(start(*batch) for batch in islice(batches, 1))
            yield results
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def _send(start: int, items: Sequence[_Item], send: Send[_Item, _Result], bulk: Bulk) -> list[_Result | RlaifError]:
    deadline = time.monotonic() + bulk.timeout_seconds
    while True:
        try:
            return list(send(items, max(0.0, deadline - time.monotonic())))
        except QuotaExceededError as error:
            if not _can_wait(error, deadline):
                return _failed(items, error, bulk)
            time.sleep(error.retry_after_seconds)
        except InvalidInputError as error:
            if bulk.errors == "raise" or len(items) == 1:
                return _failed(items, _renumbered(error, start), bulk)
            half = len(items) // 2
            return _send(start, items[:half], send, bulk) + _send(start + half, items[half:], send, bulk)
        except RlaifError as error:
            return _failed(items, error, bulk)


async def _send_aio(
    start: int, items: Sequence[_Item], send: AioSend[_Item, _Result], bulk: Bulk
) -> list[_Result | RlaifError]:
    deadline = time.monotonic() + bulk.timeout_seconds
    while True:
        try:
            return list(await send(items, max(0.0, deadline - time.monotonic())))
        except QuotaExceededError as error:
            if not _can_wait(error, deadline):
                return _failed(items, error, bulk)
            await asyncio.sleep(error.retry_after_seconds)
        except InvalidInputError as error:
            if bulk.errors == "raise" or len(items) == 1:
                return _failed(items, _renumbered(error, start), bulk)
            half = len(items) // 2
            return await _send_aio(start, items[:half], send, bulk) + await _send_aio(
                start + half, items[half:], send, bulk
            )
        except RlaifError as error:
            return _failed(items, error, bulk)


def _can_wait(error: QuotaExceededError, deadline: float) -> bool:
    return time.monotonic() + error.retry_after_seconds < deadline


def _failed(items: Sequence[_Item], error: RlaifError, bulk: Bulk) -> list[_Result | RlaifError]:
    if bulk.errors == "raise":
        raise error
    return [error] * len(items)


def _renumbered(error: InvalidInputError, start: int) -> InvalidInputError:
    """The error with the item's position in the whole job: pairs[3] of a batch that begins at 64 is pairs[67]."""
    if not error.field or not error.field.startswith(("pairs[", "responses[", "inputs[")):
        return error
    field = _INDEX.sub(lambda index: str(int(index.group()) + start), error.field, count=1)
    return InvalidInputError(error.message, reason=error.reason, field=field, metadata=error.metadata)
