"""The one thread in which an engine's torch work runs, so that the event loop stays free."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from rlaif.core.errors import UnavailableError

Result = TypeVar("Result")


class CancelledWorkError(Exception):
    """The caller went away; raised inside the worker, never seen outside."""


class Stepper(Protocol):
    """Work without an end, done in steps between what callers ask for one by one."""

    def busy(self) -> bool:
        """Whether a step would do anything. Called with the worker's lock held."""

    def step(self) -> None:
        """Does a little; raises nothing."""

    def close(self) -> None:
        """Gives up all that has not begun; the rest is still stepped to its end."""


@dataclass(frozen=True)
class _Task:
    """Something to run once, as soon as it is `ready` and what came before it is done."""

    run: Callable[[], Any]
    ready: Callable[[], bool]
    future: Future[Any]


class Worker:
    """Runs tasks in order of arrival and a stepper between them, one at a time, without gradients.

    Where both have work, the thread's time is shared equally: neither a long decode nor many tasks hold up the other.
    """

    def __init__(self, *, num_threads: int) -> None:
        self._num_threads = num_threads
        self._changed = threading.Condition()
        self._tasks: deque[_Task] = deque()
        self._stepper: Stepper | None = None
        self._task_seconds = self._step_seconds = 0.0
        self._closed = False
        # A daemon: a process that ends without closing its engines does not wait for them.
        self._thread = threading.Thread(target=self._run, name="rlaif-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread still runs."""
        return self._thread.is_alive()

    def attach(self, stepper: Stepper) -> None:
        """The one stepper that runs here from now on; `wake` says that it has work."""
        with self._changed:
            self._stepper = stepper

    def wake(self) -> None:
        """Looks at the stepper again."""
        with self._changed:
            self._changed.notify()

    def run_blocking(self, work: Callable[[], Result]) -> Result:
        """The work's result; blocks the calling thread."""
        result: Result = self.submit(work).result()
        return result

    async def run(self, work: Callable[[threading.Event], Result]) -> Result:
        """The work's result. The event it gets is set when the awaiting task is cancelled."""
        cancelled = threading.Event()
        future = self.submit(lambda: work(cancelled))
        try:
            result: Result = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return result

    def submit(self, work: Callable[[], Result], *, ready: Callable[[], bool] = lambda: True) -> Future[Result]:
        """Queues work. Until it is `ready`, work that came later waits as well.

        `ready` is called with the worker's lock held.
        """
        task = _Task(work, ready, Future[Any]())
        with self._changed:
            if self._closed:
                raise UnavailableError("the engine is closed")
            self._tasks.append(task)
            self._changed.notify()
        return task.future

    def close(self) -> None:
        """Ends the thread once what it is doing is done; work still waiting is dropped."""
        with self._changed:
            self._closed = True
            dropped, self._tasks = self._tasks, deque()
            self._changed.notify()
        for task in dropped:
            if task.future.set_running_or_notify_cancel():
                task.future.set_exception(UnavailableError("the engine is closed"))
        self._thread.join()

    def _run(self) -> None:
        # OpenMP keeps the number of threads per calling thread: it must be set in this one.
        if self._num_threads:
            torch.set_num_threads(self._num_threads)
        with torch.inference_mode():
            while True:
                with self._changed:
                    while not (self._task_is_ready() or self._steps() or self._closed):
                        self._changed.wait()
                    takes_task = self._task_is_ready() and not (self._steps() and self._stepper_is_behind())
                    task = self._tasks.popleft() if takes_task else None
                    if task is None and self._closed and not self._close_stepper():
                        return
                self._take_turn(task)

    def _task_is_ready(self) -> bool:
        return bool(self._tasks) and self._tasks[0].ready()

    def _steps(self) -> bool:
        return self._stepper is not None and self._stepper.busy()

    def _stepper_is_behind(self) -> bool:
        return self._step_seconds < self._task_seconds

    def _close_stepper(self) -> bool:
        """Whether steps are left after giving up what has not begun."""
        if self._stepper is not None:
            self._stepper.close()
        return self._steps()

    def _take_turn(self, task: _Task | None) -> None:
        started = time.perf_counter()
        if task is not None:
            _execute(task)
            self._task_seconds += time.perf_counter() - started
            # Who had nothing to do saves up no time.
            if not self._locked(self._steps):
                self._step_seconds = max(self._step_seconds, self._task_seconds)
        else:
            assert self._stepper is not None
            self._stepper.step()
            self._step_seconds += time.perf_counter() - started
            if not self._locked(self._task_is_ready):
                self._task_seconds = max(self._task_seconds, self._step_seconds)

    def _locked(self, ask: Callable[[], bool]) -> bool:
        with self._changed:
            return ask()


def _execute(task: _Task) -> None:
    if not task.future.set_running_or_notify_cancel():
        return
    try:
        result = task.run()
    except BaseException as error:  # noqa: BLE001 - told to whoever waits
        task.future.set_exception(error)
    else:
        task.future.set_result(result)
