"""Lets calls overlap and a swap of weights run alone: it waits for those inside, later ones wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Many readers or one writer, in order of arrival; for one event loop."""

    def __init__(self) -> None:
        self._open, self._idle, self._writer = asyncio.Event(), asyncio.Event(), asyncio.Lock()
        self._open.set()
        self._idle.set()
        self._readers = 0

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Inside, no writer is."""
        while not self._open.is_set():
            await self._open.wait()
        self._readers += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._readers -= 1
            if not self._readers:
                self._idle.set()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Inside, nobody else is."""
        async with self._writer:
            self._open.clear()
            try:
                await self._idle.wait()
                yield
            finally:
                self._open.set()
