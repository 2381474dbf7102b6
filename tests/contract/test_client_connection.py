"""How a client finds servers that come, go, load and restart."""

from __future__ import annotations

import asyncio
import json

import pytest

from rlaif.client.channel import open_aio_channel
from rlaif.core.errors import DeadlineError, UnavailableError
from rlaif.runtime.server import Server, serving
from rlaif.runtime.settings import ClientSettings, ListenSettings
from rlaif.v1 import sampler_service_pb2 as pb
from rlaif.v1 import sampler_service_pb2_grpc
from toy_service import ToySampler, toy_service

QUIET = ListenSettings(metrics_address=None)


def stub(channel: object) -> sampler_service_pb2_grpc.SamplerServiceStub:
    return sampler_service_pb2_grpc.SamplerServiceStub(channel)


async def test_a_replica_that_loads_gets_no_calls_until_it_serves() -> None:
    loaded, ready, loading = asyncio.Event(), ToySampler(), ToySampler()
    late = Server(toy_service(loading, start=loaded.wait), QUIET)
    await late.bind()
    starting = asyncio.create_task(late.start())
    async with serving(toy_service(ready), QUIET) as server, asyncio.timeout(30):
        target = f"ipv4:{late.address},{server.address}"
        async with open_aio_channel(ClientSettings(target=target)) as channel:
            for _ in range(50):
                await stub(channel).GetPolicy(pb.GetPolicyRequest())
            assert (ready.num_calls, loading.num_calls) == (50, 0)
            loaded.set()
            await starting
            while not loading.num_calls:
                await stub(channel).GetPolicy(pb.GetPolicyRequest())
            await late.stop()
            for _ in range(50):
                await stub(channel).GetPolicy(pb.GetPolicyRequest())


async def test_a_call_may_wait_for_a_server_that_is_not_there_yet() -> None:
    async with serving(toy_service(ToySampler()), QUIET) as server:
        address = server.address
    with pytest.raises(UnavailableError, match="cannot be reached"):
        async with open_aio_channel(ClientSettings(target=address)) as channel:
            await stub(channel).GetPolicy(pb.GetPolicyRequest())
    waiting = ClientSettings(target=address, wait_for_ready=True, timeout_seconds=30)
    async with open_aio_channel(waiting) as channel:
        call = asyncio.ensure_future(stub(channel).GetPolicy(pb.GetPolicyRequest()))
        with pytest.raises(DeadlineError, match="did not answer in time"):
            await stub(channel).GetPolicy(pb.GetPolicyRequest(), timeout=0.2)
        async with serving(toy_service(ToySampler()), QUIET.model_copy(update={"address": address})):
            assert json.loads((await call).policy.name)["actor"] == "anonymous"


@pytest.mark.parametrize("name", ["down:2", "cut:2", f"down:2:{'x' * 4_000_000}"], ids=["refused", "cut off", "large"])
async def test_a_request_that_a_server_did_not_take_is_sent_again_however_large_it_is(name: str) -> None:
    servicer = ToySampler()
    async with (
        serving(toy_service(servicer), QUIET) as server,
        open_aio_channel(ClientSettings(target=server.address)) as channel,
    ):
        await stub(channel).GetPolicy(pb.GetPolicyRequest(name=name))
        assert servicer.num_calls == 3
