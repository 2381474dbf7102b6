"""The judge and the sampler on a server of the OpenAI protocol, beside the same models on the engine hf."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from model_fixtures import write_model
from openai_server import MODEL, ModelServer, serving_model
from rlaif.client.judge import JudgeClient, JudgeOptions, ResponsePair
from rlaif.client.sampler import SamplerClient
from rlaif.core.conversation import Message
from rlaif.core.errors import InvalidInputError, QuotaExceededError, SettingsError, UnavailableError
from rlaif.judge.process import make_service as make_judge_service
from rlaif.judge.settings import JudgeSettings
from rlaif.oversight.process import make_service as make_oversight_service
from rlaif.oversight.settings import OversightSettings
from rlaif.playground.paths import JUDGE_DIR
from rlaif.playground.world import prompts_of
from rlaif.runtime.artifacts import folder_digest
from rlaif.runtime.server import serving
from rlaif.runtime.settings import ClientSettings, ListenSettings
from rlaif.sampler.process import make_service as make_sampler_service
from rlaif.sampler.settings import SamplerSettings

LISTEN = ListenSettings(metrics_address=None)
NAME = "constitutions/playground"
REPLIES = ("I won't help with that. It could hurt someone.", "Spray it, wipe it with a cloth, and polish the edges.")
PAIRS = [ResponsePair((Message("user", prompt.text),), *REPLIES) for prompt in prompts_of("held_out")[::40][:10]]
"""Questions of the playground's world, each with a refusal and a reply."""


@pytest.fixture(scope="module")
def judge_server() -> Iterator[tuple[ModelServer, str]]:
    served = ModelServer(JUDGE_DIR)
    with serving_model(served) as url:
        yield served, url


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny"), seed=3)


def by_ids(url: str, folder: Path = JUDGE_DIR, **changes: Any) -> dict[str, Any]:
    openai = {"base_url": url, "mode": "completions", "tokenizer": str(folder), "max_retries": 0}
    return {"kind": "openai", "openai": openai | changes}


def by_messages(url: str, **changes: Any) -> dict[str, Any]:
    return {"kind": "openai", "context_length": 256, "openai": {"base_url": url, "max_retries": 0} | changes}


def judge_settings(engine: dict[str, Any], **changes: Any) -> JudgeSettings:
    values = {"model": MODEL, "engine": engine, "template": "compact", "constitutions": ["playground"]}
    return JudgeSettings.model_validate(values | changes)


@asynccontextmanager
async def judging(engine: dict[str, Any], **changes: Any) -> AsyncIterator[ClientSettings]:
    async with serving(make_judge_service(judge_settings(engine, **changes)), LISTEN) as server:
        yield ClientSettings(target=server.address, timeout_seconds=120)


async def asked(settings: ClientSettings, use: Callable[[Any], Any], client_class: Any = JudgeClient) -> Any:
    def run() -> Any:
        with client_class(settings) as client:
            return use(client)

    return await asyncio.to_thread(run)


@asynccontextmanager
async def ledger_at(path: Path) -> AsyncIterator[ClientSettings]:
    oversight = OversightSettings.model_validate({"database_url": f"sqlite:///{path}"})
    async with serving(make_oversight_service(oversight), LISTEN) as server:
        yield ClientSettings(target=server.address, timeout_seconds=60)


async def test_the_playgrounds_judge_gives_the_labels_that_it_gives_on_hf(judge_server: tuple[ModelServer, str]):
    url = judge_server[1]
    async with judging({"num_threads": 1}, model=str(JUDGE_DIR)) as address:
        expected = await asked(address, lambda c: c.compare_many(NAME, PAIRS))
        expected_score = await asked(address, lambda c: c.score(NAME, PAIRS[0].conversation, response=REPLIES[1]))
    for engine, tolerance in ((by_ids(url), 1e-4), (by_messages(url), 1e-2)):
        async with judging(engine) as address:
            found = await asked(address, lambda c: c.compare_many(NAME, PAIRS))
            score = await asked(address, lambda c: c.score(NAME, PAIRS[0].conversation, response=REPLIES[1]))
        assert [verdict.preference for verdict in found] == [verdict.preference for verdict in expected]
        for verdict, same in zip(found, expected, strict=True):
            assert verdict.probability_first == pytest.approx(same.probability_first, abs=tolerance)
            assert verdict.order_consistent == same.order_consistent
            for vote, other in zip(verdict.votes, same.votes, strict=True):
                assert vote.verdict_mass == pytest.approx(other.verdict_mass, abs=tolerance)
            assert verdict.provenance.num_verdict_samples == 0
        assert score.expected == pytest.approx(expected_score.expected, abs=10 * tolerance)


