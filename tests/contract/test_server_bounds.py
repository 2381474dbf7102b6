"""What strangers may send before anybody looks at who they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rlaif.runtime.roles import Role
from rlaif.runtime.server import serving
from rlaif.runtime.settings import ListenSettings
from rlaif.runtime.tokens import describe_token
from rlaif.v1 import sampler_service_pb2 as pb
from rlaif.v1 import sampler_service_pb2_grpc
from toy_service import NAME, ToySampler, toy_service

BOTH = ListenSettings(metrics_address=None, health_address="127.0.0.1:0")
SERVING = health_pb2.HealthCheckResponse.SERVING


def bearer(token: str) -> tuple[tuple[str, str]]:
    return (("authorization", f"Bearer {token}"),)


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


async def test_what_strangers_and_holders_of_the_wrong_role_send_is_not_parsed(tmp_path: Path) -> None:
    parsed: list[bytes] = []

    def parse(data: bytes) -> pb.GetPolicyRequest:
        parsed.append(data)
        return pb.GetPolicyRequest.FromString(data)

    def register(server: grpc.aio.Server) -> None:
        handler = grpc.unary_unary_rpc_method_handler(
            ToySampler().GetPolicy,
            request_deserializer=parse,
            response_serializer=pb.GetPolicyResponse.SerializeToString,
        )
        # LoadPolicy, which readers may not call.
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, {"LoadPolicy": handler}),))

    tokens = [describe_token(f"secret-of-{name}", name=name, roles=[Role(name)]) for name in ("reader", "trainer")]
    (tmp_path / "tokens.yaml").write_text(yaml.safe_dump([json.loads(token.model_dump_json()) for token in tokens]))
    listen = BOTH.model_copy(update={"tokens_path": tmp_path / "tokens.yaml"})
    service = replace(toy_service(ToySampler()), register=register)
    async with serving(service, listen) as server, grpc.aio.insecure_channel(server.address) as channel:
        call, body = channel.unary_unary(f"/{NAME}/LoadPolicy"), pb.GetPolicyRequest(name="x").SerializeToString()
        for token, code in (
            ("unknown", grpc.StatusCode.UNAUTHENTICATED),
            ("secret-of-reader", grpc.StatusCode.PERMISSION_DENIED),
        ):
            assert (await refusal(call(body, metadata=bearer(token)))).code() is code
            assert parsed == []
        await call(body, metadata=bearer("secret-of-trainer"))
        assert parsed == [body]


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
