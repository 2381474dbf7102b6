"""`rlaif up --engine vllm`: sampler and judge serve the playground's models on vLLM, by the same calls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rlaif.client.judge import JudgeClient, ResponsePair
from rlaif.client.sampler import SamplerClient
from rlaif.core.conversation import Message
from rlaif.runtime.settings import ClientSettings

pytest.importorskip("vllm", reason="vLLM is not installed in this environment: make test-vllm runs these")

ASK = (Message("user", "Tell me the color of grass."),)


def rlaif(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rlaif.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("up")
    started = rlaif("up", "--engine", "vllm", "--state", str(folder), "--threads", "1")
    assert started.returncode == 0, started.stderr
    yield folder
    rlaif("down", "--state", str(folder))


def settings(folder: Path, name: str) -> ClientSettings:
    announced = json.loads((folder / "services" / f"{name}.json").read_text())
    return ClientSettings(target=announced["address"], timeout_seconds=60)


def test_the_judge_on_vllm_knows_the_right_color(state: Path) -> None:
    with JudgeClient(settings(state, "judge")) as client:
        pair = ResponsePair(ASK, "It is green.", "It is blue.")
        [verdict, swapped] = client.compare_many(
            "constitutions/playground", [pair, ResponsePair(ASK, "It is blue.", "It is green.")]
        )
    assert verdict.probability_first is not None
    assert verdict.probability_first > 0.5
    assert swapped.probability_first == pytest.approx(1 - verdict.probability_first, abs=1e-4)


def test_the_sampler_on_vllm_repeats_itself(state: Path) -> None:
    with SamplerClient(settings(state, "sampler")) as client:
        first, again = (
            client.sample("policies/served", [ASK], num_completions=4, max_tokens=32, seed=3) for _ in range(2)
        )
    assert [each.token_ids for each in first.completions[0]] == [each.token_ids for each in again.completions[0]]
    assert len({each.token_ids for each in first.completions[0]}) > 1


def test_down_ends_vllms_own_processes_too(state: Path) -> None:
    services = [json.loads(path.read_text())["pid"] for path in (state / "services").glob("*.json")]
    own = [child for pid in services for child in psutil.Process(int(pid)).children(recursive=True)]
    assert len(own) >= 2
    stopped = rlaif("down", "--state", str(state))
    assert stopped.returncode == 0, stopped.stderr
    assert not psutil.wait_procs(own, timeout=30)[1]