async def test_unknown_weights_are_never_answered_from_the_ledger_and_declared_ones_are(
    judge_server: tuple[ModelServer, str], tmp_path: Path
):
    async with ledger_at(tmp_path / "ledger.sqlite") as ledger:
        for declared, again in (("", False), (folder_digest(JUDGE_DIR), True)):
            async with judging(by_ids(judge_server[1], model_digest=declared), ledger=ledger.model_dump()) as address:
                state = await asked(address, lambda c: c.get_judge())
                assert (state.model_digest, bool(state.fingerprint)) == (declared, again)
                first = await asked(address, lambda c: c.compare_many(NAME, PAIRS[:2]))
                second = await asked(address, lambda c: c.compare_many(NAME, PAIRS[:2]))
            assert [verdict.recorded_before for verdict in first] == [False, False]
            assert [verdict.recorded_before for verdict in second] == [again, again]
            assert {verdict.label for verdict in first}.isdisjoint(verdict.label for verdict in second) != again
        # The same weights on hf answer for them, and are answered by them.
        async with judging({"num_threads": 1}, model=str(JUDGE_DIR), ledger=ledger.model_dump()) as address:
            found = await asked(address, lambda c: c.compare_many(NAME, PAIRS[:2]))
        assert [verdict.label for verdict in found] == [verdict.label for verdict in first]


@pytest.mark.parametrize("mode", ["completions", "chat"])
async def test_without_log_probabilities_the_judge_says_so_and_does_not_start(tiny_folder: Path, mode: str):
    with serving_model(ModelServer(tiny_folder, manner="plain", logprobs=False)) as url:
        engine = by_ids(url, tiny_folder) | {"context_length": 256} if mode == "completions" else by_messages(url)
        with pytest.raises(SettingsError, match=r"gives no log-probabilities.*without_logprobs") as caught:
            async with judging(engine):
                pass
    assert url in caught.value.message
    assert caught.value.field == "without_logprobs"


async def test_or_it_estimates_verdicts_from_draws_and_says_so(judge_server: tuple[ModelServer, str]):
    pairs, options = PAIRS[:2], JudgeOptions(principle_ids=("brief",), seed=4)
    sampling = {"without_logprobs": "sample", "num_verdict_samples": 64}
    with serving_model(ModelServer(JUDGE_DIR, logprobs=False)) as url:
        async with judging(by_messages(url), **sampling) as address:
            verdicts = await asked(address, lambda c: c.compare_many(NAME, pairs, options=options))
            again = await asked(address, lambda c: c.compare_many(NAME, pairs, options=options))
            score = await asked(
                address, lambda c: c.score(NAME, pairs[0].conversation, response=REPLIES[1], options=options)
            )
            assert (await asked(address, lambda c: c.get_judge())).num_verdict_samples == 64
    async with judging(by_ids(judge_server[1])) as address:
        expected = await asked(address, lambda c: c.compare_many(NAME, pairs, options=options))
        exact_score = await asked(
            address, lambda c: c.score(NAME, pairs[0].conversation, response=REPLIES[1], options=options)
        )
    for verdict, other, same in zip(verdicts, again, expected, strict=True):
        assert (verdict.provenance.num_verdict_samples, verdict.provenance.seed) == (64, 4)
        [vote], [drawn_again], [exact] = verdict.votes, other.votes, same.votes
        assert vote == drawn_again
        # Held to the labels, every draw is one; 64 of each order have a standard error of at most .045.
        assert vote.verdict_mass == 1.0
        assert (vote.probability_first * 128) % 1 == 0
        assert vote.probability_first == pytest.approx(exact.probability_first, abs=4 * 0.045)
    # Scores spread over ten labels: at most 4.5 / 8 standard errors' worth from 64 draws.
    assert score.expected == pytest.approx(exact_score.expected, abs=4 * 4.5 / 8)
    assert score.provenance.num_verdict_samples == 64


async def test_draws_that_go_on_after_the_label_are_no_verdicts():
    # This judge is taught the label alone: left to itself it goes on, and what it then says is not searched for one.
    options, sampling = JudgeOptions(principle_ids=("brief",)), {"without_logprobs": "sample"}
    with serving_model(ModelServer(JUDGE_DIR, logprobs=False, constraints=False)) as url:
        async with judging(by_messages(url), **sampling) as address:
            [verdict] = await asked(address, lambda c: c.compare_many(NAME, PAIRS[:1], options=options))
    assert (verdict.preference, verdict.probability_first) == ("abstain", None)
    assert (verdict.abstention_reason, verdict.votes[0].verdict_mass) == ("low_verdict_mass", 0.0)


