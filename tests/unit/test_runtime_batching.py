"""Who is batched with whom, and what happens when the queue is full."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from rlaif.core.errors import InvalidInputError, QuotaExceededError, UnavailableError
from rlaif.runtime.batching import Batcher
from rlaif.runtime.context import CallContext, enter_call


class Recorder:
    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.started = asyncio.Event()

    async def execute(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.started.set()
        await self.gate.wait()
        return [item * 10 for item in items]


def make(
    recorder: Recorder,
    *,
    mix: bool,
    max_batch_size: int = 8,
    max_queue_size: int = 100,
    max_turn_size: int | None = None,
) -> Batcher[int, int]:
    return Batcher(
        recorder.execute,
        mix=mix,
        max_batch_size=max_batch_size,
        max_delay_seconds=0.01,
        max_queue_size=max_queue_size,
        max_turn_size=max_turn_size,
    )


async def test_units_of_many_callers_share_a_batch_when_mixing():
    recorder = Recorder()
    batcher = make(recorder, mix=True)
    results = await asyncio.gather(*(batcher.submit([i, i + 100]) for i in range(3)))
    assert results == [[0, 1000], [10, 1010], [20, 1020]]
    assert recorder.batches == [[0, 100, 1, 101, 2, 102]]
    await batcher.close()


async def test_a_unit_is_never_split_nor_mixed_without_mixing():
    recorder = Recorder()
    batcher = make(recorder, mix=False, max_batch_size=1)
    await asyncio.gather(batcher.submit([1, 2, 3]), batcher.submit([4]))
    assert recorder.batches == [[1, 2, 3], [4]]
    await batcher.close()


async def test_a_batch_holds_at_most_its_limit():
    recorder = Recorder()
    batcher = make(recorder, mix=True, max_batch_size=3)
    await asyncio.gather(*(batcher.submit([i]) for i in range(7)))
    assert [len(batch) for batch in recorder.batches] == [3, 3, 1]
    await batcher.close()


async def test_a_full_queue_refuses_and_says_when_to_try_again():
    recorder = Recorder()
    recorder.gate.clear()
    batcher = make(recorder, mix=False, max_queue_size=2)
    running = asyncio.create_task(batcher.submit([0]))
    await recorder.started.wait()
    waiting = [running, *(asyncio.create_task(batcher.submit([i])) for i in (1, 2))]
    await asyncio.sleep(0)
    with pytest.raises(QuotaExceededError) as caught:
        await batcher.submit([9])
    assert caught.value.retry_after_seconds > 0
    recorder.gate.set()
    assert await asyncio.gather(*waiting) == [[0], [10], [20]]
    await batcher.close()


async def test_a_unit_larger_than_the_queue_is_served_when_the_queue_is_empty():
    recorder = Recorder()
    batcher = make(recorder, mix=False, max_queue_size=2)
    assert await batcher.submit([1, 2, 3]) == [10, 20, 30]
    await batcher.close()


async def test_an_error_reaches_every_caller_of_its_batch_and_no_other():
    async def fail_once(items: Sequence[int]) -> list[int]:
        if 1 in items:
            raise UnavailableError("gone")
        return list(items)

    batcher = Batcher(fail_once, mix=False, max_batch_size=8, max_delay_seconds=0.01, max_queue_size=8)
    first, second = await asyncio.gather(batcher.submit([1]), batcher.submit([2]), return_exceptions=True)
    assert isinstance(first, UnavailableError)
    assert second == [2]
    await batcher.close()


async def test_what_one_caller_sent_wrong_fails_none_of_its_neighbours():
    batches: list[list[int]] = []

    async def refuse(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        if wrong := [item for item in items if item < 0]:
            raise InvalidInputError(f"{wrong[0]} is negative")
        return [item * 10 for item in items]

    batcher = Batcher(refuse, mix=True, max_batch_size=16, max_delay_seconds=0.01, max_queue_size=100)
    units = [[0], [1, 2], [-3, 4], [5], [6], [-7]]
    results = await asyncio.gather(*map(batcher.submit, units), return_exceptions=True)
    assert [result for result in results if isinstance(result, list)] == [[0], [10, 20], [50], [60]]
    assert [str(result) for result in results if isinstance(result, Exception)] == ["-3 is negative", "-7 is negative"]
    assert batches[0] == [0, 1, 2, -3, 4, 5, 6, -7]
    assert len(batches) <= 2 * len(units)
    await batcher.close()


async def test_a_caller_that_left_is_not_computed():
    recorder = Recorder()
    recorder.gate.clear()
    batcher = make(recorder, mix=False)
    running = asyncio.create_task(batcher.submit([1]))
    await asyncio.sleep(0)
    leaving = asyncio.create_task(batcher.submit([2]))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.sleep(0)
    recorder.gate.set()
    await running
    await batcher.close()
    assert recorder.batches == [[1]]


async def test_close_ends_accepted_work_and_refuses_more():
    recorder = Recorder()
    batcher = make(recorder, mix=True)
    accepted = asyncio.create_task(batcher.submit([1]))
    await asyncio.sleep(0)
    await batcher.close()
    assert await accepted == [10]
    with pytest.raises(UnavailableError):
        await batcher.submit([2])


def calling(caller: str, batcher: Batcher[int, int], items: Sequence[int]) -> asyncio.Task[list[int]]:
    """A submission by that caller, queued when this returns control to the loop."""

    async def submit() -> list[int]:
        enter_call(CallContext(peer=caller))
        return await batcher.submit(items)

    return asyncio.create_task(submit())


async def busy(recorder: Recorder, batcher: Batcher[int, int]) -> asyncio.Task[list[int]]:
    """Keeps the engine busy until the recorder's gate opens."""
    recorder.gate.clear()
    recorder.started.clear()
    task = calling("first", batcher, [0])
    await recorder.started.wait()
    return task


