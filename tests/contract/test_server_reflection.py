"""A client that has never seen our stubs finds a method through reflection and calls it."""

from __future__ import annotations

import asyncio
import json

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from rlaif.runtime.server import serving
from rlaif.runtime.settings import ListenSettings
from toy_service import NAME, ToySampler, toy_service


async def test_a_method_found_through_reflection_can_be_called() -> None:
    async with serving(toy_service(ToySampler()), ListenSettings(metrics_address=None)) as server:
        said = await asyncio.to_thread(call_by_reflection, server.address)
    assert len(json.loads(said["policy"])["trace_id"]) == 32


def call_by_reflection(address: str) -> dict[str, str]:
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert NAME in database.get_services()
        pool = DescriptorPool(database)
        method = pool.FindServiceByName(NAME).FindMethodByName("GetPolicy")
        request_class, response_class = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        call = channel.unary_unary(
            f"/{NAME}/{method.name}",
            request_serializer=request_class.SerializeToString,
            response_deserializer=response_class.FromString,
        )
        return {"policy": call(request_class(name="policies/first"), timeout=10).policy.name}
