"""What every call to every service can rely on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from rlaif.client.channel import open_aio_channel
from rlaif.core.errors import (
    DeadlineError,
    InvalidInputError,
    QuotaExceededError,
    RlaifError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedError,
)
from rlaif.runtime.context import CallContext, enter_call, trace
from rlaif.runtime.server import serving
from rlaif.runtime.settings import ClientSettings, ListenSettings
from rlaif.runtime.telemetry import REGISTRY
from rlaif.v1 import sampler_service_pb2 as pb
from rlaif.v1 import sampler_service_pb2_grpc
from toy_service import ERRORS, ToySampler, toy_service

CODES = {
    "invalid": grpc.StatusCode.INVALID_ARGUMENT,
    "missing": grpc.StatusCode.NOT_FOUND,
    "behind": grpc.StatusCode.FAILED_PRECONDITION,
    "full": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "conflict": grpc.StatusCode.ABORTED,
    "corrupt": grpc.StatusCode.DATA_LOSS,
    "unauthenticated": grpc.StatusCode.UNAUTHENTICATED,
    "forbidden": grpc.StatusCode.PERMISSION_DENIED,
    "unexpected": grpc.StatusCode.INTERNAL,
    "long": grpc.StatusCode.INVALID_ARGUMENT,
}


@dataclass(frozen=True)
class Toy:
    """The toy service as any client sees it (`plain`), and as ours does (`ours`)."""

    servicer: ToySampler
    address: str
    channel: grpc.aio.Channel
    plain: Any
    ours: Any


@asynccontextmanager
async def serving_toy(*, name: str = "toy", **listen: Any) -> AsyncIterator[Toy]:
    servicer = ToySampler()
    settings = ListenSettings.model_validate({"metrics_address": None, **listen})
    async with serving(toy_service(servicer, name=name), settings) as server:
        client = ClientSettings(target=server.address, token_path=listen.get("token_path"))
        async with grpc.aio.insecure_channel(server.address) as channel, open_aio_channel(client) as ours:
            yield Toy(
                servicer,
                server.address,
                channel,
                sampler_service_pb2_grpc.SamplerServiceStub(channel),
                sampler_service_pb2_grpc.SamplerServiceStub(ours),
            )


@pytest.fixture
async def toy() -> AsyncIterator[Toy]:
    async with serving_toy() as toy:
        yield toy


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def details(error: grpc.aio.AioRpcError) -> tuple[status_pb2.Status, error_details_pb2.ErrorInfo]:
    (value,) = [value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin"]
    status = status_pb2.Status.FromString(value)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    return status, info


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.mark.parametrize("verb", sorted(ERRORS))
async def test_an_error_travels_as_a_status_and_comes_back_as_itself(toy: Toy, verb: str) -> None:
    error = await refused(toy.plain.GetPolicy(pb.GetPolicyRequest(name=verb)))
    sent = ERRORS[verb]
    assert error.code() is CODES[verb]
    _, info = details(error)
    assert (info.reason, info.domain) == (sent.reason, "rlaif")
    with pytest.raises(type(sent)) as caught:
        await toy.ours.GetPolicy(pb.GetPolicyRequest(name=verb))
    assert type(caught.value) is type(sent)
    assert caught.value.reason == sent.reason
    assert caught.value.field == sent.field
    if verb != "long":
        assert caught.value.message == sent.message
        assert caught.value.metadata == sent.metadata


async def test_what_a_caller_sent_fills_no_log(toy: Toy, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    await refused(toy.plain.GetPolicy(pb.GetPolicyRequest(name="long")))
    (told,) = [record for record in caplog.records if record.getMessage() == "call failed"]
    assert 100 < len(told.rlaif_fields["error"]) < 1000  # type: ignore[attr-defined]


async def test_details_say_what_their_kind_can_say(toy: Toy) -> None:
    expected = {
        "invalid": error_details_pb2.BadRequest,
        "missing": error_details_pb2.ResourceInfo,
        "behind": error_details_pb2.PreconditionFailure,
        "full": error_details_pb2.RetryInfo,
    }
    for verb, kind in expected.items():
        status, _ = details(await refused(toy.plain.GetPolicy(pb.GetPolicyRequest(name=verb))))
        assert status.details[1].Is(kind.DESCRIPTOR)
    with pytest.raises(QuotaExceededError) as caught:
        await toy.ours.GetPolicy(pb.GetPolicyRequest(name="full"))
    assert caught.value.retry_after_seconds == 2.5


async def test_an_error_within_a_stream_comes_after_what_was_sent(toy: Toy) -> None:
    received = []
    with pytest.raises(InvalidInputError) as caught:  # noqa: PT012 - the error ends the loop
        async for response in toy.ours.StreamCompletions(pb.StreamCompletionsRequest(policy="invalid")):
            received.append(response.completion.index)
    assert received == [0, 1, 2]
    assert caught.value.field == "prompts[3]"


async def test_a_crash_tells_the_caller_nothing_and_the_log_everything(
    toy: Toy, caplog: pytest.LogCaptureFixture
) -> None:
    error = await refused(toy.plain.GetPolicy(pb.GetPolicyRequest(name="crash")))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert details(error)[1].reason == "INTERNAL"
    assert "secret" not in str(error.details()) + str(error.trailing_metadata())
    assert "the secret is 42" in caplog.text


async def test_a_method_that_is_not_served_says_so(toy: Toy) -> None:
    with pytest.raises(UnsupportedError) as caught:
        await toy.ours.SampleCompletions(pb.SampleCompletionsRequest())
    assert caught.value.reason == "NOT_SERVED"
    assert caught.value.metadata == {"method": "SamplerService/SampleCompletions"}


async def test_a_method_that_does_not_exist_says_so(toy: Toy) -> None:
    error = await refused(toy.channel.unary_unary("/rlaif.v1.SamplerService/Guess")(b""))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert details(error)[1].reason == "UNKNOWN_METHOD"


async def test_a_call_without_a_deadline_gets_the_default() -> None:
    async with serving_toy(default_deadline_seconds=0.2) as toy:
        for call in (
            toy.plain.GetPolicy(pb.GetPolicyRequest(name="sleep:30")),
            anext(aiter(skip(toy.plain.StreamCompletions(pb.StreamCompletionsRequest(policy="sleep:30")), 3))),
        ):
            error = await refused(call)
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert details(error)[1].reason == "DEFAULT_DEADLINE_EXCEEDED"
        # A caller's own deadline may be longer.
        await toy.plain.GetPolicy(pb.GetPolicyRequest(name="sleep:0.4"), timeout=20)


async def skip(stream: Any, count: int) -> AsyncIterator[Any]:
    async for response in stream:
        count -= 1
        if count < 0:
            yield response


async def test_our_client_always_sets_a_deadline(toy: Toy) -> None:
    settings = ClientSettings(target=toy.address, timeout_seconds=0.2)
    async with open_aio_channel(settings) as channel:
        stub = sampler_service_pb2_grpc.SamplerServiceStub(channel)
        with pytest.raises(DeadlineError):
            await stub.GetPolicy(pb.GetPolicyRequest(name="sleep:30"))


async def test_a_call_made_while_serving_gets_what_time_is_left(toy: Toy) -> None:
    said = await toy.plain.GetPolicy(pb.GetPolicyRequest(), timeout=7)
    left = json.loads(said.policy.name)["remaining"]
    assert 0 < left < 7.5  # the two ends' clocks round differently

    async def downstream() -> Any:
        enter_call(CallContext(deadline=asyncio.get_running_loop().time() + 5))
        return await toy.ours.GetPolicy(pb.GetPolicyRequest())

    said = await asyncio.create_task(downstream())
    assert json.loads(said.policy.name)["remaining"] < 5


async def test_the_callers_trace_goes_on_and_a_malformed_one_does_not(toy: Toy) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    for header, follows in (
        (f"00-{trace_id}-b7ad6b7169203331-01", True),
        (f"ff-{trace_id}-b7ad6b7169203331-01", False),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", False),
        ("nonsense", False),
    ):
        call = toy.plain.GetPolicy(pb.GetPolicyRequest(), metadata=(("traceparent", header),))
        seen = json.loads((await call).policy.name)["trace_id"]
        returned = dict(await call.trailing_metadata())["traceparent"]
        assert returned.split("-")[1] == seen
        assert len(seen) == 32
        assert (seen == trace_id) is follows
    with trace() as own:
        said = await toy.ours.GetPolicy(pb.GetPolicyRequest())
    assert json.loads(said.policy.name)["trace_id"] == own


async def test_calls_are_counted_by_method_and_code() -> None:
    async with serving_toy(name="counted") as toy:
        await toy.ours.GetPolicy(pb.GetPolicyRequest())
        await refused(toy.plain.GetPolicy(pb.GetPolicyRequest(name="missing")))
        await refused(toy.plain.LoadPolicy(pb.LoadPolicyRequest()))
        for guess in ("A", "B"):
            await refused(toy.channel.unary_unary(f"/guess.{guess}/Method")(b""))
        await refused(toy.plain.GetPolicy(pb.GetPolicyRequest(name="sleep:30"), timeout=0.2))
        count = "rlaif_counted_requests_total"
        assert metric(count, method="SamplerService/GetPolicy", code="OK") == 1
        assert metric(count, method="SamplerService/GetPolicy", code="NOT_FOUND") == 1
        assert metric(count, method="SamplerService/LoadPolicy", code="UNIMPLEMENTED") == 1
        assert metric(count, method="unknown", code="UNIMPLEMENTED") == 2
        assert metric("rlaif_counted_request_seconds_count", method="unknown") == 2
    # Once drained, the call that ran out of time is counted too.
    assert metric(count, method="SamplerService/GetPolicy", code="DEADLINE_EXCEEDED") == 1
    assert metric("rlaif_counted_requests_in_flight") == 0


async def test_a_reader_that_stops_half_way_ends_the_stream(toy: Toy) -> None:
    stream = toy.ours.StreamCompletions(pb.StreamCompletionsRequest(policy="sleep:30"))
    assert (await anext(stream)).completion.index == 0
    await stream.aclose()
    async with asyncio.timeout(5):
        await toy.servicer.stream_closed.wait()


async def test_only_unavailable_is_tried_again(toy: Toy) -> None:
    await toy.ours.GetPolicy(pb.GetPolicyRequest(name="down:2"))
    assert toy.servicer.num_calls == 3
    with pytest.raises(RlaifError):
        await toy.ours.GetPolicy(pb.GetPolicyRequest(name="crash"))
    assert toy.servicer.num_calls == 4


async def test_a_peer_that_is_not_there_is_unavailable() -> None:
    async with open_aio_channel(ClientSettings(target="127.0.0.1:1")) as channel:
        with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1 cannot be reached"):
            await sampler_service_pb2_grpc.SamplerServiceStub(channel).GetPolicy(pb.GetPolicyRequest())


async def test_a_message_that_is_too_large_is_refused_with_a_reason() -> None:
    async with serving_toy(max_message_bytes=2048) as toy:
        with pytest.raises(InvalidInputError, match="too large") as caught:
            await toy.ours.GetPolicy(pb.GetPolicyRequest(name="x" * 4096))
        assert caught.value.reason == "MESSAGE_TOO_LARGE"
        assert toy.servicer.num_calls == 0


async def test_without_the_token_nothing_but_health_answers(tmp_path: Path) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    token_path = tmp_path / "token"
    token_path.write_text("s3cret\n")
    async with serving_toy(token_path=token_path) as toy:
        for metadata in ((), (("authorization", "Bearer wrong"),), (("authorization", "Basic s3cret"),)):
            error = await refused(toy.plain.GetPolicy(pb.GetPolicyRequest(), metadata=metadata))
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
            assert "s3cret" not in str(error)
        assert toy.servicer.num_calls == 0
        actor = json.loads((await toy.ours.GetPolicy(pb.GetPolicyRequest())).policy.name)["actor"]
        assert actor.startswith("token:")
        assert "s3cret" not in actor
        assert await health_pb2_grpc.HealthStub(toy.channel).Check(health_pb2.HealthCheckRequest())
        reflection = reflection_pb2_grpc.ServerReflectionStub(toy.channel)
        listing = reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        assert (await refused(anext(aiter(listing)))).code() is grpc.StatusCode.UNAUTHENTICATED
        async with open_aio_channel(ClientSettings(target=toy.address)) as channel:
            with pytest.raises(UnauthenticatedError):
                await sampler_service_pb2_grpc.SamplerServiceStub(channel).GetPolicy(pb.GetPolicyRequest())


async def test_calls_beyond_the_most_at_once_are_told_when_to_try_again_and_health_is_not_counted() -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with serving_toy(max_calls_in_flight=2) as toy:
        served = [asyncio.ensure_future(toy.ours.GetPolicy(pb.GetPolicyRequest(name="sleep:0.3"))) for _ in range(2)]
        while toy.servicer.num_calls < 2:  # noqa: ASYNC110 - the toy counts, it does not tell
            await asyncio.sleep(0)
        with pytest.raises(QuotaExceededError, match="2 calls are being served") as caught:
            await toy.ours.GetPolicy(pb.GetPolicyRequest())
        assert (caught.value.reason, caught.value.retry_after_seconds) == ("TOO_MANY_CALLS", 1.0)
        assert await health_pb2_grpc.HealthStub(toy.channel).Check(health_pb2.HealthCheckRequest())
        await asyncio.gather(*served)
        await toy.ours.GetPolicy(pb.GetPolicyRequest())