async def test_one_item_waits_for_one_turn_of_a_long_job_not_for_all_of_it():
    recorder = Recorder()
    batcher = make(recorder, mix=False, max_turn_size=4)
    running = await busy(recorder, batcher)
    long = calling("long", batcher, range(100, 140))
    await asyncio.sleep(0)
    short = calling("short", batcher, [1])
    await asyncio.sleep(0)
    recorder.gate.set()
    assert await short == [10]
    assert await long == [item * 10 for item in range(100, 140)]
    await running
    assert recorder.batches[1:3] == [[100, 101, 102, 103], [1]]
    assert [len(batch) for batch in recorder.batches] == [1, 4, 1, *[4] * 9]
    await batcher.close()


async def test_many_small_calls_of_one_caller_get_no_more_than_an_equal_share():
    recorder = Recorder()
    batcher = make(recorder, mix=False)
    running = await busy(recorder, batcher)
    many = [calling("many", batcher, [100 + i]) for i in range(20)]
    await asyncio.sleep(0)
    few = [calling("few", batcher, [i]) for i in range(1, 4)]
    await asyncio.sleep(0)
    recorder.gate.set()
    await asyncio.gather(running, *many, *few)
    assert [batch[0] for batch in recorder.batches[1:7]] == [100, 1, 101, 2, 102, 3]
    await batcher.close()


async def test_shares_are_of_items_not_of_calls():
    recorder = Recorder()
    batcher = make(recorder, mix=False)
    running = await busy(recorder, batcher)
    tasks = [calling("large", batcher, [100 + i] * 4) for i in range(2)]
    await asyncio.sleep(0)
    tasks += [calling("small", batcher, [i]) for i in range(1, 7)]
    await asyncio.sleep(0)
    recorder.gate.set()
    await asyncio.gather(running, *tasks)
    assert [batch[0] for batch in recorder.batches[1:]] == [100, 1, 2, 3, 4, 101, 5, 6]
    await batcher.close()


async def test_a_caller_returning_from_a_pause_has_saved_up_nothing():
    recorder = Recorder()
    batcher = make(recorder, mix=False)
    assert await calling("idle", batcher, [1]) == [10]
    for item in range(2, 30):
        await calling("steady", batcher, [item])
    running = await busy(recorder, batcher)
    tasks = [calling("steady", batcher, [200 + i]) for i in range(3)]
    await asyncio.sleep(0)
    tasks += [calling("idle", batcher, [300 + i]) for i in range(3)]
    await asyncio.sleep(0)
    recorder.batches.clear()
    recorder.gate.set()
    await asyncio.gather(running, *tasks)
    assert [batch[0] for batch in recorder.batches] == [300, 200, 301, 201, 302, 202]
    await batcher.close()


