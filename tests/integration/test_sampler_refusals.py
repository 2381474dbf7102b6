"""What the sampler refuses: each wrong field by its name, and more than its queue holds."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from model_fixtures import make_tokenizer
from model_fixtures import model_folder as model_folder
from rlaif.client.channel import open_aio_channel
from rlaif.core.errors import InvalidInputError, NotFoundError, QuotaExceededError, RlaifError, UnsupportedError
from rlaif.engine.hf import HfEngine
from rlaif.engine.protocol import Capabilities
from rlaif.engine.settings import EngineSettings
from rlaif.runtime.server import serving
from rlaif.runtime.settings import ClientSettings, ListenSettings
from rlaif.sampler.process import make_service
from rlaif.sampler.settings import LimitSettings, QueueSettings, SamplerSettings
from rlaif.v1 import conversation_pb2, sampler_service_pb2_grpc
from rlaif.v1 import sampler_service_pb2 as pb

POLICY = "policies/test"
USER, ASSISTANT = conversation_pb2.ROLE_USER, conversation_pb2.ROLE_ASSISTANT

Change = Callable[[pb.SampleCompletionsRequest], object]


@pytest.fixture
async def stub(model_folder: Path) -> AsyncIterator[sampler_service_pb2_grpc.SamplerServiceStub]:
    settings = SamplerSettings(
        model=str(model_folder),
        policy=POLICY,
        engine=EngineSettings(num_threads=1),
        listen=ListenSettings(metrics_address=None),
        limits=LimitSettings(max_text_bytes=2000, max_completions=100),
        queue=QueueSettings(max_queue_completions=20),
    )
    async with serving(make_service(settings), settings.listen) as server:
        channel = open_aio_channel(ClientSettings(target=server.address))
        yield sampler_service_pb2_grpc.SamplerServiceStub(channel)
        await channel.close()


def good_request() -> pb.SampleCompletionsRequest:
    return pb.SampleCompletionsRequest(
        policy=POLICY,
        prompts=[pb.SamplePrompt(messages=[conversation_pb2.Message(role=USER, content="Hi")])],
        params=pb.SamplingParams(num_completions=2, max_tokens=4, seed=1),
    )


def turn(request: pb.SampleCompletionsRequest) -> conversation_pb2.Message:
    return request.prompts[0].messages[0]


def ids(request: pb.SampleCompletionsRequest, token_ids: list[int]) -> None:
    request.prompts[0].ClearField("messages")
    request.prompts[0].token_ids.extend(token_ids)


NUM_TOKENS = len(make_tokenizer())
BAD: dict[str, tuple[Change, str]] = {
    "no policy": (lambda r: r.ClearField("policy"), "policy"),
    "no prompts": (lambda r: r.ClearField("prompts"), "prompts"),
    "too many prompts": (lambda r: r.prompts.extend([r.prompts[0]] * 1024), "prompts"),
    "empty prompt": (lambda r: r.prompts[0].ClearField("messages"), "prompts[0].messages"),
    "second prompt empty": (lambda r: r.prompts.add(), "prompts[1].messages"),
    "no role": (lambda r: turn(r).ClearField("role"), "prompts[0].messages[0].role"),
    "assistant last": (lambda r: setattr(turn(r), "role", ASSISTANT), "prompts[0].messages[0].role"),
    "no content": (lambda r: turn(r).ClearField("content"), "prompts[0].messages[0].content"),
    "content too large": (lambda r: setattr(turn(r), "content", "x" * 2001), "prompts[0].messages[0].content"),
    "prompt too long": (lambda r: setattr(turn(r), "content", "egg " * 400), "prompts[0].messages"),
    "no params": (lambda r: r.ClearField("params"), "params"),
    "too many completions": (lambda r: setattr(r.params, "num_completions", 65), "params.num_completions"),
    "too many in all": (lambda r: r.prompts.extend([r.prompts[0]] * 50), "params.num_completions"),
    "no max_tokens": (lambda r: r.params.ClearField("max_tokens"), "params.max_tokens"),
    "max_tokens beyond the context": (lambda r: setattr(r.params, "max_tokens", 257), "params.max_tokens"),
    "negative temperature": (lambda r: setattr(r.params, "temperature", -0.1), "params.temperature"),
    "hot": (lambda r: setattr(r.params, "temperature", 10.1), "params.temperature"),
    "temperature not a number": (lambda r: setattr(r.params, "temperature", float("nan")), "params.temperature"),
    "top_p zero": (lambda r: setattr(r.params, "top_p", 0.0), "params.top_p"),
    "top_p above one": (lambda r: setattr(r.params, "top_p", 1.1), "params.top_p"),
    "top_p not a number": (lambda r: setattr(r.params, "top_p", float("nan")), "params.top_p"),
    "too many stops": (lambda r: r.params.stop_sequences.extend(["x"] * 9), "params.stop_sequences"),
    "messages and ids": (lambda r: r.prompts[0].token_ids.extend([9, 10]), "prompts[0].token_ids"),
    "ids too long": (lambda r: ids(r, [9] * 256), "prompts[0].token_ids"),
    "ids out of the vocabulary": (lambda r: ids(r, [9, 4_000_000_000]), "prompts[0].token_ids"),
    "id just out of the vocabulary": (lambda r: ids(r, [9, NUM_TOKENS]), "prompts[0].token_ids"),
    "too urgent": (lambda r: setattr(r.params, "priority", -1001), "params.priority"),
    "no kind of constraint": (lambda r: r.params.constraint.SetInParent(), "params.constraint"),
    "no choices": (lambda r: r.params.constraint.choices.SetInParent(), "params.constraint.choices.texts"),
    "a choice twice": (
        lambda r: r.params.constraint.choices.texts.extend(["a", "a"]),
        "params.constraint.choices.texts",
    ),
    "an empty choice": (
        lambda r: r.params.constraint.choices.texts.extend(["a", ""]),
        "params.constraint.choices.texts",
    ),
    "no regular expression": (lambda r: setattr(r.params.constraint, "regex", "(("), "params.constraint.regex"),
    "too large an expression": (
        lambda r: setattr(r.params.constraint, "regex", "a" * 4097),
        "params.constraint.regex",
    ),
    "no JSON": (lambda r: setattr(r.params.constraint, "json_schema", "{"), "params.constraint.json_schema"),
    "no schema": (
        lambda r: setattr(r.params.constraint, "json_schema", '{"type": 7}'),
        "params.constraint.json_schema",
    ),
    "empty stop": (lambda r: r.params.stop_sequences.extend(["x", ""]), "params.stop_sequences[1]"),
}


async def test_wrong_fields_are_refused_by_name(stub: sampler_service_pb2_grpc.SamplerServiceStub) -> None:
    for name, (change, field) in BAD.items():
        request = good_request()
        change(request)
        with pytest.raises(InvalidInputError) as caught:
            await stub.SampleCompletions(request)
        assert caught.value.field == field, name
        with pytest.raises(InvalidInputError) as caught:
            async for _ in stub.StreamCompletions(pb.StreamCompletionsRequest.FromString(request.SerializeToString())):
                pass
        assert caught.value.field == field, name
    assert len((await stub.SampleCompletions(good_request())).completions) == 2


FIXES = {
    "prompt too long": "at most 255 fit",
    "ids too long": "at most 255 fit",
    "negative temperature": r"-0\.1 is not in \[0, 10\]",
    "messages and ids": "give the conversation or its tokens",
    "second prompt empty": "give messages or token_ids",
    "ids out of the vocabulary": f"4000000000 is no token of the model, whose ids end at {NUM_TOKENS - 1}",
    "too many in all": "more than the limit of 100",
    "too urgent": "-1001 is not from -1000 to 1000",
    "no kind of constraint": "one of choices, regex and json_schema is needed",
}


async def test_refusals_say_what_would_be_right(stub: sampler_service_pb2_grpc.SamplerServiceStub) -> None:
    for name, sentence in FIXES.items():
        request = good_request()
        BAD[name][0](request)
        with pytest.raises(InvalidInputError, match=sentence):
            await stub.SampleCompletions(request)


async def test_no_number_of_completions_is_one(stub: sampler_service_pb2_grpc.SamplerServiceStub) -> None:
    request = good_request()
    request.params.num_completions = 0
    assert len((await stub.SampleCompletions(request)).completions) == 1


async def test_token_ids_are_the_same_prompt_as_their_messages(
    stub: sampler_service_pb2_grpc.SamplerServiceStub,
) -> None:
    said = await stub.SampleCompletions(good_request())
    request = good_request()
    ids(request, list(said.prompt_tokens[0].token_ids))
    again = await stub.SampleCompletions(request)
    assert again.prompt_tokens == said.prompt_tokens
    assert [(c.token_ids, c.logprobs) for c in again.completions] == [
        (c.token_ids, c.logprobs) for c in said.completions
    ]


async def test_constraints_hold_and_what_the_engine_cannot_do_is_unimplemented(
    stub: sampler_service_pb2_grpc.SamplerServiceStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = good_request()
    request.params.max_tokens = 30
    request.params.constraint.choices.texts.extend(["yes", "no"])
    assert {completion.text for completion in (await stub.SampleCompletions(request)).completions} <= {"yes", "no"}

    nothing = Capabilities(
        choice_logprobs=True,
        constraints=False,
        loads_weights=True,
        loads_adapters=False,
        repeatable=True,
        token_ids=False,
    )
    monkeypatch.setattr(HfEngine, "capabilities", property(lambda _: nothing))
    with pytest.raises(UnsupportedError, match=r"leave params\.constraint out") as caught:
        await stub.SampleCompletions(request)
    assert caught.value.reason == "CONSTRAINTS_NOT_SUPPORTED"
    request = good_request()
    ids(request, [9, 10])
    with pytest.raises(UnsupportedError, match="send messages, not token_ids") as caught:
        await stub.SampleCompletions(request)
    assert caught.value.reason == "TOKEN_IDS_NOT_SUPPORTED"


async def test_a_model_without_a_chat_template_or_with_pickles_only_stops_the_start(
    model_folder: Path, tmp_path: Path
) -> None:
    for name, spoil, sentence in (
        ("no template", lambda folder: (folder / "chat_template.jinja").unlink(), "has no chat template"),
        (
            "pickle",
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "only as pickle .* save them as safetensors",
        ),
    ):
        folder = tmp_path / name
        shutil.copytree(model_folder, folder)
        spoil(folder)
        settings = SamplerSettings(model=str(folder), policy=POLICY, listen=ListenSettings(metrics_address=None))
        with pytest.raises(InvalidInputError, match=sentence) as caught:
            async with serving(make_service(settings), settings.listen):
                pytest.fail("it served")
        assert caught.value.field == "model"


async def test_another_policy_is_not_found(stub: sampler_service_pb2_grpc.SamplerServiceStub) -> None:
    request = good_request()
    request.policy = "policies/other"
    for call in (
        stub.SampleCompletions(request),
        stub.GetPolicy(pb.GetPolicyRequest(name="policies/other")),
        stub.LoadPolicy(pb.LoadPolicyRequest(name="policies/other")),
    ):
        with pytest.raises(NotFoundError) as caught:
            await call
        assert caught.value.metadata["resource_name"] == "policies/other"
    for call in (stub.GetPolicy(pb.GetPolicyRequest()), stub.LoadPolicy(pb.LoadPolicyRequest())):
        with pytest.raises(InvalidInputError) as invalid:
            await call
        assert invalid.value.field == "name"


@pytest.mark.parametrize("continuous", [False, True])
async def test_a_full_queue_says_when_to_try_again(model_folder: Path, continuous: bool) -> None:
    settings = SamplerSettings(
        model=str(model_folder),
        policy=POLICY,
        # Of rows of 200 tokens the cache holds eight: the others wait.
        engine=EngineSettings(num_threads=1, continuous_batching=continuous, max_cache_tokens=1600),
        listen=ListenSettings(metrics_address=None),
        queue=QueueSettings(max_queue_completions=20),
    )
    request = good_request()
    request.params.num_completions, request.params.max_tokens = 16, 190
    async with serving(make_service(settings), settings.listen) as server:
        channel = open_aio_channel(ClientSettings(target=server.address))
        stub = sampler_service_pb2_grpc.SamplerServiceStub(channel)
        outcomes = await asyncio.gather(*(stub.SampleCompletions(request) for _ in range(6)), return_exceptions=True)
        assert len((await stub.SampleCompletions(request)).completions) == 16
        await channel.close()
    refused = [outcome for outcome in outcomes if isinstance(outcome, RlaifError)]
    assert refused
    assert len(refused) < 6
    for error in refused:
        assert isinstance(error, QuotaExceededError)
        assert error.retry_after_seconds >= 0.1
