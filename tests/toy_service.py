"""A small service that does what the request says; run it as `python -m toy_service` to send it signals."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc

from rlaif.core.errors import (
    ConflictError,
    CorruptionError,
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
    QuotaExceededError,
    RlaifError,
    UnauthenticatedError,
    UnavailableError,
)
from rlaif.runtime.context import current_actor, current_trace_id, remaining_seconds
from rlaif.runtime.server import Service, run
from rlaif.runtime.settings import ListenSettings
from rlaif.v1 import sampler_service_pb2 as pb
from rlaif.v1 import sampler_service_pb2_grpc

NAME = "rlaif.v1.SamplerService"
RESOURCE = {"resource_type": "rlaif.v1.Policy", "resource_name": "policies/x"}
ERRORS: dict[str, RlaifError] = {
    "invalid": InvalidInputError("wrong", field="prompts[3]", reason="TOO_LONG"),
    "missing": NotFoundError("no such policy", metadata=RESOURCE),
    "behind": PreconditionError("replica is behind", reason="POLICY_BEHIND", field="policies/x"),
    "full": QuotaExceededError("queue is full", retry_after_seconds=2.5),
    "conflict": ConflictError("changed meanwhile"),
    "corrupt": CorruptionError("bad digest", metadata={"digest": "0" * 64}),
    "unauthenticated": UnauthenticatedError("who are you"),
    "forbidden": ForbiddenError("not you"),
    "unexpected": RlaifError("our own mistake", reason="OUR_MISTAKE"),
    "long": InvalidInputError("x" * 100_000, field="f", metadata={"k" * 1000: "v" * 100_000}),
}


class ToySampler(sampler_service_pb2_grpc.SamplerServiceServicer):  # type: ignore[misc]
    """GetPolicy and StreamCompletions do what the name of the policy says; the rest is not served."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.peers: set[str] = set()
        self.stream_closed = asyncio.Event()

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: Any) -> pb.GetPolicyResponse:  # noqa: N802
        self.num_calls += 1
        self.peers.add(context.peer())
        verb, _, argument = request.name.partition(":")
        if verb in ERRORS:
            raise ERRORS[verb]
        if verb == "crash":
            raise ValueError("the secret is 42")
        if verb == "sleep":
            await asyncio.sleep(float(argument))
        if verb == "cut" and self.num_calls <= int(argument):
            await context.abort(grpc.StatusCode.CANCELLED)
        if verb == "down" and self.num_calls <= int(argument.partition(":")[0]):
            raise UnavailableError("the engine is being replaced")
        said = {"trace_id": current_trace_id(), "actor": current_actor(), "remaining": remaining_seconds()}
        return pb.GetPolicyResponse(policy=pb.Policy(name=json.dumps(said)))

    async def StreamCompletions(  # noqa: N802
        self, request: pb.StreamCompletionsRequest, context: Any
    ) -> AsyncIterator[pb.StreamCompletionsResponse]:
        verb, _, argument = request.policy.partition(":")
        try:
            for index in range(3):
                yield pb.StreamCompletionsResponse(completion=pb.Completion(index=index))
            if verb in ERRORS:
                raise ERRORS[verb]
            if verb == "sleep":
                await asyncio.sleep(float(argument))
        finally:
            self.stream_closed.set()


async def _nothing() -> None:
    pass


def toy_service(
    servicer: ToySampler,
    *,
    start: Callable[[], Awaitable[None]] = _nothing,
    name: str = "toy",
    unready: Callable[[], str] | None = None,
    lost: Callable[[], str] | None = None,
) -> Service:
    def register(server: Any) -> None:
        sampler_service_pb2_grpc.add_SamplerServiceServicer_to_server(servicer, server)

    return Service(
        name=name, grpc_services=(NAME,), register=register, start=start, stop=_nothing, unready=unready, lost=lost
    )


def main(settings: str, start_verb: str) -> int:
    async def start() -> None:
        if start_verb == "hang":
            await asyncio.get_running_loop().run_in_executor(None, __import__("time").sleep, 60)
        if start_verb == "crash":
            raise OSError("the model file is cut short")
        if start_verb == "refuse":
            raise InvalidInputError("the model has no tokenizer")

    def register(server: Any) -> None:
        sampler_service_pb2_grpc.add_SamplerServiceServicer_to_server(ToySampler(), server)

    service = Service(name="toy", grpc_services=(NAME,), register=register, start=start, stop=_nothing)
    return run(service, ListenSettings.model_validate_json(Path(settings).read_text()))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
