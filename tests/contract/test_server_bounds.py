"""What strangers may send before anybody looks at who they are."""

from __future__ import annotations

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rlaif.runtime.server import serving
from rlaif.runtime.settings import ListenSettings
from rlaif.v1 import sampler_service_pb2 as pb
from rlaif.v1 import sampler_service_pb2_grpc
from toy_service import NAME, ToySampler, toy_service

BOTH = ListenSettings(metrics_address=None, health_address="127.0.0.1:0")
SERVING = health_pb2.HealthCheckResponse.SERVING


async def refusal(call: object) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return caught.value


async def test_a_compressed_message_is_refused_before_it_is_unpacked() -> None:
    servicer = ToySampler()
    async with (
        serving(toy_service(servicer), BOTH) as server,
        grpc.aio.insecure_channel(server.address, compression=grpc.Compression.Gzip) as channel,
    ):
        stub = sampler_service_pb2_grpc.SamplerServiceStub(channel)
        refused = await refusal(stub.GetPolicy(pb.GetPolicyRequest(name="x" * 2**20)))
        assert refused.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "gzip" in (refused.details() or "")
        assert servicer.num_calls == 0


async def test_a_name_of_a_service_that_is_too_long_is_not_repeated() -> None:
    async with serving(toy_service(ToySampler()), BOTH) as server:
        assert server.health_address is not None
        for address, code in (
            (server.address, grpc.StatusCode.NOT_FOUND),
            (server.health_address, grpc.StatusCode.RESOURCE_EXHAUSTED),
        ):
            async with grpc.aio.insecure_channel(address) as channel:
                request = health_pb2.HealthCheckRequest(service="x" * 10_000)
                refused = await refusal(health_pb2_grpc.HealthStub(channel).Check(request))
                assert refused.code() is code
                assert len(refused.details() or "") < 300


async def test_streams_on_the_port_for_probes_do_not_keep_probes_out() -> None:
    async with serving(toy_service(ToySampler()), BOTH) as server:
        assert server.health_address is not None
        async with grpc.aio.insecure_channel(server.health_address) as channel:
            health, request = health_pb2_grpc.HealthStub(channel), health_pb2.HealthCheckRequest(service=NAME)
            watches = [health.Watch(request) for _ in range(40)]
            for watch in watches:
                assert (await refusal(anext(aiter(watch)))).code() is grpc.StatusCode.UNIMPLEMENTED
            assert (await health.Check(request)).status == SERVING
