"""A server of the OpenAI protocol that misbehaves: every failure is a typed error that names it, no number."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from model_fixtures import model_folder as model_folder
from openai_server import MODEL, ModelServer, serving_model
from rlaif.core.conversation import Message
from rlaif.core.errors import (
    DeadlineError,
    InvalidInputError,
    QuotaExceededError,
    RlaifError,
    SettingsError,
    UnavailableError,
    UnsupportedError,
)
from rlaif.engine.openai import endpoint as endpoint_module
from rlaif.engine.openai.engine import OpenAiEngine
from rlaif.engine.openai.settings import OpenAiSettings
from rlaif.engine.protocol import ChoiceRequest, GenerateRequest
from rlaif.runtime.logging import configure_logging

KEY = "sk-very-secret-7f3a"
QUESTION = "How do I boil an egg for exactly nine minutes?"
JSON = {"Content-Type": "application/json"}

Fault = Callable[[Any, str, Mapping[str, Any]], bool]


@pytest.fixture(scope="module")
def server(model_folder: Path) -> Iterator[tuple[ModelServer, str]]:
    served = ModelServer(model_folder)
    with serving_model(served) as url:
        yield served, url


@pytest.fixture(autouse=True)
def well_behaved(server: tuple[ModelServer, str]) -> Iterator[None]:
    yield
    server[0].fault, server[0].api_key = None, ""
    server[0].requests.clear()
    server[0].headers.clear()


def says(status: int, data: bytes, headers: Mapping[str, str] = JSON, *, length: int | None = None) -> Fault:
    def fault(handler: Any, path: str, body: Mapping[str, Any]) -> bool:
        handler.close_connection = length is not None
        handler.send_bytes(status, data, headers=headers, length=length)
        return True

    return fault


def answers(**changes: Any) -> Fault:
    """A success whose one choice differs from a sound one in this."""
    choice = {"index": 0, "finish_reason": "stop", "text": "1", "message": {"role": "assistant", "content": "1"}}
    return says(200, json.dumps({"choices": [choice | changes]}).encode())


def refuses(status: int, message: str, **fields: Any) -> Fault:
    return says(status, json.dumps({"error": {"message": message} | fields}).encode())


def hangs(handler: Any, path: str, body: Mapping[str, Any]) -> bool:
    handler.close_connection = True
    handler.server.served.released.wait(20)
    return True


def hangs_up(handler: Any, path: str, body: Mapping[str, Any]) -> bool:
    handler.close_connection = True
    return True


def engine_settings(url: str, folder: Path | None = None, **changes: Any) -> OpenAiSettings:
    values: dict[str, Any] = {"base_url": url, "max_retries": 0, "timeout_seconds": 30}
    if folder is not None:
        values |= {"mode": "completions", "tokenizer": str(folder)}
    return OpenAiSettings.model_validate(values | changes)


async def ask(engine: OpenAiEngine, what: str) -> Any:
    if what == "generate":
        return await engine.generate([GenerateRequest(engine.encode_chat([Message("user", QUESTION)]), 1, 4)])
    prefix, suffix = engine.encode_judge_prompt(QUESTION, "1 or 2?")
    return await engine.choice_logprobs([ChoiceRequest(prefix, (suffix,), engine.encode_choices(["1", "2"]))])


FAULTS: dict[str, tuple[Fault, type[RlaifError], str, str]] = {
    "500": (says(500, b'{"error": {"message": "CUDA out of memory"}}'), UnavailableError, "UNAVAILABLE", "HTTP 500"),
    "503 as a page": (
        says(503, b"<html>busy</html>", {"Content-Type": "text/html"}),
        UnavailableError,
        "UNAVAILABLE",
        "HTTP 503",
    ),
    "429": (
        says(429, b'{"error": {"message": "slow down"}}', {"Retry-After": "7"}),
        QuotaExceededError,
        "RATE_LIMITED",
        "slow down",
    ),
    "a spent budget": (
        refuses(429, "You exceeded your current quota", code="insufficient_quota"),
        QuotaExceededError,
        "RATE_LIMITED",
        "exceeded your current quota",
    ),
    "garbage": (says(200, b'{"choices": [{"te'), UnavailableError, "MALFORMED_RESPONSE", "json that are no JSON"),
    "a page": (
        says(200, b"<html>Welcome</html>", {"Content-Type": "text/html; charset=utf-8"}),
        UnavailableError,
        "MALFORMED_RESPONSE",
        "text/html that are no JSON",
    ),
    "the wrong content type around garbage": (
        says(200, b"\x80\x81\xff", {"Content-Type": "image/png"}),
        UnavailableError,
        "MALFORMED_RESPONSE",
        "image/png",
    ),
    "nothing": (says(200, b""), UnavailableError, "MALFORMED_RESPONSE", "0 bytes"),
    "a list": (says(200, b"[1, 2]"), UnavailableError, "MALFORMED_RESPONSE", "no object"),
    "an error as a success": (
        says(200, b'{"error": {"message": "no"}}'),
        UnavailableError,
        "MALFORMED_RESPONSE",
        "status of a success",
    ),
    "no choices": (says(200, b'{"choices": []}'), UnavailableError, "MALFORMED_RESPONSE", "0 choices"),
    "choices that are none": (says(200, b'{"choices": "1"}'), UnavailableError, "MALFORMED_RESPONSE", "no choices"),
    "two choices": (says(200, b'{"choices": [{}, {}]}'), UnavailableError, "MALFORMED_RESPONSE", "2 choices"),
    "NaN": (
        says(200, b'{"choices": [{"logprobs": {"content": [{"token": "1", "logprob": NaN}]}}]}'),
        UnavailableError,
        "MALFORMED_RESPONSE",
        "no JSON",
    ),
    "half a body": (
        says(200, b'{"choices": [', length=400),
        UnavailableError,
        "UNAVAILABLE",
        "cannot be reached",
    ),
    "no answer at all": (hangs_up, UnavailableError, "UNAVAILABLE", "cannot be reached"),
    "slowness": (hangs, DeadlineError, "DEADLINE_EXCEEDED", "did not answer within"),
    "401": (refuses(401, f"Incorrect API key provided: {KEY}"), SettingsError, "INVALID_SETTINGS", "RLAIF_TEST_KEY"),
    "403": (refuses(403, "forbidden"), SettingsError, "INVALID_SETTINGS", "RLAIF_TEST_KEY"),
    "404": (refuses(404, "The model does not exist"), SettingsError, "INVALID_SETTINGS", "engine.openai.base_url"),
    "another place": (
        says(307, b"", {"Location": "http://127.0.0.1:9/elsewhere"}),
        SettingsError,
        "INVALID_SETTINGS",
        "HTTP 307",
    ),
    "a refusal": (refuses(400, "top_p is unknown"), UnsupportedError, "REQUEST_REFUSED", "top_p is unknown"),
    "a filter": (
        refuses(400, "content management policy", code="content_filter"),
        InvalidInputError,
        "CONTENT_FILTERED",
        "filters the prompt",
    ),
    "a context that is too short": (
        refuses(400, "This model's maximum context length is 4096 tokens."),
        InvalidInputError,
        "PROMPT_TOO_LONG",
        "longer than the model's context",
    ),
    "a context too short, TGI's": (
        refuses(422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048"),
        InvalidInputError,
        "PROMPT_TOO_LONG",
        "longer than the model's context",
    ),
}


@pytest.mark.parametrize("mode", ["completions", "chat"])
@pytest.mark.parametrize("name", sorted(FAULTS))
async def test_a_misbehaving_server_is_a_typed_error_and_never_a_number(
    server: tuple[ModelServer, str], model_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, mode: str
) -> None:
    served, url = server
    fault, error_class, reason, sentence = FAULTS[name]
    monkeypatch.setenv("RLAIF_TEST_KEY", KEY)
    folder = model_folder if mode == "completions" else None
    timeout_seconds = 1.0 if fault is hangs else 30.0
    engine = await OpenAiEngine.open(
        engine_settings(url, folder, api_key_env="RLAIF_TEST_KEY", timeout_seconds=timeout_seconds),
        model=MODEL,
        context_length=256,
    )
    served.fault = fault
    try:
        for what in ("generate", "choices"):
            if (what, reason) == ("choices", "PROMPT_TOO_LONG"):
                [result] = await ask(engine, what)
                assert result.too_long
                continue
            if (what, mode, reason) == ("choices", "chat", "CONTENT_FILTERED"):
                [result] = await ask(engine, what)
                assert str(result.logprobs) == "((nan, nan),)"
                continue
            with pytest.raises(error_class) as caught:
                await ask(engine, what)
            assert caught.value.reason == reason
            assert url in caught.value.message
            assert sentence in caught.value.message
            assert KEY not in f"{caught.value.message} {caught.value.metadata}"
            if isinstance(caught.value, QuotaExceededError):
                assert caught.value.retry_after_seconds == (7.0 if name == "429" else 8.0)
        served.fault = None
        assert await ask(engine, "choices")
    finally:
        await engine.close()


BAD_CHOICES: dict[str, dict[str, Any]] = {
    "no text": {"text": None, "message": {"role": "assistant"}, "finish_reason": "stop", "logprobs": None},
    "no reason to end": {"finish_reason": None},
    "an unknown reason to end": {"finish_reason": "tool_calls"},
    "a number for a token": {"logprobs": {"content": [{"token": 1, "logprob": -0.1}], "tokens": [1]}},
    "text for a number": {
        "logprobs": {"content": [{"token": "1", "logprob": "-0.1"}], "tokens": ["1"], "token_logprobs": ["-0.1"]}
    },
    "a log-probability above 0": {
        "logprobs": {"content": [{"token": "1", "logprob": 2.0}], "tokens": ["1"], "token_logprobs": [2.0]}
    },
    "likeliest tokens that are no list": {
        "logprobs": {"content": [{"token": "1", "logprob": -0.1, "top_logprobs": {"1": -0.1}}]}
    },
}


@pytest.mark.parametrize("mode", ["completions", "chat"])
@pytest.mark.parametrize("name", sorted(BAD_CHOICES))
async def test_an_answer_that_lacks_what_was_asked_for_is_malformed(
    server: tuple[ModelServer, str], model_folder: Path, name: str, mode: str
) -> None:
    served, url = server
    folder = model_folder if mode == "completions" else None
    engine = await OpenAiEngine.open(engine_settings(url, folder), model=MODEL, context_length=256)
    served.fault = answers(**BAD_CHOICES[name])
    # By messages a text needs no log-probabilities; what asks for them refuses each of these.
    kinds = ["choices"] if mode == "chat" and "logprobs" in BAD_CHOICES[name] else ["generate", "choices"]
    if name == "no text":
        kinds = ["choices"] if mode == "chat" else ["generate", "choices"]
    for what in kinds:
        with pytest.raises(UnavailableError) as caught:
            await ask(engine, what)
        assert caught.value.reason == "MALFORMED_RESPONSE"
        assert url in caught.value.message
    await engine.close()


async def test_a_server_that_is_not_there_is_told_at_start() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(UnavailableError, match="cannot be reached") as caught:
            await OpenAiEngine.open(engine_settings(url), model=MODEL, context_length=256)
    assert url in caught.value.message


async def test_a_model_that_is_not_served_is_told_at_start(server: tuple[ModelServer, str]) -> None:
    with pytest.raises(SettingsError, match="'another'") as caught:
        await OpenAiEngine.open(engine_settings(server[1]), model="another", context_length=256)
    assert "`another` does not exist" in caught.value.message


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What is waited between tries, instead of waiting it."""
    delays: list[float] = []

    async def sleep(seconds: float) -> None:
        delays.append(seconds)

    monkeypatch.setattr(endpoint_module, "_pause", sleep)
    return delays


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (says(429, b"{}", {"Retry-After": "3"}), [3.0, 3.0]),
        (says(503, b"{}", {"retry-after-ms": "1500"}), [1.5, 1.5]),
        (says(500, b"{}"), [(0.375, 0.5), (0.75, 1.0)]),
        (says(200, b"{", length=10), [(0.375, 0.5), (0.75, 1.0)]),
    ],
)
async def test_what_passes_is_tried_again_when_the_server_says_or_ever_later(
    server: tuple[ModelServer, str], slept: list[float], fault: Fault, expected: list[Any]
) -> None:
    served, url = server
    engine = await OpenAiEngine.open(engine_settings(url, max_retries=2), model=MODEL, context_length=256)
    sound = await ask(engine, "generate")
    left = iter([fault, fault])

    def twice(handler: Any, path: str, body: Mapping[str, Any]) -> bool:
        again = next(left, None)
        return again is not None and again(handler, path, body)

    served.requests.clear()
    served.fault = twice
    assert await ask(engine, "generate") == sound
    assert len(served.requests) == 3
    for delay, bound in zip(slept, expected, strict=True):
        assert delay == bound if isinstance(bound, float) else bound[0] <= delay <= bound[1]
    await engine.close()