async def test_a_pair_that_only_the_server_finds_too_long_abstains_in_a_batch_and_is_refused_alone(
    judge_server: tuple[ModelServer, str],
):
    # Short words: fewer bytes than the context has room for, more tokens.
    long = ResponsePair(PAIRS[0].conversation, "a b c d e f g h " * 60, REPLIES[1])
    length = judge_server[0].context_length
    for changes in ({}, {"without_logprobs": "sample", "num_verdict_samples": 2}):
        logprobs = not changes
        served = ModelServer(JUDGE_DIR, manner="plain", logprobs=logprobs)
        with serving_model(served) as url:
            engine = by_messages(url) | {"context_length": length}
            async with judging(engine, **changes) as address:
                verdicts = await asked(address, lambda c: c.compare_many(NAME, [PAIRS[0], long]))
                assert [verdict.abstention_reason for verdict in verdicts] == [None, "too_long"]
                with pytest.raises(InvalidInputError) as caught:
                    await asked(
                        address, lambda c: c.compare(NAME, long.conversation, first=long.first, second=long.second)
                    )
                assert (caught.value.reason, caught.value.field) == ("PROMPT_TOO_LONG", "messages")


async def test_a_server_that_fails_fails_the_call_with_its_name_and_no_label(judge_server: tuple[ModelServer, str]):
    served, url = judge_server
    [pair] = PAIRS[:1]

    def failing(status: int) -> Callable[..., bool]:
        def fault(handler: Any, path: str, body: Any) -> bool:
            handler.send_bytes(status, b"{}", headers={"Retry-After": "9"})
            return True

        return fault

    async with judging(by_ids(url)) as address:
        try:
            for status, error_class in ((500, UnavailableError), (429, QuotaExceededError)):
                served.fault = failing(status)
                with pytest.raises(error_class, match=url) as caught:
                    await asked(
                        address, lambda c: c.compare(NAME, pair.conversation, first=pair.first, second=pair.second)
                    )
                if isinstance(caught.value, QuotaExceededError):
                    assert caught.value.retry_after_seconds == 9
        finally:
            served.fault = None
        verdict = await asked(
            address, lambda c: c.compare(NAME, pair.conversation, first=pair.first, second=pair.second)
        )
        assert verdict.probability_first is not None


async def test_the_sampler_serves_a_fixed_policy_and_refuses_a_root_it_could_not_follow(
    tiny_folder: Path, tmp_path: Path
):
    with serving_model(ModelServer(tiny_folder)) as url:
        for engine, has_tokens in ((by_ids(url, tiny_folder), True), (by_messages(url), False)):
            values = {"model": MODEL, "policy": "policies/run", "engine": engine}
            async with serving(make_sampler_service(SamplerSettings.model_validate(values)), LISTEN) as server:
                address = ClientSettings(target=server.address, timeout_seconds=60)
                policy = await asked(address, lambda c: c.get_policy("policies/run"), SamplerClient)
                assert (policy.version, policy.digest) == (0, "")
                sampled = await asked(
                    address,
                    lambda c: c.sample(
                        "policies/run", [PAIRS[0].conversation], num_completions=2, max_tokens=8, seed=1
                    ),
                    SamplerClient,
                )
                [completions] = sampled.completions
                assert len(completions) == 2
                assert all(bool(completion.token_ids) == has_tokens for completion in completions)
                assert bool(sampled.prompt_token_ids) == has_tokens
            rooted = SamplerSettings.model_validate(values | {"artifact_root": str(tmp_path)})
            with pytest.raises(SettingsError, match="artifact_root"):
                async with serving(make_sampler_service(rooted), LISTEN):
                    pass


def test_the_documented_settings_are_settings():
    document = Path(__file__).parents[2] / "docs" / "engines.md"
    shown = [
        block for block in re.findall(r"```yaml\n(.*?)```", document.read_text(), re.DOTALL) if "base_url" in block
    ]
    read = [JudgeSettings.model_validate(yaml.safe_load(block) | {"constitutions": ["default"]}) for block in shown]
    assert [settings.engine.openai.mode for settings in read] == ["completions", "chat"]
