"""`rlaif reward` against a real service, and what docs/reward.md shows."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from reward_fixtures import ask, write_reward_model
from rlaif.cli.main import execute
from rlaif.core.conversation import Message
from rlaif.reward.process import make_service
from rlaif.reward.settings import RewardSettings
from rlaif.runtime.server import serving
from rlaif.runtime.settings import ClientSettings, ListenSettings, load_settings
from text_judge import TextJudge, text_judge_service

DOCUMENT = Path(__file__).parents[2] / "docs" / "reward.md"
ASK = (Message("user", "How do I boil an egg?"),)


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [str(write_reward_model(tmp_path_factory.mktemp(f"member{seed}"), seed=seed)) for seed in range(2)]


@asynccontextmanager
async def running(*components: dict[str, Any]) -> AsyncIterator[str]:
    settings = RewardSettings.model_validate({"reward_models": {"helpful": {"components": list(components)}}})
    async with serving(make_service(settings), ListenSettings(metrics_address=None)) as server:
        yield server.address


async def command(*arguments: str) -> int:
    return await asyncio.to_thread(execute, ["reward", *arguments])


def write_reference(path: Path, *, count: int) -> Path:
    rows = [
        {"prompt": "How do I boil an egg?", "response": f"Boil it {number} minutes{'!' * (number % 5)}"}
        for number in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return path


async def test_a_fitted_file_is_taken_as_a_setting_and_gives_the_reference_set_mean_0_and_sd_1(
    members: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    reference, fitted = write_reference(tmp_path / "reference.jsonl", count=60), tmp_path / "quality.json"
    component = {"kind": "reward_model", "name": "quality", "members": members}
    fit = ("fit-normalisation", str(reference), "--reward-model", "helpful", "-o", str(fitted))
    async with running(component) as address:
        assert await command(*fit, "--address", address) == 0
    assert "60 of 60 inputs" in capsys.readouterr().out
    first = json.loads(fitted.read_text())

    async with running({**component, "normalisation": str(fitted)}) as address:
        assert await command("show", "helpful", "--address", address) == 0
        shown = json.loads(capsys.readouterr().out)
        inputs = [(ASK, json.loads(line)["response"]) for line in reference.read_text().split("\n") if line]
        results = await ask(ClientSettings(target=address), lambda c: c.score("rewardModels/helpful", inputs))
        # Fitted again on the normalised service it is the same: raw values count.
        assert await command(*fit, "--address", address) == 0
    values = [result.value for result in results]
    assert sum(values) / 60 == pytest.approx(0.0, abs=1e-4)
    assert sum(value * value for value in values) / 60 == pytest.approx(1.0, abs=1e-4)
    assert shown["components"][0]["normalisation"]["normalisation_id"] == first["id"]
    again = json.loads(fitted.read_text())
    assert again["mean"] == pytest.approx(first["mean"], abs=1e-4)
    assert again["reference_sha256"] == first["reference_sha256"]


async def test_what_cannot_be_fitted_is_refused_and_nothing_is_written(
    members: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    few = write_reference(tmp_path / "few.jsonl", count=49)
    same, long, wrong = tmp_path / "same.jsonl", tmp_path / "long.jsonl", tmp_path / "wrong.jsonl"
    same.write_text('{"prompt": "How?", "response": "So."}\n' * 60)
    long.write_text(json.dumps({"prompt": "How?", "response": "egg " * 200}) + "\n" + few.read_text())
    wrong.write_text('{"prompt": "How?"}\n')
    components: list[dict[str, Any]] = [
        {"kind": "reward_model", "name": name, "members": members[:1]} for name in ("one", "two")
    ]
    output = tmp_path / "n.json"
    async with running(*components, {"kind": "repetition_penalty"}) as address:
        for reference, component, code, words in (
            (few, "one", 1, "49 reference inputs are too few"),
            (same, "one", 1, "without variance"),
            (long, "one", 1, "TOO_LONG: 1"),
            (wrong, "one", 2, "wrong.jsonl:1: response must be a text"),
            (tmp_path / "none.jsonl", "one", 2, "none.jsonl"),
            (same, "", 2, "one, two"),
            (same, "repetition_penalty", 2, "one, two"),
        ):
            named = ("--component", component) if component else ()
            place = ("--reward-model", "helpful", "-o", str(output), "--address", address)
            assert await command("fit-normalisation", str(reference), *named, *place) == code
            assert words in capsys.readouterr().err
    assert not output.exists()


async def test_without_a_service_the_command_says_how_to_start_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert await command("show", "judge", "--state", str(tmp_path)) == 2
    assert "rlaif up" in capsys.readouterr().err


def snippets(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", DOCUMENT.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [shown for said, shown in fenced if said == language]


async def test_the_documented_python_asks_the_judge(capsys: pytest.CaptureFixture[str]):
    (shown,) = snippets("python")
    judge = TextJudge()
    local = ListenSettings(metrics_address=None)
    async with serving(text_judge_service(judge), local) as judging:
        settings = RewardSettings(judge=ClientSettings(target=judging.address))
        async with serving(make_service(settings), local) as server:
            await asyncio.to_thread(exec, shown.replace("127.0.0.1:50053", server.address), {})
    assert judge.requests
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_documented_settings_are_ones(tmp_path: Path):
    (shown,) = snippets("yaml")
    path = tmp_path / "reward.yaml"
    path.write_text(shown)
    settings = load_settings(RewardSettings, path)
    assert [component.name for component in settings.reward_models["helpful"].components] == [
        "quality",
        "judge",
        "length_penalty",
        "repetition_penalty",
    ]
