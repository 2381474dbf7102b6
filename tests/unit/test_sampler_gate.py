"""The gate in front of the engine: who goes in, in which order, and what a cancelled wait leaves behind."""

from __future__ import annotations

import asyncio

import pytest

from rlaif.sampler.gate import Gate


class Log:
    """Callers who note when they go in, and leave when told."""

    def __init__(self, gate: Gate) -> None:
        self.gate, self.inside = gate, list[str]()
        self.entered: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._leave: dict[str, asyncio.Event] = {}

    async def arrive(self, name: str, *, writes: bool = False, priority: int = 0) -> None:
        self._leave[name] = asyncio.Event()

        async def visit() -> None:
            async with self.gate.writing() if writes else self.gate.reading(priority=priority):
                self.entered.append(name)
                self.inside.append(name)
                try:
                    await self._leave[name].wait()
                finally:
                    self.inside.remove(name)

        self.tasks[name] = asyncio.create_task(visit())
        await settle()

    async def leave(self, *names: str) -> None:
        for name in names:
            self._leave[name].set()
        await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_writer_waits_for_the_readers_inside_and_new_readers_for_the_writer() -> None:
    log = Log(Gate())
    await log.arrive("a")
    await log.arrive("b")
    await log.arrive("w", writes=True)
    await log.arrive("c")
    assert log.inside == ["a", "b"]
    await log.leave("a")
    assert log.inside == ["b"]
    await log.leave("b")
    assert log.inside == ["w"]
    await log.leave("w")
    assert log.inside == ["c"]


async def test_readers_that_wait_are_not_starved_by_writers() -> None:
    log = Log(Gate())
    await log.arrive("w1", writes=True)
    await log.arrive("a")
    await log.arrive("w2", writes=True)
    await log.arrive("b")
    await log.leave("w1")
    assert log.inside == ["a", "b"]
    await log.arrive("c")
    await log.leave("a", "b")
    assert log.inside == ["w2"]
    await log.leave("w2")
    assert log.inside == ["c"]


async def test_one_reader_at_a_time_goes_by_priority_then_arrival() -> None:
    log = Log(Gate(max_readers=1))
    await log.arrive("first", priority=9)
    for name, priority in (("late", 5), ("early", 0), ("later", 5), ("urgent", -3)):
        await log.arrive(name, priority=priority)
    for name in ("first", "urgent", "early", "late", "later"):
        assert log.inside == [name]
        await log.leave(name)
    assert log.inside == []


async def test_who_gives_up_waiting_holds_up_nobody() -> None:
    log = Log(Gate())
    await log.arrive("a")
    await log.arrive("w", writes=True)
    await log.arrive("b")
    log.tasks["w"].cancel()
    await settle()
    assert log.inside == ["a", "b"]
    await log.arrive("v", writes=True)
    await log.arrive("c")
    log.tasks["c"].cancel()
    await log.leave("a", "b")
    assert log.inside == ["v"]
    await log.leave("v")
    await log.arrive("d", writes=True)
    assert log.inside == ["d"]


async def test_who_is_cancelled_in_the_moment_of_going_in_leaves_again() -> None:
    for writes in (False, True):
        log = Log(Gate(max_readers=1))
        await log.arrive("a")
        await log.arrive("b", writes=writes)
        # Both before the event loop runs again: the turn is given, then the wait for it is cancelled.
        log.tasks["a"].cancel()
        await asyncio.sleep(0)
        log.tasks["b"].cancel()
        await settle()
        await log.arrive("c", writes=True)
        assert log.inside == ["c"]


async def test_a_writer_can_wait_for_a_time_only() -> None:
    gate = Gate()
    log = Log(gate)
    await log.arrive("a")
    with pytest.raises(TimeoutError):
        async with gate.writing(timeout_seconds=0.01):
            pytest.fail("a reader was inside")
    await log.arrive("b")
    assert log.inside == ["a", "b"]
