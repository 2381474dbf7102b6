"""Callers of the toy service that go on while something is done to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from rlaif.client.channel import open_aio_channel, open_channel
from rlaif.runtime.settings import ClientSettings
from rlaif.v1 import sampler_service_pb2 as pb
from rlaif.v1 import sampler_service_pb2_grpc
from tls_fixtures import until

GoOn = Callable[[], Awaitable[None]]


@asynccontextmanager
async def calling_on(client: ClientSettings, *, actor: str) -> AsyncIterator[GoOn]:
    """An awaiting and a blocking caller, on one channel each, whom the service must call `actor`.

    Gives what waits until each has had 50 more answers; their first failure is raised there or at the end.
    """
    going = True
    answers: dict[str, list[str]] = {"awaited": [], "blocking": []}

    async def call_on() -> None:
        async with open_aio_channel(client) as channel:
            stub = sampler_service_pb2_grpc.SamplerServiceStub(channel)
            while going:
                answers["awaited"].append((await stub.GetPolicy(pb.GetPolicyRequest())).policy.name)

    def call_on_blocking() -> None:
        with open_channel(client) as channel:
            stub = sampler_service_pb2_grpc.SamplerServiceStub(channel)
            while going:
                answers["blocking"].append(stub.GetPolicy(pb.GetPolicyRequest()).policy.name)

    calling = [asyncio.create_task(call_on()), asyncio.create_task(asyncio.to_thread(call_on_blocking))]

    async def go_on() -> None:
        before = {name: len(given) for name, given in answers.items()}
        await until(lambda: all(len(answers[name]) >= before[name] + 50 for name in before), while_=calling)

    try:
        yield go_on
    finally:
        going = False
        await asyncio.gather(*calling)
    assert {json.loads(answer)["actor"] for given in answers.values() for answer in given} == {actor}
