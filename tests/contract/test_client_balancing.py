"""A client that is given several replicas spreads its calls, and loses none when one of them goes."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from grpc_health.v1 import health_pb2, health_pb2_grpc

from rlaif.client.channel import open_aio_channel
from rlaif.runtime.health import LIVENESS
from rlaif.runtime.server import Server, serving
from rlaif.runtime.settings import ClientSettings, ListenSettings
from rlaif.v1 import sampler_service_pb2 as pb
from rlaif.v1 import sampler_service_pb2_grpc
from toy_service import NAME, ToySampler, toy_service

QUIET = ListenSettings(metrics_address=None)


async def test_calls_are_spread_over_replicas_and_none_is_lost_when_one_drains() -> None:
    toys = [ToySampler(), ToySampler()]
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(serving(toy_service(toy), QUIET)) for toy in toys]
        # As DNS answers for a headless service: one name, all addresses.
        target = f"ipv4:{','.join(server.address for server in servers)}"
        async with open_aio_channel(ClientSettings(target=target, timeout_seconds=20)) as channel:
            stub = sampler_service_pb2_grpc.SamplerServiceStub(channel)  # type: ignore[no-untyped-call]
            # The first connection that stands takes the calls until the other does too.
            for _ in range(500):
                await stub.GetPolicy(pb.GetPolicyRequest())
                if all(toy.num_calls for toy in toys):
                    break
            before = [toy.num_calls for toy in toys]
            for _ in range(40):
                await stub.GetPolicy(pb.GetPolicyRequest())
            assert [toy.num_calls - number for toy, number in zip(toys, before, strict=True)] == [20, 20]

            calls = [asyncio.ensure_future(stub.GetPolicy(pb.GetPolicyRequest(name="sleep:0.2"))) for _ in range(20)]
            while toys[0].num_calls - before[0] < 30:  # noqa: ASYNC110 - the toy counts, it does not tell
                await asyncio.sleep(0)
            stopping = asyncio.ensure_future(servers[0].stop())
            calls += [asyncio.ensure_future(stub.GetPolicy(pb.GetPolicyRequest())) for _ in range(200)]
            await asyncio.gather(*calls, stopping)


async def test_a_process_lives_while_it_loads_and_while_it_drains() -> None:
    loaded, toy = asyncio.Event(), ToySampler()
    server = Server(toy_service(toy, start=loaded.wait), QUIET.model_copy(update={"health_address": "127.0.0.1:0"}))
    await server.bind()
    assert server.health_address is not None
    async with open_aio_channel(ClientSettings(target=server.health_address)) as channel:
        health = health_pb2_grpc.HealthStub(channel)

        async def says() -> list[str]:
            requests = [health_pb2.HealthCheckRequest(service=name) for name in (LIVENESS, NAME)]
            answers = [await health.Check(request) for request in requests]
            return [health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status) for answer in answers]

        starting = asyncio.ensure_future(server.start())
        assert await says() == ["SERVING", "NOT_SERVING"]
        loaded.set()
        await starting
        assert await says() == ["SERVING", "SERVING"]
        async with open_aio_channel(ClientSettings(target=server.address)) as calls:
            stub = sampler_service_pb2_grpc.SamplerServiceStub(calls)  # type: ignore[no-untyped-call]
            in_flight = asyncio.ensure_future(stub.GetPolicy(pb.GetPolicyRequest(name="sleep:0.5")))
            while not toy.num_calls:  # noqa: ASYNC110 - the toy counts, it does not tell
                await asyncio.sleep(0)
            stopping = asyncio.ensure_future(server.stop())
            while (said := await says()) == ["SERVING", "SERVING"]:
                assert not stopping.done()
            assert said == ["SERVING", "NOT_SERVING"]
            await asyncio.gather(in_flight, stopping)


async def test_a_process_that_is_of_no_more_use_says_so_for_good_and_still_answers() -> None:
    causes = [""]
    service = toy_service(ToySampler(), lost=lambda: causes[0])
    async with serving(service, QUIET) as server, open_aio_channel(ClientSettings(target=server.address)) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watch = aiter(health.Watch(health_pb2.HealthCheckRequest(service=LIVENESS), timeout=30))
        assert (await anext(watch)).status == health_pb2.HealthCheckResponse.SERVING
        causes[0] = "the engine's process is gone"
        assert (await anext(watch)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        causes[0] = ""
        assert (await health.Check(health_pb2.HealthCheckRequest(service=LIVENESS))).status != 1
        assert (await health.Check(health_pb2.HealthCheckRequest(service=NAME))).status == 1
