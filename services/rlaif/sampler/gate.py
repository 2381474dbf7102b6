"""Who may use the engine: many calls at a time, or one swap of weights alone."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class Gate:
    """A readers/writer lock that is fair: a writer waits for the readers inside only, and readers then for it alone.

    Readers that wait go in by priority, smallest first, then in order of arrival; at most `max_readers` at a time.
    """

    def __init__(self, *, max_readers: int | None = None) -> None:
        self._max_readers = max_readers
        self._num_readers = 0
        self._writing = False
        self._readers: list[tuple[int, int, asyncio.Future[None]]] = []
        """A heap."""
        self._writers: deque[asyncio.Future[None]] = deque()
        self._orders = itertools.count()
        self._writer_was_last = False

    @asynccontextmanager
    async def reading(self, *, priority: int = 0) -> AsyncIterator[None]:
        """Inside beside other readers."""
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._readers, (priority, next(self._orders), turn))
        await self._wait(turn, self._leave_reading)
        try:
            yield
        finally:
            self._leave_reading()

    @asynccontextmanager
    async def writing(self, *, timeout_seconds: float | None = None) -> AsyncIterator[None]:
        """Inside alone. TimeoutError when the readers inside take longer to leave; who waits goes on then."""
        turn = asyncio.get_running_loop().create_future()
        self._writers.append(turn)
        async with asyncio.timeout(timeout_seconds):
            await self._wait(turn, self._leave_writing)
        try:
            yield
        finally:
            self._leave_writing()

    async def _wait(self, turn: asyncio.Future[None], leave: Callable[[], None]) -> None:
        self._advance()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                leave()
            else:
                turn.cancel()
                self._advance()
            raise

    def _leave_reading(self) -> None:
        self._num_readers -= 1
        self._advance()

    def _leave_writing(self) -> None:
        self._writing = False
        self._writer_was_last = True
        self._advance()

    def _advance(self) -> None:
        """Lets in whoever's turn it is."""
        while self._writers and self._writers[0].done():
            self._writers.popleft()
        while self._readers and self._readers[0][-1].done():
            heapq.heappop(self._readers)
        if self._writing:
            return
        # Writers that follow each other let those readers in between who waited for the first.
        if self._writers and not (self._writer_was_last and self._readers):
            if not self._num_readers:
                self._writing = True
                self._writers.popleft().set_result(None)
            return
        while self._readers and (self._max_readers is None or self._num_readers < self._max_readers):
            _, _, turn = heapq.heappop(self._readers)
            if not turn.done():
                self._writer_was_last = False
                self._num_readers += 1
                turn.set_result(None)