async def test_no_try_begins_that_the_deadline_would_cut_off(
    server: tuple[ModelServer, str], slept: list[float]
) -> None:
    served, url = server
    engine = await OpenAiEngine.open(
        engine_settings(url, max_retries=9, timeout_seconds=20), model=MODEL, context_length=256
    )
    served.requests.clear()
    served.fault = says(429, b"{}", {"Retry-After": "60"})
    with pytest.raises(QuotaExceededError) as caught:
        await ask(engine, "generate")
    assert caught.value.retry_after_seconds == 60
    assert (len(served.requests), slept) == (1, [])
    await engine.close()


@pytest.mark.parametrize("status", [400, 401, 404])
async def test_what_will_not_pass_is_not_tried_again(
    server: tuple[ModelServer, str], slept: list[float], status: int
) -> None:
    served, url = server
    engine = await OpenAiEngine.open(engine_settings(url, max_retries=9), model=MODEL, context_length=256)
    served.requests.clear()
    served.fault = refuses(status, "no")
    with pytest.raises(RlaifError):
        await ask(engine, "generate")
    assert len(served.requests) == 1
    await engine.close()


async def test_cancelling_aborts_the_http_request(server: tuple[ModelServer, str]) -> None:
    served, url = server
    engine = await OpenAiEngine.open(engine_settings(url), model=MODEL, context_length=256)
    arrived, gone = threading.Event(), threading.Event()

    def waits(handler: Any, path: str, body: Mapping[str, Any]) -> bool:
        handler.close_connection = True
        arrived.set()
        # Nothing more is sent on this connection: its end is what is read here.
        if handler.rfile.read(1) == b"":
            gone.set()
        return True

    served.fault = waits
    call = asyncio.create_task(ask(engine, "generate"))
    assert await asyncio.to_thread(arrived.wait, 20)
    assert engine.usage.running_completions == 1
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await asyncio.to_thread(gone.wait, 20)
    assert engine.usage.running_completions == 0
    await engine.close()


