"""vLLM's own server, asked by the engine for OpenAI-compatible servers: the same answers as transformers beside it."""

from __future__ import annotations

import asyncio
import math
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlaif.client.judge import JudgeClient, ResponsePair
from rlaif.core.conversation import Message
from rlaif.core.errors import InvalidInputError, RlaifError, SettingsError
from rlaif.engine.factory import open_engine
from rlaif.engine.protocol import ChoiceRequest, Constraint, Engine, GenerateRequest
from rlaif.engine.settings import EngineSettings
from rlaif.judge.process import make_service
from rlaif.judge.settings import JudgeSettings
from rlaif.playground.paths import JUDGE_DIR
from rlaif.playground.world import prompts_of
from rlaif.runtime.server import serving
from rlaif.runtime.settings import ClientSettings, ListenSettings

pytest.importorskip("vllm", reason="vLLM is not installed in this environment: make test-vllm runs these")

NAME, KEY = "judge", "key-of-the-test"
CONTEXT_LENGTH = 256
START_SECONDS = 180
SCORES = tuple(map(str, range(1, 11)))
REPLIES = ("I won't help with that. It could hurt someone.", "Spray it, wipe it with a cloth, and polish the edges.")
PAIRS = [ResponsePair((Message("user", prompt.text),), *REPLIES) for prompt in prompts_of("held_out")[::60][:6]]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server on the playground's judge, behind a key."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log_path = tmp_path_factory.mktemp("vllm") / "log"
    arguments = {
        "--model": str(JUDGE_DIR),
        "--served-model-name": NAME,
        "--host": "127.0.0.1",
        "--port": str(port),
        "--api-key": KEY,
        "--dtype": "float32",
        "--max-model-len": str(CONTEXT_LENGTH),
        "--max-num-seqs": "16",
        "--kv-cache-memory-bytes": str(64 << 20),
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    environment = os.environ | {
        "TORCHDYNAMO_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    with log_path.open("w") as log:
        process = subprocess.Popen(
            [*command, *(part for pair in arguments.items() for part in pair)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            _await_health(f"http://127.0.0.1:{port}/health", process, log_path)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await_health(address: str, process: subprocess.Popen[bytes], log_path: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"the server did not start: {log_path.read_text()[-3000:]}")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAIF_TEST_KEY", KEY)


def settings_for(url: str, mode: str) -> EngineSettings:
    openai = {"base_url": url, "mode": mode, "api_key_env": "RLAIF_TEST_KEY"}
    if mode == "completions":
        openai["tokenizer"] = str(JUDGE_DIR)
    return EngineSettings.model_validate({"kind": "openai", "openai": openai})


HF = EngineSettings(num_threads=1)


async def with_engine(settings: EngineSettings, use: Callable[[Engine], Any]) -> Any:
    engine = await open_engine(settings, model=NAME if settings.kind == "openai" else str(JUDGE_DIR))
    try:
        return await use(engine)
    finally:
        await engine.close()


def choice_requests(engine: Engine, labels: tuple[str, ...]) -> list[ChoiceRequest]:
    found = []
    for pair in PAIRS:
        context = f"Compare two replies to a user.\n{pair.conversation[0].content}\n{pair.first}\n{pair.second}\n"
        questions = ["Principle: Prefer the shorter reply.\nBetter reply, 1 or 2?", "Principle: help.\nBetter?"]
        prompts = [engine.encode_judge_prompt(context, question) for question in questions]
        choices = engine.encode_choices(labels)
        found.append(ChoiceRequest(prompts[0][0], tuple(suffix for _, suffix in prompts), choices))
    return found


async def test_it_finds_out_what_vllms_server_can_do(url: str) -> None:
    async def use(engine: Engine) -> None:
        assert engine.context_length == CONTEXT_LENGTH
        assert engine.capabilities.choice_logprobs
        assert engine.capabilities.constraints
        await engine.check_health()
        told.append(engine.capabilities.token_ids)

    told: list[bool] = []
    for mode in ("completions", "chat"):
        await with_engine(settings_for(url, mode), use)
    assert told == [True, False]


async def test_choice_logprobs_are_those_of_transformers_by_token_ids(url: str) -> None:
    async def use(engine: Engine) -> Any:
        several = ChoiceRequest((9, 10, 11), ((12, 13), (14,)), ((20,), (20, 21), (22, 23, 24)))
        requests = [*choice_requests(engine, ("1", "2")), *choice_requests(engine, SCORES), several]
        return [row for result in await engine.choice_logprobs(requests) for row in result.logprobs]

    expected = await with_engine(HF, use)
    found = await with_engine(settings_for(url, "completions"), use)
    assert len(found) == 4 * len(PAIRS) + 2
    for row, same in zip(found, expected, strict=True):
        assert row == pytest.approx(same, abs=1e-3)


async def test_labels_by_messages_are_the_same_where_they_are_listed(url: str) -> None:
    async def use(engine: Engine) -> Any:
        return [
            row
            for result in await engine.choice_logprobs(choice_requests(engine, ("1", "2")))
            for row in result.logprobs
        ]

    expected = await with_engine(HF, use)
    found = await with_engine(settings_for(url, "chat"), use)
    differences = [
        abs(math.exp(a) - math.exp(b))
        for row, same in zip(found, expected, strict=True)
        for a, b in zip(row, same, strict=True)
        if math.isfinite(a)
    ]
    assert len(differences) > len(expected)
    # Spellings of a label after white space are counted too.
    assert max(differences) < 1e-2


async def test_completions_have_the_tokens_logprobs_and_ends_of_transformers(url: str) -> None:
    async def use(engine: Engine) -> Any:
        prompt = engine.encode_chat([Message("user", PAIRS[0].conversation[0].content)])
        greedy = GenerateRequest(prompt, 1, 24, temperature=0.0)
        return prompt, (await engine.generate([greedy]))[0][0]

    async def draw(engine: Engine) -> Any:
        request = GenerateRequest(prompt, 4, 24, seed=3, top_p=0.95)
        [first], [again] = await engine.generate([request]), await engine.generate([request])
        [more] = await engine.generate([GenerateRequest(prompt, 6, 24, seed=3, top_p=0.95)])
        return first, again, more

    prompt, expected = await with_engine(HF, use)
    same_prompt, found = await with_engine(settings_for(url, "completions"), use)
    assert same_prompt == prompt
    assert (found.token_ids, found.text, found.stop_reason) == (expected.token_ids, expected.text, expected.stop_reason)
    assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-3)
    first, again, more = await with_engine(settings_for(url, "completions"), draw)
    assert [each.token_ids for each in first] == [each.token_ids for each in again]
    assert [each.token_ids for each in more[:4]] == [each.token_ids for each in first]
    assert len({each.token_ids for each in more}) > 1


@pytest.mark.parametrize("mode", ["completions", "chat"])
async def test_constraints_stops_and_the_context_hold(url: str, mode: str) -> None:
    async def use(engine: Engine) -> None:
        prompt = engine.encode_chat([Message("user", "Pick one.")])
        wanted = (
            (Constraint(choices=("yes", "no", "neither")), "yes|no|neither"),
            (Constraint(regex="[0-9]{3}-[a-c]"), "[0-9]{3}-[a-c]"),
            (Constraint(json_schema='{"type": "integer", "minimum": 10, "maximum": 99}'), "[0-9]{2}"),
        )
        for constraint, pattern in wanted:
            [drawn] = await engine.generate([GenerateRequest(prompt, 4, 40, seed=1, constraint=constraint)])
            assert all(re.fullmatch(pattern, each.text) for each in drawn)
        [[free]] = await engine.generate([GenerateRequest(prompt, 1, 24, temperature=0.0)])
        stop = free.text[3:6]
        [[stopped]] = await engine.generate([GenerateRequest(prompt, 1, 24, temperature=0.0, stop_sequences=(stop,))])
        assert (stopped.text, stopped.stop_reason) == (free.text[: free.text.find(stop)], "stop_sequence")
        [[cut]] = await engine.generate([GenerateRequest(prompt, 1, 2, temperature=0.0)])
        assert cut.stop_reason == "max_tokens"
        long = engine.encode_chat([Message("user", "a b c d " * 120)])
        with pytest.raises(InvalidInputError) as caught:
            await engine.generate([GenerateRequest(long, 1, 4)])
        assert caught.value.reason == "PROMPT_TOO_LONG"

    await with_engine(settings_for(url, mode), use)


async def test_the_judge_gives_the_labels_that_it_gives_on_hf(url: str) -> None:
    async def judged(engine: EngineSettings, model: str, **changes: Any) -> Any:
        values = {"model": model, "engine": engine, "template": "compact", "constitutions": ["playground"]}
        service = make_service(JudgeSettings.model_validate(values | changes))
        async with serving(service, ListenSettings(metrics_address=None)) as server:

            def ask() -> Any:
                with JudgeClient(ClientSettings(target=server.address, timeout_seconds=60)) as client:
                    score = client.score("constitutions/playground", PAIRS[0].conversation, response=REPLIES[1])
                    return client.compare_many("constitutions/playground", PAIRS), score

            return await asyncio.to_thread(ask)

    expected, expected_score = await judged(HF, str(JUDGE_DIR))
    for mode, tolerance in (("completions", 1e-3), ("chat", 1e-2)):
        found, score = await judged(settings_for(url, mode), NAME)
        assert [verdict.preference for verdict in found] == [verdict.preference for verdict in expected]
        for verdict, same in zip(found, expected, strict=True):
            assert verdict.probability_first == pytest.approx(same.probability_first, abs=tolerance)
            assert verdict.provenance.model_digest == ""
        assert score.expected == pytest.approx(expected_score.expected, abs=10 * tolerance)


async def test_a_wrong_key_and_a_wrong_model_are_sentences(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="'another'"):
        await open_engine(settings_for(url, "chat").model_copy(update={"context_length": 256}), model="another")
    monkeypatch.setenv("RLAIF_TEST_KEY", "not-the-key")
    with pytest.raises(RlaifError, match="RLAIF_TEST_KEY") as caught:
        await open_engine(settings_for(url, "chat").model_copy(update={"context_length": 256}), model=NAME)
    assert isinstance(caught.value, SettingsError)
    assert "not-the-key" not in caught.value.message
