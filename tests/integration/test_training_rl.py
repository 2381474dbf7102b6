"""GRPO against a real sampler: versions, staleness, guards, and that kill -9 changes nothing about the weights."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from model_fixtures import model_folder as model_folder
from rlaif.client.sampler import PolicyState, SamplerClient
from rlaif.core.errors import InvalidInputError
from rlaif.runtime.artifacts import folder_digest, read_desired
from rlaif.runtime.server import serving
from rlaif.runtime.settings import ClientSettings, ListenSettings
from rlaif.sampler.process import make_service
from rlaif.sampler.settings import SamplerSettings
from rlaif_pipelines.training.config.rl import RlTraining
from rlaif_pipelines.training.errors import GuardError, PausedError
from rlaif_pipelines.training.rl import train
from training_fakes import FakeRewards, prompt, write_lines

POLICY = "policies/test"

JOB = """
import sys, time
from pathlib import Path
from rlaif.client.sampler import SamplerClient
from rlaif_pipelines.training.config.rl import RlTraining
from rlaif_pipelines.training.rl import train
from training_fakes import FakeRewards
settings = RlTraining.model_validate_json(Path(sys.argv[1]).read_text())
with SamplerClient(settings.sampler) as sampler:
    train(settings, sampler=sampler, rewards=FakeRewards())
