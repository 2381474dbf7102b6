"""The sampler on loopback with a tiny model: versions, provenance, repeatability, streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from model_fixtures import model_folder as model_folder
from model_fixtures import other_model_folder as other_model_folder
from rlaif.client.channel import open_aio_channel
from rlaif.client.sampler import SampledBatch, SamplerClient
from rlaif.core.conversation import Conversation, Message
from rlaif.core.errors import DeadlineError, PreconditionError
from rlaif.engine.protocol import EngineUsage
from rlaif.engine.settings import EngineSettings
from rlaif.runtime.artifacts import version_folder
from rlaif.runtime.server import serving
from rlaif.runtime.settings import ClientSettings
from rlaif.sampler.process import make_service
from rlaif.v1 import conversation_pb2, sampler_service_pb2_grpc
from rlaif.v1 import sampler_service_pb2 as pb
from sampler_fixtures import POLICY, ask, publish, sampler_process, settings_for, until

CONTINUOUS = EngineSettings(num_threads=1, continuous_batching=True)
PROMPTS: list[Conversation] = [(Message("user", "How do I boil an egg?"),), (Message("user", "Hi"),)]


@pytest.fixture
async def target(model_folder: Path, tmp_path: Path) -> AsyncIterator[ClientSettings]:
    settings = settings_for(model_folder, tmp_path)
    async with serving(make_service(settings), settings.listen) as server:
        yield ClientSettings(target=server.address)


def sample(client: SamplerClient, *, seed: int = 7, min_policy_version: int = 0) -> SampledBatch:
    return client.sample(
        POLICY, PROMPTS, num_completions=3, max_tokens=10, seed=seed, min_policy_version=min_policy_version
    )


async def test_every_prompt_gets_its_completions_in_order(target: ClientSettings) -> None:
    batch = await ask(target, sample)
    assert [len(completions) for completions in batch.completions] == [3, 3]
    assert [prompt[0] for prompt in batch.prompt_token_ids] == [1, 1]
    for completions in batch.completions:
        for completion in completions:
            assert 1 <= len(completion.token_ids) <= 10
            assert len(completion.token_ids) == len(completion.logprobs)
            assert completion.stop_reason in ("end_of_turn", "max_tokens")
            assert completion.policy_version == 0
            assert all(logprob <= 0 for logprob in completion.logprobs)


async def test_the_same_request_gives_the_same_floats_even_among_others(target: ClientSettings) -> None:
    first = await ask(target, sample)
    again, other, _ = await asyncio.gather(
        ask(target, sample), ask(target, lambda client: sample(client, seed=8)), ask(target, sample)
    )
    assert again == first
    assert other != first


async def test_a_published_version_is_served_after_load_policy(
    target: ClientSettings, other_model_folder: Path, tmp_path: Path
) -> None:
    before = await ask(target, sample)
    digest = publish(tmp_path, other_model_folder, version=3)
    state = await ask(target, lambda client: client.load_policy(POLICY, min_version=3))
    assert (state.version, state.desired_version, state.digest) == (3, 3, digest)
    assert state.uri == str(version_folder(tmp_path, POLICY, version=3))
    after = await ask(target, lambda client: sample(client, min_policy_version=3))
    assert {completion.policy_version for completions in after.completions for completion in completions} == {3}
    assert after.completions != before.completions
    assert await ask(target, lambda client: client.get_policy(POLICY)) == state


async def test_a_version_not_yet_served_is_a_failed_precondition(target: ClientSettings) -> None:
    with pytest.raises(PreconditionError) as caught:
        await ask(target, lambda client: sample(client, min_policy_version=2))
    assert caught.value.reason == "POLICY_VERSION_BEHIND"
    assert caught.value.metadata == {
        "policy": POLICY,
        "served_version": "0",
        "desired_version": "0",
        "min_policy_version": "2",
    }


async def test_load_policy_waits_for_a_version_until_it_is_published(
    target: ClientSettings, other_model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DeadlineError):
        await ask(target, lambda client: client.load_policy(POLICY, min_version=1, timeout_seconds=0.3))
    waiting = asyncio.create_task(ask(target, lambda client: client.load_policy(POLICY, min_version=1)))
    publish(tmp_path, other_model_folder, version=1)
    assert (await waiting).version == 1


async def test_polling_finds_a_published_version(model_folder: Path, other_model_folder: Path, tmp_path: Path) -> None:
    settings = settings_for(model_folder, tmp_path, sync_poll_seconds=0.02)
    async with serving(make_service(settings), settings.listen) as server:
        target = ClientSettings(target=server.address)
        publish(tmp_path, other_model_folder, version=1)
        async with asyncio.timeout(20):
            while (await ask(target, lambda client: client.get_policy(POLICY))).version < 1:
                pass


async def test_a_replica_starts_on_the_published_version(
    model_folder: Path, other_model_folder: Path, tmp_path: Path
) -> None:
    publish(tmp_path, other_model_folder, version=4)
    settings = settings_for(model_folder, tmp_path)
    async with serving(make_service(settings), settings.listen) as server:
        state = await ask(ClientSettings(target=server.address), lambda client: client.get_policy(POLICY))
    assert state.version == 4


async def test_weights_that_do_not_match_their_digest_are_not_served(
    target: ClientSettings, other_model_folder: Path, tmp_path: Path
) -> None:
    before = await ask(target, sample)
    publish(tmp_path, other_model_folder, version=1)
    weights = version_folder(tmp_path, POLICY, version=1) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\1\2\3")
    with pytest.raises(Exception, match="was published with digest") as caught:
        await ask(target, lambda client: client.load_policy(POLICY))
    assert getattr(caught.value, "reason", None) == "DATA_CORRUPTION"
    assert await ask(target, sample) == before


async def test_completions_carry_their_provenance(target: ClientSettings) -> None:
    channel = open_aio_channel(target)
    stub = sampler_service_pb2_grpc.SamplerServiceStub(channel)
    response = await stub.SampleCompletions(wire_request(pb.SampleCompletionsRequest))
    await channel.close()
    provenances = [completion.provenance for completion in response.completions]
    assert len({provenance.seed for provenance in provenances}) == 1
    assert provenances[0].seed > 0
    assert len(provenances[0].model.digest) == len(provenances[0].trace_id) * 2 == 64
    assert provenances[0].service_revision
    assert provenances[0].HasField("create_time")
    assert not provenances[0].HasField("constitution")


async def test_a_stream_sends_the_same_completions_one_by_one(target: ClientSettings) -> None:
    channel = open_aio_channel(target)
    stub = sampler_service_pb2_grpc.SamplerServiceStub(channel)
    whole = await stub.SampleCompletions(wire_request(pb.SampleCompletionsRequest, seed=5))
    streamed = [
        message.completion
        async for message in stub.StreamCompletions(wire_request(pb.StreamCompletionsRequest, seed=5))
    ]
    await channel.close()
    assert all(len(completion.provenance.trace_id) == 32 for completion in streamed)
    ordered = sorted(streamed, key=lambda completion: (completion.prompt_index, completion.index))
    for one, other in zip(ordered, whole.completions, strict=True):
        assert (one.text, one.token_ids, one.logprobs) == (other.text, other.token_ids, other.logprobs)
    lengths = [len(completion.token_ids) for completion in streamed]
    assert lengths == sorted(lengths)


@pytest.mark.parametrize("engine", [EngineSettings(num_threads=1), CONTINUOUS], ids=["one by one", "continuous"])
@pytest.mark.parametrize("streams", [False, True], ids=["whole", "stream"])
async def test_who_goes_away_frees_the_engine_at_once(
    model_folder: Path, tmp_path: Path, engine: EngineSettings, streams: bool
) -> None:
    settings = settings_for(model_folder, tmp_path, engine=engine)
    process, service = sampler_process(settings)
    async with serving(service, settings.listen) as server, asyncio.timeout(60):
        channel = open_aio_channel(ClientSettings(target=server.address))
        stub = sampler_service_pb2_grpc.SamplerServiceStub(channel)

        def ask_much(timeout: float | None = None) -> Any:
            request = wire_request(pb.StreamCompletionsRequest if streams else pb.SampleCompletionsRequest)
            request.params.num_completions, request.params.max_tokens, request.params.temperature = 64, 250, 10.0
            if streams:
                return read_all(stub.StreamCompletions(request, timeout=timeout))
            return stub.SampleCompletions(request, timeout=timeout)

        engine_used = process.parts.engine
        calls = [asyncio.ensure_future(ask_much()) for _ in range(3)]
        await until(lambda: engine_used.usage.running_completions > 0)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        # Nothing of some 100,000 tokens is left to do.
        await until(lambda: engine_used.usage == EngineUsage(0, 0, 0.0))
        assert process.parts.queue.num_waiting == 0

        with pytest.raises(DeadlineError):
            await ask_much(timeout=0.05)
        await until(lambda: engine_used.usage == EngineUsage(0, 0, 0.0))
        assert len((await stub.SampleCompletions(wire_request(pb.SampleCompletionsRequest))).completions) == 8
        await channel.close()


async def read_all(stream: AsyncIterator[Any]) -> list[Any]:
    return [message async for message in stream]


async def test_requests_that_share_batches_get_what_they_would_have_got_alone(
    model_folder: Path, tmp_path: Path
) -> None:
    settings = settings_for(model_folder, tmp_path, engine=CONTINUOUS)
    async with serving(make_service(settings), settings.listen) as server:
        target = ClientSettings(target=server.address)
        alone = await ask(target, sample)
        together = await asyncio.gather(
            *(ask(target, lambda client, seed=seed: sample(client, seed=seed)) for seed in (7, 8, 7, 9))
        )
    for batch in (together[0], together[2]):
        for one, other in zip(batch.completions, alone.completions, strict=True):
            assert [completion.token_ids for completion in one] == [completion.token_ids for completion in other]
    assert together[1] != together[3]


def wire_request(
    message_class: type[pb.SampleCompletionsRequest], *, seed: int | None = None
) -> pb.SampleCompletionsRequest:
    turn = conversation_pb2.Message(role=conversation_pb2.ROLE_USER, content="Hi")
    return message_class(
        policy=POLICY,
        prompts=[pb.SamplePrompt(messages=[turn])] * 2,
        params=pb.SamplingParams(num_completions=4, max_tokens=10, seed=seed),
    )
