"""Many callers of trained reward models: shared batches, bounded queues, calls that are given up, jobs in bulk."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from reward_fixtures import ask, write_reward_model
from rlaif.client.reward import RewardClient, RewardResult
from rlaif.core.conversation import Message
from rlaif.core.errors import InvalidInputError, NotFoundError, QuotaExceededError, RlaifError
from rlaif.engine.reward_model import EncodedInput, RewardModelEngine
from rlaif.reward.process import make_service
from rlaif.reward.settings import RewardSettings
from rlaif.runtime.server import serving
from rlaif.runtime.settings import ClientSettings, ListenSettings
from rlaif.v1 import conversation_pb2, reward_service_pb2, reward_service_pb2_grpc

ASK = (Message("user", "How do I boil an egg?"),)
NAME = "rewardModels/plain"
INPUTS = [(ASK, "egg " * (number % 9) + str(number)) for number in range(48)]


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_reward_model(tmp_path_factory.mktemp("member"), seed=0))


class Gate:
    """Holds up the engine's batches while it is closed, and keeps how many inputs each had."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        run = RewardModelEngine._score

        def score(engine: RewardModelEngine, inputs: list[EncodedInput], *, repeatable: bool) -> Any:
            self.sizes.append(len(inputs))
            self.entered.set()
            assert self.open.wait(30)
            return run(engine, inputs, repeatable=repeatable)

        monkeypatch.setattr(RewardModelEngine, "_score", score)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


@asynccontextmanager
async def running(member: str, **settings: Any) -> AsyncIterator[ClientSettings]:
    reward = RewardSettings.model_validate({"reward_models": {"plain": [member]}, **settings})
    async with serving(make_service(reward), ListenSettings(metrics_address=None)) as server:
        yield ClientSettings(target=server.address, timeout_seconds=30)


def request_of(response: str, *, number: int = 1) -> reward_service_pb2.ScoreResponsesRequest:
    """A request of equal inputs."""
    message = conversation_pb2.Message(role=conversation_pb2.ROLE_USER, content=ASK[0].content)
    item = reward_service_pb2.ScoredInput(messages=[message], response=response)
    return reward_service_pb2.ScoreResponsesRequest(reward_model=NAME, inputs=[item] * number)


async def entered(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.entered.wait, 30)


async def queued_tokens(wanted: int, *, at_least: bool = True) -> None:
    """Until that much waits; the metric is what the service itself tells."""
    from rlaif.reward.metrics import reward_metrics

    gauge = reward_metrics().queue_tokens
    for _ in range(3000):
        waiting = next(iter(gauge.collect())).samples[0].value
        if waiting >= wanted if at_least else waiting <= wanted:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{waiting} tokens wait")


async def test_mixed_requests_share_batches_and_give_the_same_rewards(member: str, gate: Gate):
    async with running(member) as settings:
        alone = await ask(settings, lambda c: [c.score(NAME, [each])[0] for each in INPUTS])
    gate.sizes.clear()
    async with running(member, mix_requests=True) as settings, grpc.aio.insecure_channel(settings.target) as channel:
        stub = reward_service_pb2_grpc.RewardServiceStub(channel)
        gate.open.clear()
        gate.entered.clear()
        calls = [stub.ScoreResponses(request_of(INPUTS[0][1]))]
        await entered(gate)
        calls += [stub.ScoreResponses(request_of(response)) for _, response in INPUTS[1:]]
        await queued_tokens(47 * 10)
        gate.open.set()
        together = [(await call).rewards[0].value for call in calls]
    assert together == pytest.approx([result.value for result in alone], abs=1e-5)
    assert gate.sizes[0] == 1
    assert sum(gate.sizes) == 48
    assert len(gate.sizes) < 12


async def test_without_mixing_a_request_is_a_batch_and_repeats_to_the_bit(member: str, gate: Gate):
    async with running(member) as settings:
        alone = await ask(settings, lambda c: c.score(NAME, INPUTS))
        gate.sizes.clear()
        together = await asyncio.gather(*(ask(settings, lambda c: c.score(NAME, INPUTS)) for _ in range(4)))
    assert gate.sizes == [48] * 4
    assert all(results == alone for results in together)


async def test_a_long_mixed_job_runs_in_turns_of_the_token_budget(member: str, gate: Gate):
    async with running(member, mix_requests=True, queue={"max_batch_tokens": 200}) as settings:
        results = await ask(settings, lambda c: c.score(NAME, INPUTS))
    assert all(result.value is not None for result in results)
    assert len(gate.sizes) > 3
    assert sum(gate.sizes) == 48


