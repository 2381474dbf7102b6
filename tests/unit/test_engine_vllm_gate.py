"""Calls overlap, a swap of weights runs alone, and nobody overtakes it."""

from __future__ import annotations

import asyncio

import pytest

from rlaif.engine.vllm.gate import Gate


async def read(gate: Gate, name: str, told: list[str], done: asyncio.Event) -> None:
    async with gate.reading():
        told.append(f"{name} in")
        await done.wait()
        told.append(f"{name} out")


async def write(gate: Gate, told: list[str]) -> None:
    async with gate.writing():
        told.append("swap")


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_swap_waits_for_those_inside_and_those_that_come_later_wait_for_it() -> None:
    gate, told = Gate(), list[str]()
    first, second, late = (asyncio.Event() for _ in range(3))
    async with asyncio.TaskGroup() as group:
        group.create_task(read(gate, "a", told, first))
        group.create_task(read(gate, "b", told, second))
        await settled()
        group.create_task(write(gate, told))
        await settled()
        group.create_task(read(gate, "c", told, late))
        await settled()
        assert told == ["a in", "b in"]
        first.set()
        await settled()
        assert told == ["a in", "b in", "a out"]
        second.set()
        await settled()
        assert told == ["a in", "b in", "a out", "b out", "swap", "c in"]
        late.set()


async def test_a_swap_that_is_cancelled_or_fails_lets_the_others_go_on() -> None:
    gate, told, done = Gate(), list[str](), asyncio.Event()
    reader = asyncio.create_task(read(gate, "a", told, done))
    await settled()
    swap = asyncio.create_task(write(gate, told))
    await settled()
    swap.cancel()
    with pytest.raises(asyncio.CancelledError):
        await swap
    with pytest.raises(RuntimeError):
        async with asyncio.timeout(5), gate.reading():
            raise RuntimeError("a call fails")
    done.set()
    await reader
    await write(gate, told)
    assert told == ["a in", "a out", "swap"]