async def test_one_failure_ends_what_else_the_call_has_under_way(server: tuple[ModelServer, str]) -> None:
    served, url = server
    engine = await OpenAiEngine.open(engine_settings(url), model=MODEL, context_length=256)
    aborted = threading.Event()

    def one_fails(handler: Any, path: str, body: Mapping[str, Any]) -> bool:
        if body["messages"][0]["content"] == "fail":
            return refuses(400, "no")(handler, path, body)
        handler.close_connection = True
        if handler.rfile.read(1) == b"":
            aborted.set()
        return True

    served.fault = one_fails
    prompts = [engine.encode_chat([Message("user", text)]) for text in ("wait", "fail")]
    with pytest.raises(UnsupportedError):
        await engine.generate([GenerateRequest(prompt, 1, 4) for prompt in prompts])
    assert await asyncio.to_thread(aborted.wait, 20)
    await engine.close()


async def test_the_key_is_sent_and_is_seen_nowhere_else(
    server: tuple[ModelServer, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, url = server
    served.api_key = KEY
    monkeypatch.setenv("RLAIF_TEST_KEY", f"{KEY}\n")
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    log = (tmp_path / "log").open("w+")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure_logging("test", level="DEBUG", stream=log)
    try:
        for named in ({"api_key_env": "RLAIF_TEST_KEY"}, {"api_key_path": path}):
            settings = engine_settings(url, **named)
            engine = await OpenAiEngine.open(settings, model=MODEL, context_length=256)
            assert await ask(engine, "generate")
            assert served.headers[-1]["authorization"] == f"Bearer {KEY}"
            seen = f"{settings!r} {settings.model_dump_json()} {engine!r} {vars(engine)} {vars(engine._endpoint)}"
            assert KEY not in seen
            served.fault = says(500, json.dumps({"error": {"message": f"bad {KEY} for {QUESTION}"}}).encode())
            with pytest.raises(UnavailableError) as caught:
                await ask(engine, "generate")
            assert KEY not in caught.value.message
            assert QUESTION not in caught.value.message
            served.fault = None
            await engine.close()
    finally:
        root.handlers[:], root.level = handlers, level
        logging.captureWarnings(capture=False)
    log.seek(0)
    logged = log.read()
    log.close()
    assert "endpoint probed" in logged
    assert KEY not in logged
    assert QUESTION not in logged


async def test_without_a_named_key_none_is_sent_whatever_the_environment_holds(
    server: tuple[ModelServer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, url = server
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "RLAIF_TEST_KEY"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"Authorization: Bearer {KEY}")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    engine = await OpenAiEngine.open(engine_settings(url), model=MODEL, context_length=256)
    assert await ask(engine, "generate")
    assert KEY not in str(served.headers)
    await engine.close()


@pytest.mark.parametrize("value", [None, "", "two words", "line\nline"])
async def test_a_key_that_is_not_there_is_a_sentence_that_names_the_variable(
    server: tuple[ModelServer, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str | None
) -> None:
    monkeypatch.delenv("RLAIF_TEST_KEY", raising=False)
    path = tmp_path / "key"
    if value is not None:
        monkeypatch.setenv("RLAIF_TEST_KEY", value)
        path.write_text(value)
    for named, sentence in (({"api_key_env": "RLAIF_TEST_KEY"}, "RLAIF_TEST_KEY"), ({"api_key_path": path}, str(path))):
        with pytest.raises(SettingsError, match=sentence) as caught:
            await OpenAiEngine.open(engine_settings(server[1], **named), model=MODEL, context_length=256)
        assert value is None or not value or value not in caught.value.message