async def test_a_full_queue_refuses_with_a_time_to_try_again_and_bulk_jobs_wait_it_out(member: str, gate: Gate):
    async with running(member, queue={"max_queue_tokens": 40}) as settings, asyncio.TaskGroup() as group:
        gate.open.clear()
        gate.entered.clear()
        running_call = group.create_task(ask(settings, lambda c: c.score(NAME, INPUTS[:1])))
        await entered(gate)
        waiting_call = group.create_task(ask(settings, lambda c: c.score(NAME, INPUTS[:2])))
        await queued_tokens(1)
        with pytest.raises(QuotaExceededError, match="tokens are waiting") as caught:
            await ask(settings, lambda c: c.score(NAME, INPUTS[:20]))
        assert caught.value.retry_after_seconds > 0
        bulk = group.create_task(ask(settings, lambda c: c.score_many(NAME, INPUTS, batch_size=3, concurrency=8)))
        gate.open.set()
        await running_call
        await waiting_call
        results = await bulk
        expected = await ask(settings, lambda c: [c.score(NAME, [each])[0].value for each in INPUTS])
    assert [result.value for result in results] == pytest.approx(expected, abs=1e-5)


async def test_a_call_that_is_given_up_leaves_the_queue(member: str, gate: Gate):
    async with running(member) as settings, grpc.aio.insecure_channel(settings.target) as channel:
        stub = reward_service_pb2_grpc.RewardServiceStub(channel)
        gate.open.clear()
        gate.entered.clear()
        kept = stub.ScoreResponses(request_of("So."))
        await entered(gate)
        given_up = [stub.ScoreResponses(request_of("So.")) for _ in range(5)]
        await queued_tokens(5 * 10)
        for call in given_up:
            call.cancel()
        await queued_tokens(0, at_least=False)
        gate.open.set()
        assert (await kept).rewards[0].HasField("value")
    assert gate.sizes == [1]


async def test_a_job_in_bulk_is_in_order_and_tells_of_progress(member: str):
    heard: list[tuple[int, int]] = []
    async with running(member, mix_requests=True) as settings:
        results = await ask(
            settings,
            lambda c: c.score_many(
                NAME, INPUTS, batch_size=5, concurrency=3, progress=lambda done, total: heard.append((done, total))
            ),
        )
        alone = await ask(settings, lambda c: [c.score(NAME, [each])[0].value for each in INPUTS])
    assert [result.value for result in results] == pytest.approx(alone, abs=1e-5)
    assert heard == [(min(48, done), 48) for done in range(5, 53, 5)]


async def test_a_wrong_input_of_a_bulk_job_is_named_by_its_position(member: str):
    inputs = [*INPUTS[:7], ((), "to nothing"), *INPUTS[8:12]]
    async with running(member) as settings:
        with pytest.raises(InvalidInputError) as caught:
            await ask(settings, lambda c: c.score_many(NAME, inputs, batch_size=3))
        each = await ask(settings, lambda c: list(c.score_each(NAME, inputs, batch_size=3)))
    assert caught.value.field == "inputs[7].messages"
    assert [isinstance(result, RewardResult) for result in each] == [index != 7 for index in range(12)]
    assert isinstance(each[7], RlaifError)


async def test_more_inputs_than_one_request_may_hold_are_refused(member: str):
    def request(client: RewardClient, number: int) -> Any:
        return client._stub.ScoreResponses(request_of("So.", number=number), timeout=20)

    async with running(member) as settings:
        for number in (0, 1025):
            with pytest.raises(InvalidInputError, match=f"{number} inputs are outside") as caught:
                await ask(settings, lambda c, number=number: request(c, number))
            assert caught.value.field == "inputs"
        assert len((await ask(settings, lambda c: request(c, 1024))).rewards) == 1024
        with pytest.raises(ValueError, match="at most 1024"):
            await ask(settings, lambda c: c.score_many(NAME, INPUTS, batch_size=2000))
        with pytest.raises(NotFoundError, match="rewardModels/plain"):
            await ask(settings, lambda c: c.score("rewardModels/other", INPUTS))


async def test_members_of_one_tokenizer_are_tokenised_once(member: str, tmp_path: Path):
    other = write_reward_model(tmp_path / "other", seed=5)
    from rlaif.engine.protocol import ModelIdentity
    from rlaif.engine.reward_model import RewardModelOptions

    engine = RewardModelEngine(RewardModelOptions(), num_threads=1)
    try:
        ensemble = await engine.load([ModelIdentity(member, ""), ModelIdentity(str(other), "")])
        (encoded,) = await engine.encode(ensemble, INPUTS[5:6])
    finally:
        engine.close()
    assert ensemble.members[0].codec is ensemble.members[1].codec
    assert encoded.ids[0] is encoded.ids[1]
    assert encoded.num_tokens == 2 * len(encoded.ids[0])