"""


@dataclass(frozen=True)
class Run:
    """One training and the sampler it talks to."""

    root: Path
    settings: RlTraining

    def train(self, rewards: FakeRewards | None = None) -> dict[str, Any]:
        with SamplerClient(self.settings.sampler) as sampler:
            return train(self.settings, sampler=sampler, rewards=rewards or FakeRewards())

    def served(self) -> PolicyState:
        with SamplerClient(self.settings.sampler) as sampler:
            return sampler.get_policy(POLICY)

    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.root / "out" / "metrics.jsonl").read_text().splitlines()]

    def versions(self) -> list[int]:
        return sorted(int(path.name) for path in (self.root / "artifacts" / POLICY / "versions").iterdir())

    def digest(self) -> str:
        return folder_digest(self.root / "out" / "model")


@asynccontextmanager
async def running(root: Path, model: Path, **changes: Any) -> AsyncIterator[Run]:
    root.mkdir(exist_ok=True)  # noqa: ASYNC240 - nothing else runs in this loop yet
    sampler = SamplerSettings.model_validate(
        {
            "model": str(model),
            "policy": POLICY,
            "artifact_root": root / "artifacts",
            "engine": {"num_threads": 1},
            "listen": ListenSettings(metrics_address=None),
        }
    )
    values = {
        "out": root / "out",
        "policy": str(model),
        "publish": {"artifact_root": root / "artifacts", "policy": POLICY},
        "prompts": write_lines(root / "prompts.jsonl", [prompt(n) for n in range(8)]),
        "rewards": {"target": "unused"},
        "reward": {"name": "rewardModels/fake"},
        "num_steps": 5,
        "prompts_per_step": 4,
        "group_size": 4,
        "quorum": 2,
        "max_tokens": 12,
        "max_kl": None,
        "engine": {"num_threads": 1, "attention": "eager"},
        "optimizer": {"learning_rate": 2e-3},
        "failures": {"outage_seconds": 5.0, "pause_seconds": 0.05},
    }
    async with serving(make_service(sampler), sampler.listen) as server:
        settings = RlTraining.model_validate(values | {"sampler": ClientSettings(target=server.address)} | changes)
        yield Run(root, settings)


async def in_thread(work: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(work)


async def test_the_policy_learns_what_is_rewarded_and_every_version_is_served(
    tmp_path: Path, model_folder: Path
) -> None:
    changes = {"num_steps": 12, "group_size": 8, "kl_beta": 0.0, "optimizer": {"learning_rate": 5e-3}}
    async with running(tmp_path, model_folder, **changes) as run:
        results = await in_thread(run.train)
        served = await in_thread(run.served)
    lines = run.metrics()
    assert [line["policy_version"] for line in lines] == list(range(12))
    assert lines[-1]["reward"] > lines[0]["reward"] + 0.1
    assert lines[0]["kl"] == pytest.approx(0.0, abs=1e-4)
    assert lines[-1]["kl"] > 0.01
    assert (served.version, served.digest) == (12, results["digest"]) == (12, run.digest())
    assert run.versions() == [0, 11, 12]
    record = json.loads((run.root / "out" / "training.json").read_text())
    assert record["results"]["stopped_by"] is None
    assert record["models"][0]["digest"] == results["digest"]
    assert f"| version | {results['version']} |" in (run.root / "out" / "model" / "README.md").read_text()
    expected = {"reward", "reward_sd", "gold", "kl", "entropy", "completion_tokens", "clip_fraction", "grad_norm"}
    assert expected | {"loss", "tokens_per_second", "dropped", "seconds"} <= lines[0].keys()
    assert {"sample", "reward", "train", "publish"} <= lines[0]["seconds"].keys()


async def test_with_staleness_one_rollouts_are_exactly_one_version_old(tmp_path: Path, model_folder: Path) -> None:
    async with running(tmp_path, model_folder, staleness=1) as run:
        await in_thread(run.train)
    assert [line["policy_version"] for line in run.metrics()] == [0, 0, 1, 2, 3]


@pytest.mark.parametrize("staleness", [0, 1])
async def test_kill_9_and_a_second_start_end_with_the_same_weights(
    staleness: int, tmp_path: Path, model_folder: Path
) -> None:
    changes = {"staleness": staleness, "checkpoint_every": 3, "num_steps": 8}
    async with running(tmp_path / "whole", model_folder, **changes) as whole:
        await in_thread(whole.train)
    async with running(tmp_path / "killed", model_folder, **changes) as killed:
        config = tmp_path / "config.json"
        config.write_text(killed.settings.model_dump_json())
        tests = str(Path(__file__).parents[1])
        job = await asyncio.create_subprocess_exec(
            sys.executable, "-c", f"import sys; sys.path.insert(0, {tests!r})\n{JOB}", str(config)
        )
        # After the checkpoint of step 3, so that the sampler is ahead of what is gone back to.
        while (await in_thread(killed.served)).version < 5:
            assert job.returncode is None
            await asyncio.sleep(0.01)
        job.kill()
        await job.wait()
        results = await in_thread(killed.train)
        served = await in_thread(killed.served)
    assert killed.digest() == whole.digest() == results["digest"] == served.digest
    assert [line["step"] for line in killed.metrics()] == list(range(1, 9))
    for ours, theirs in zip(killed.metrics(), whole.metrics(), strict=True):
        assert {**ours, "time": 0, "seconds": 0, "tokens_per_second": 0} == {
            **theirs,
            "time": 0,
            "seconds": 0,
            "tokens_per_second": 0,
        }


async def test_the_kl_guard_stops_before_the_update_and_leaves_a_model(tmp_path: Path, model_folder: Path) -> None:
    async with running(tmp_path, model_folder, max_kl=0.02, num_steps=20) as run:
        with pytest.raises(GuardError, match=r"nats a completion away from the reference; the limit is 0\.02"):
            await in_thread(run.train)
        served = await in_thread(run.served)
    record = json.loads((run.root / "out" / "training.json").read_text())
    assert "the limit is 0.02" in record["results"]["stopped_by"]
    assert 0 < record["results"]["version"] == served.version < 20
    assert run.digest() == served.digest


async def test_rewards_without_variance_train_nothing(tmp_path: Path, model_folder: Path) -> None:
    async with running(tmp_path, model_folder, num_steps=2) as run:
        await in_thread(lambda: run.train(FakeRewards(value=lambda text: 0.5)))
    desired = read_desired(tmp_path / "artifacts", POLICY)
    assert desired is not None
    first = folder_digest(tmp_path / "artifacts" / POLICY / "versions" / "00000000")
    assert (desired.version, desired.digest) == (2, first)
    assert run.metrics()[0]["dropped"]["groups_without_variance"] == 4
    assert run.metrics()[0]["kl"] is None


async def test_several_updates_of_one_batch_count_as_versions(tmp_path: Path, model_folder: Path) -> None:
    async with running(tmp_path, model_folder, num_steps=2, updates_per_batch=2, clip_low=0.01, clip_high=0.01) as run:
        results = await in_thread(run.train)
    assert results["version"] == 4
    assert [line["policy_version"] for line in run.metrics()] == [0, 2]
    assert run.metrics()[0]["clip_fraction"] > 0


async def test_a_later_round_counts_on(tmp_path: Path, model_folder: Path) -> None:
    publish = {"artifact_root": tmp_path / "artifacts", "policy": POLICY, "base_version": 40}
    async with running(tmp_path, model_folder, num_steps=2, publish=publish) as run:
        assert (await in_thread(run.train))["version"] == 42
    assert run.versions() == [40, 41, 42]


async def test_failing_rewards_pause_and_the_next_start_goes_on(tmp_path: Path, model_folder: Path) -> None:
    changes = {"checkpoint_every": 2, "failures": {"attempts": 1}}
    async with running(tmp_path / "whole", model_folder, **changes) as whole:
        await in_thread(whole.train)
    async with running(tmp_path / "paused", model_folder, **changes) as paused:
        failing = FakeRewards(fails=lambda call, index: "ABSTAINED" if call == 4 else "")
        with pytest.raises(PausedError, match="16 of 16 rewards failed"):
            await in_thread(lambda: paused.train(failing))
        again = FakeRewards()
        await in_thread(lambda: paused.train(again))
    assert len(again.calls) == 3
    assert paused.digest() == whole.digest()


async def test_a_checkpoint_of_other_settings_is_not_gone_on_from(tmp_path: Path, model_folder: Path) -> None:
    async with running(tmp_path, model_folder, num_steps=2, checkpoint_every=1) as run:
        await in_thread(run.train)
    async with running(tmp_path, model_folder, num_steps=2, checkpoint_every=1, seed=1) as run:
        rewards = FakeRewards()
        await in_thread(lambda: run.train(rewards))
    assert len(rewards.calls) == 2


async def test_prompts_that_are_wrong_are_refused_before_anything_is_published(
    tmp_path: Path, model_folder: Path
) -> None:
    async with running(tmp_path, model_folder) as run:
        run.settings.prompts.write_text('{"prompt_id": "a", "messages": []}\n')
        with pytest.raises(InvalidInputError, match="line 1"):
            await in_thread(run.train)
    assert not (tmp_path / "artifacts").exists()
