"""Judge, reward and oversight as they run: a real engine on a tiny random model, labels in a ledger on SQLite."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from model_fixtures import write_model
from rlaif.cli import main
from rlaif.client.judge import JudgeClient, JudgeOptions, ResponsePair
from rlaif.client.ledger import LedgerClient
from rlaif.client.preference_labels import human_labels
from rlaif.client.reward import JUDGE, RewardClient
from rlaif.core.calibration import Calibration, CalibrationKey, CalibrationScores, parse_calibration
from rlaif.core.conversation import Message
from rlaif.core.errors import InvalidInputError, SettingsError
from rlaif.core.human_preference import HumanPreference
from rlaif.core.preference import Preference
from rlaif.judge.process import make_service as make_judge_service
from rlaif.judge.settings import JudgeSettings
from rlaif.oversight.process import make_service as make_oversight_service
from rlaif.oversight.settings import OversightSettings
from rlaif.reward.process import make_service as make_reward_service
from rlaif.reward.settings import RewardSettings
from rlaif.runtime.artifacts import folder_digest
from rlaif.runtime.server import serving
from rlaif.runtime.settings import ClientSettings, ListenSettings

LISTEN = ListenSettings(metrics_address=None)
NAME = "constitutions/playground"
ASK = (Message("user", "How do I boil an egg?"),)
PAIRS = [ResponsePair(ASK, f"Put it into hot water for {i} minutes.", "I would rather not say.") for i in range(6)]


@dataclass(frozen=True)
class Stack:
    """Addresses of the three services."""

    judge: ClientSettings
    reward: ClientSettings
    ledger: ClientSettings


@pytest.fixture(scope="module")
def judge_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("judge"), seed=3, digits_apart=True)


def judge_settings(model: Path, ledger: ClientSettings | None, **changes: Any) -> JudgeSettings:
    values = {
        "model": str(model),
        "engine": {"num_threads": 1},
        "template": "compact",
        "constitutions": ["playground"],
        "min_verdict_mass": 0.0,
        "ledger": ledger,
    }
    return JudgeSettings.model_validate(values | changes)


@asynccontextmanager
async def running(model: Path, database: Path, **changes: Any) -> AsyncIterator[Stack]:
    oversight = OversightSettings.model_validate({"database_url": f"sqlite:///{database}"})
    async with serving(make_oversight_service(oversight), LISTEN) as ledger_server:
        ledger = ClientSettings(target=ledger_server.address, timeout_seconds=20)
        async with serving(make_judge_service(judge_settings(model, ledger, **changes)), LISTEN) as judge_server:
            judge = ClientSettings(target=judge_server.address, timeout_seconds=20)
            async with serving(make_reward_service(RewardSettings(judge=judge)), LISTEN) as reward_server:
                yield Stack(judge, ClientSettings(target=reward_server.address, timeout_seconds=20), ledger)


async def judged(stack: Stack, use: Callable[[JudgeClient], Any]) -> Any:
    return await _in_thread(JudgeClient, stack.judge, use)


async def _in_thread(client_class: Any, settings: ClientSettings, use: Callable[[Any], Any]) -> Any:
    def run() -> Any:
        with client_class(settings) as client:
            return use(client)

    return await asyncio.to_thread(run)


async def test_labels_are_made_recorded_once_and_chained(judge_model: Path, tmp_path: Path):
    async with running(judge_model, tmp_path / "ledger.sqlite") as stack:
        verdicts = await judged(stack, lambda c: c.compare_many(NAME, PAIRS, batch_size=4))
        assert all(0 < verdict.probability_first < 1 for verdict in verdicts)
        assert {verdict.provenance.model_digest for verdict in verdicts} == {folder_digest(judge_model)}
        again = await judged(stack, lambda c: c.compare_many(NAME, PAIRS, batch_size=4))
        assert all(verdict.recorded_before for verdict in again)
        assert [verdict.probability_first for verdict in again] == [verdict.probability_first for verdict in verdicts]
        report = await _in_thread(LedgerClient, stack.ledger, lambda c: c.verify())
        assert (report.num_labels, report.num_events, report.fault) == (6, 2, "")
        label = await _in_thread(LedgerClient, stack.ledger, lambda c: c.get_label(verdicts[0].label))
        assert label.verdict.probability_first == verdicts[0].probability_first
        assert not label.subject.responses


async def test_a_restarted_judge_answers_from_the_ledger(judge_model: Path, tmp_path: Path):
    results = []
    for _ in range(2):
        async with running(judge_model, tmp_path / "ledger.sqlite") as stack:
            results.append(await judged(stack, lambda c: c.compare_many(NAME, PAIRS)))
    first, second = results
    assert not any(verdict.recorded_before for verdict in first)
    assert all(verdict.recorded_before for verdict in second)
    assert [verdict.votes for verdict in first] == [verdict.votes for verdict in second]


async def test_the_same_batch_anew_gives_the_same_floats(judge_model: Path, tmp_path: Path):
    options = JudgeOptions(ignore_recorded=True)
    async with running(judge_model, tmp_path / "ledger.sqlite") as stack:
        runs = [await judged(stack, lambda c: c.compare_many(NAME, PAIRS, options=options)) for _ in range(2)]
        mixed = JudgeOptions(ignore_recorded=True)
        single = await judged(
            stack, lambda c: c.compare(NAME, ASK, first=PAIRS[0].first, second=PAIRS[0].second, options=mixed)
        )
    assert [verdict.votes for verdict in runs[0]] == [verdict.votes for verdict in runs[1]]
    assert not any(verdict.recorded_before for verdict in runs[1])
    assert single.probability_first == pytest.approx(runs[0][0].probability_first, abs=1e-5)


async def test_mixed_requests_give_the_same_labels_up_to_rounding(judge_model: Path, tmp_path: Path):
    async with running(judge_model, tmp_path / "a.sqlite") as stack:
        alone = await judged(stack, lambda c: c.compare_many(NAME, PAIRS, batch_size=6))
    async with running(judge_model, tmp_path / "b.sqlite", mix_requests=True) as stack:
        compare = [
            judged(stack, lambda c, pair=pair: c.compare(NAME, ASK, first=pair.first, second=pair.second))
            for pair in PAIRS
        ]
        together = await asyncio.gather(*compare)
    expected = [verdict.probability_first for verdict in alone]
    assert [verdict.probability_first for verdict in together] == pytest.approx(expected, abs=1e-4)


async def test_scores_become_rewards_and_land_in_the_ledger(judge_model: Path, tmp_path: Path):
    inputs = [(pair.conversation, pair.first) for pair in PAIRS]
    async with running(judge_model, tmp_path / "ledger.sqlite") as stack:
        rewards = await _in_thread(RewardClient, stack.reward, lambda c: c.score(JUDGE, inputs, constitution=NAME))
        scores = await judged(stack, lambda c: c.score_many(NAME, inputs))
        report = await _in_thread(LedgerClient, stack.ledger, lambda c: c.verify())
    assert [reward.value for reward in rewards] == [score.reward for score in scores]
    assert all(-1 <= reward.value <= 1 for reward in rewards)
    assert all(score.recorded_before for score in scores)
    assert all(math.isclose(sum(each.probabilities), 1) for score in scores for each in score.scores)
    assert (report.num_labels, report.num_events) == (6, 1)


async def test_a_ranking_and_a_prompt_beyond_the_context(judge_model: Path, tmp_path: Path):
    async with running(judge_model, tmp_path / "ledger.sqlite") as stack:
        ranking = await judged(stack, lambda c: c.rank(NAME, ASK, responses=["In water.", "No.", "For nine minutes."]))
        assert sorted(each.index for each in ranking.ranking) == [0, 1, 2]
        with pytest.raises(InvalidInputError) as caught:
            await judged(stack, lambda c: c.compare(NAME, ASK, first="egg " * 500, second="No."))
        assert caught.value.reason == "PROMPT_TOO_LONG"
        long = [ResponsePair(ASK, "egg " * 500, "No."), PAIRS[0]]
        too_long, fits = await judged(stack, lambda c: c.compare_many(NAME, long))
    assert (too_long.preference, too_long.abstention_reason) == ("abstain", "too_long")
    assert fits.probability_first is not None


async def test_without_a_ledger_it_judges_and_says_so(judge_model: Path, caplog: pytest.LogCaptureFixture):
    async with serving(make_judge_service(judge_settings(judge_model, None)), LISTEN) as server:
        stack = ClientSettings(target=server.address)
        verdict = await _in_thread(JudgeClient, stack, lambda c: c.compare_many(NAME, PAIRS[:1])[0])
    assert verdict.label == ""
    assert not verdict.recorded_before
    assert "NO LEDGER" in caplog.text


def test_the_command_serves_and_stops(judge_model: Path, tmp_path: Path):
    announce, config = tmp_path / "judge.json", tmp_path / "judge.yaml"
    settings = judge_settings(judge_model, None, listen={"announce_path": announce})
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude_defaults=True)), encoding="utf-8")
    process = subprocess.Popen([sys.executable, "-m", "rlaif.judge", "--config", str(config)], stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 40
        while not announce.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        address = yaml.safe_load(announce.read_text(encoding="utf-8"))["address"]
        from rlaif.client.channel import wait_serving

        wait_serving(ClientSettings(target=address), ["rlaif.v1.JudgeService"], timeout_seconds=40)
        with JudgeClient(ClientSettings(target=address)) as client:
            assert client.list_constitutions()[0].name == NAME
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("service", "settings", "words"),
    [
        ("judge", {}, "model is required"),
        ("judge", {"model": "/no/such", "constitutions": ["playground"]}, "/no/such does not exist"),
        ("judge", {"model": "/no/such", "constitutions": ["unheard-of"]}, "unheard-of"),
        ("judge", {"model": "x", "constitutions": ["playground"], "tempalte": "compact"}, "did you mean template?"),
        ("reward", {"reward_models": {"watch": ["/no/such"]}}, "/no/such does not exist"),
    ],
)
def test_wrong_settings_end_with_one_sentence_and_code_two(
    service: str, settings: dict[str, Any], words: str, tmp_path: Path
):
    config = tmp_path / "settings.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    command = [sys.executable, "-m", f"rlaif.{service}", "--config", str(config)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2, ended.stderr
    assert words in ended.stderr.splitlines()[-1]


async def test_texts_and_reasoned_verdicts_repeat_by_seed_on_a_real_engine(judge_model: Path, tmp_path: Path):
    short = {"max_critique_tokens": 12, "max_revision_tokens": 12, "temperature": 1.0}
    changes = {"writing": short, "reasoning": {"max_tokens": 8, "temperature": 1.0}}

    def write(client: JudgeClient) -> list[object]:
        options = [JudgeOptions(seed=seed) for seed in (1, 1, 2)]
        critiques = [client.critique(NAME, ASK, response="No.", options=each) for each in options]
        revisions = [client.revise(NAME, ASK, response="No.", critique="Short.", seed=seed) for seed in (1, 1)]
        return [(each.text, each.abstention_reason) for each in (*critiques, *revisions)]

    def reason(client: JudgeClient, seed: int, *, anew: bool = False):
        options = JudgeOptions(reasoning=True, num_reasoning_samples=16, seed=seed, ignore_recorded=anew)
        return client.compare(NAME, ASK, first="Put it into hot water.", second="No.", options=options)

    async with running(judge_model, tmp_path / "ledger.sqlite", **changes) as stack:
        one, again, other, revised, revised_again = await judged(stack, write)
        assert one == again
        assert revised == revised_again
        assert all(bool(text) == (reason is None) for text, reason in (one, other, revised))
        verdict = await judged(stack, lambda c: reason(c, 1))
        assert (await judged(stack, lambda c: reason(c, 1))).recorded_before
        anew = await judged(stack, lambda c: reason(c, 1, anew=True))
    assert anew.probability_first == verdict.probability_first
    assert anew.rationale == verdict.rationale
    if verdict.probability_first is not None:
        assert 0.4 <= verdict.probability_first <= 0.6
    else:
        assert verdict.abstention_reason == "unparseable"


async def test_a_stale_calibration_stops_the_service(judge_model: Path, tmp_path: Path):
    scores = CalibrationScores(brier=0.2, nll=0.5, ece=0.1)
    key = CalibrationKey("e" * 64, "f" * 64, "0" * 64)
    stale = Calibration(key, NAME, "temperature", 2.0, (), 60, 5, scores, scores)
    (tmp_path / "stale.json").write_text(json.dumps(stale.to_json()))
    settings = judge_settings(judge_model, None, calibrations=[tmp_path / "stale.json"])
    with pytest.raises(SettingsError, match="stale: it was fitted on the judge eeeeeeeeeeee"):
        async with serving(make_judge_service(settings), LISTEN):
            pass


async def test_a_label_tells_what_quality_is_measured_by(judge_model: Path, tmp_path: Path):
    pair = ResponsePair(ASK, "Put it into hot water.", "No.", category="cooking", language="en")
    wrong = ResponsePair(ASK, "Put it into hot water.", "No.", language="en_GB")
    async with running(judge_model, tmp_path / "ledger.sqlite") as stack:
        (verdict,) = await judged(stack, lambda c: c.compare_many(NAME, [pair]))
        label = await _in_thread(LedgerClient, stack.ledger, lambda c: c.get_label(verdict.label))
        with pytest.raises(InvalidInputError) as caught:
            await judged(stack, lambda c: c.compare_many(NAME, [wrong]))
    assert (label.subject.category, label.subject.language) == ("cooking", "en")
    assert list(label.subject.response_num_characters) == [22, 3]
    assert not label.subject.responses
    assert caught.value.field == "pairs[0].language"


async def test_a_calibration_fitted_on_the_ledger_is_one_that_the_judge_takes(judge_model: Path, tmp_path: Path):
    pairs = [ResponsePair(ASK, f"Put it into hot water for {i} minutes.", "I would rather not say.") for i in range(60)]
    pairs = [ResponsePair((Message("user", f"{ASK[0].content} {i}"),), p.first, p.second) for i, p in enumerate(pairs)]
    async with running(judge_model, tmp_path / "ledger.sqlite") as stack:
        raw = await judged(stack, lambda c: c.compare_many(NAME, pairs))
        people = human_labels(
            HumanPreference(
                pair.conversation, pair.first, pair.second, Preference.FIRST if i % 3 else Preference.SECOND
            )
            for i, pair in enumerate(pairs)
        )
        await _in_thread(LedgerClient, stack.ledger, lambda c: c.import_labels(list(people)))
        command = ["labels", "calibrate", "--target", stack.ledger.target, "-o", str(tmp_path / "out"), "--anyway"]
        assert await asyncio.to_thread(main.execute, command) == 0
    (path,) = (tmp_path / "out").iterdir()
    async with running(judge_model, tmp_path / "ledger.sqlite", calibrations=[str(path)]) as stack:
        calibrated = await judged(stack, lambda c: c.compare_many(NAME, pairs))
    calibration = parse_calibration(path.read_text())
    for before, after in zip(raw, calibrated, strict=True):
        assert after.calibration == calibration.name
        assert after.raw_probability_first == pytest.approx(before.probability_first)
        assert after.probability_first == pytest.approx(calibration.apply(before.probability_first))