async def test_a_full_queue_still_admits_a_caller_below_its_share():
    recorder = Recorder()
    batcher = make(recorder, mix=False, max_queue_size=8)
    running = await busy(recorder, batcher)
    hoarder = calling("hoarder", batcher, range(100, 108))
    await asyncio.sleep(0)
    with pytest.raises(QuotaExceededError, match="of one caller at most 8"):
        await calling("hoarder", batcher, [1])
    modest = calling("modest", batcher, [2, 3, 4])
    await asyncio.sleep(0)
    with pytest.raises(QuotaExceededError, match="of one caller at most 4"):
        await calling("modest", batcher, [5, 6])
    recorder.gate.set()
    assert await modest == [20, 30, 40]
    await asyncio.gather(running, hoarder)
    await batcher.close()


async def test_a_job_whose_caller_left_gives_up_its_other_turns():
    recorder = Recorder()
    batcher = make(recorder, mix=False, max_turn_size=2)
    running = await busy(recorder, batcher)
    leaving = calling("leaving", batcher, range(100, 110))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    recorder.gate.set()
    await running
    await batcher.close()
    assert recorder.batches == [[0]]


async def test_a_caller_that_gave_up_a_long_job_is_not_charged_for_it():
    recorder = Recorder()
    batcher = make(recorder, mix=False, max_turn_size=4)
    running = await busy(recorder, batcher)
    given_up = calling("impatient", batcher, range(100, 140))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    tasks = [calling("steady", batcher, [i]) for i in range(1, 4)]
    await asyncio.sleep(0)
    tasks += [calling("impatient", batcher, [200 + i]) for i in range(3)]
    await asyncio.sleep(0)
    recorder.gate.set()
    await asyncio.gather(running, *tasks)
    assert [batch[0] for batch in recorder.batches[1:]] == [1, 200, 2, 201, 3, 202]
    await batcher.close()


async def test_what_was_given_up_holds_no_place_in_the_queue():
    recorder = Recorder()
    batcher = make(recorder, mix=False, max_queue_size=8)
    running = await busy(recorder, batcher)
    given_up = calling("impatient", batcher, range(100, 107))
    kept = calling("impatient", batcher, [3])
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    assert batcher.size_queued == 1
    admitted = calling("impatient", batcher, [4, 5, 6])
    await asyncio.sleep(0)
    recorder.gate.set()
    assert await kept == [30]
    assert await admitted == [40, 50, 60]
    await running
    await batcher.close()
    assert recorder.batches == [[0], [3], [4, 5, 6]]


def make_sized(recorder: Recorder, *, mix: bool, waits: list[float] | None = None, **sizes: int) -> Batcher[int, int]:
    """Every item is as large as it says."""
    return Batcher(
        recorder.execute,
        mix=mix,
        max_batch_size=sizes.get("max_batch_size", 10),
        max_delay_seconds=0.01,
        max_queue_size=sizes.get("max_queue_size", 1000),
        max_turn_size=sizes.get("max_turn_size"),
        size_of=lambda item: item,
        unit="tokens",
        on_wait=None if waits is None else waits.append,
    )


async def test_sizes_decide_how_much_a_batch_and_a_turn_hold():
    recorder, waits = Recorder(), []
    batcher = make_sized(recorder, mix=True, max_turn_size=10, waits=waits)
    results = await asyncio.gather(batcher.submit([4, 4, 4, 30, 1]), batcher.submit([2]))
    assert results == [[40, 40, 40, 300, 10], [20]]
    # Turns of the first call: 4 + 4, 4, 30 alone, 1; the second call has room in the last.
    assert recorder.batches == [[4, 4], [4], [30], [1, 2]]
    assert len(waits) == 5
    assert all(wait >= 0 for wait in waits)
    await batcher.close()


async def test_a_queue_that_is_full_by_size_refuses_in_its_own_unit():
    recorder = Recorder()
    batcher = make_sized(recorder, mix=False, max_queue_size=20)
    running = await busy(recorder, batcher)
    waiting = calling("second", batcher, [15])
    await asyncio.sleep(0)
    assert batcher.size_queued == 15
    batcher.check_room()
    with pytest.raises(QuotaExceededError, match="15 tokens are waiting and at most 20 may, of one caller at most 10"):
        await batcher.submit([11])
    recorder.gate.set()
    assert await asyncio.gather(running, waiting) == [[0], [150]]
    await batcher.close()


async def test_a_caller_that_would_be_refused_is_told_before_it_submits():
    recorder = Recorder()
    batcher = make_sized(recorder, mix=False, max_queue_size=20)
    running = await busy(recorder, batcher)
    waiting = calling("", batcher, [20])
    await asyncio.sleep(0)
    with pytest.raises(QuotaExceededError):
        batcher.check_room()
    recorder.gate.set()
    await asyncio.gather(running, waiting)
    batcher.check_room()
    await batcher.close()
