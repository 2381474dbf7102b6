"""The one thread in which an engine's torch work runs, so that the event loop stays free."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


class CancelledWorkError(Exception):
    """The caller went away; raised inside the worker, never seen outside."""


class Worker:
    """Runs work in order of arrival, one at a time, without gradients."""

    def __init__(self, *, num_threads: int) -> None:
        self._num_threads = num_threads
        self._executor = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="rlaif-engine", initializer=self._initialize
        )

    def run_blocking(self, work: Callable[[], Result]) -> Result:
        """The work's result; blocks the calling thread."""
        return self._submit(work).result()

    async def run(self, work: Callable[[threading.Event], Result]) -> Result:
        """The work's result. The event it gets is set when the awaiting task is cancelled."""
        cancelled = threading.Event()
        future = self._submit(lambda: work(cancelled))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def close(self) -> None:
        """Ends the thread once what it is doing is done; work still waiting is dropped."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _submit(self, work: Callable[[], Result]) -> Future[Result]:
        def run() -> Result:
            with torch.inference_mode():
                return work()

        return self._executor.submit(run)

    def _initialize(self) -> None:
        # OpenMP keeps the number of threads per calling thread: it must be set in this one.
        if self._num_threads:
            torch.set_num_threads(self._num_threads)
