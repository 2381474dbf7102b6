"""GRPO against a real sampler: versions, staleness, guards, and that kill -9 changes nothing about the weights."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from model_fixtures import model_folder as model_folder
from rlaif.client.judge_values import ResponseToScore
from rlaif.client.reward import RewardResult
from rlaif.client.sampler import PolicyState, SamplerClient
from rlaif.core.errors import DeadlineError, InvalidInputError, UnavailableError
from rlaif.runtime.artifacts import PublishedVersion, folder_digest, read_desired
from rlaif.runtime.server import serving
from rlaif.runtime.settings import ClientSettings, ListenSettings
from rlaif.runtime.store import LocalStore
from rlaif.sampler.process import make_service
from rlaif.sampler.settings import SamplerSettings
from rlaif_pipelines.training.checkpoint import save_checkpoint
from rlaif_pipelines.training.config.rl import RlTraining
from rlaif_pipelines.training.errors import GuardError, PausedError
from rlaif_pipelines.training.policy_update import PolicyUpdater, UpdateReport
from rlaif_pipelines.training.rl import train
from rlaif_pipelines.training.rollouts import Rollouts
from training_fakes import FakeRewards, prompt, write_lines

POLICY = "policies/test"
OFF: dict[str, Any] = {name: {"limit": None} for name in ("kl", "held_out", "length", "entropy", "repetition")}
WATCH: dict[str, Any] = {"num_prompts": 72, "watch": {"name": "rewardModels/watch"}, "watch_every": 2}

JOB = """
import sys, time
from pathlib import Path
from rlaif.client.sampler import SamplerClient
from rlaif_pipelines.training.config.rl import RlTraining
from rlaif_pipelines.training.rl import train
from rlaif_pipelines.training.rollouts import Rollouts
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
async def running(root: Path, model: Path, *, num_prompts: int = 8, **changes: Any) -> AsyncIterator[Run]:
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
        "prompts": write_lines(root / "prompts.jsonl", [prompt(n) for n in range(num_prompts)]),
        "rewards": {"target": "unused"},
        "reward": {"name": "rewardModels/fake"},
        "num_steps": 5,
        "prompts_per_step": 4,
        "group_size": 4,
        "quorum": 2,
        "max_tokens": 12,
        "guards": OFF,
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
    assert {"kl_beta", "repetition", "cut_off_fraction", "truncated_fraction", "learning_rate"} <= lines[0].keys()
    assert {"sample", "reward", "train", "publish", "held_out", "wait"} <= lines[0]["seconds"].keys()


async def test_with_staleness_one_rollouts_are_exactly_one_version_old(tmp_path: Path, model_folder: Path) -> None:
    async with running(tmp_path, model_folder, staleness=1) as run:
        await in_thread(run.train)
    assert [line["policy_version"] for line in run.metrics()] == [0, 0, 1, 2, 3]
    assert [line["staleness"] for line in run.metrics()] == [0, 1, 1, 1, 1]


async def test_with_staleness_one_the_next_batch_is_sampled_while_this_one_trains(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = [threading.Event() for _ in range(4)]
    update = PolicyUpdater.update

    def update_once_the_next_batch_is_begun(self: PolicyUpdater, rollouts: Rollouts, **more: Any) -> UpdateReport:
        if rollouts.step < 3:
            assert sampling[rollouts.step + 1].wait(60), "the next batch waits for this one"
        return update(self, rollouts, **more)

    def begin(call: int, index: int) -> str:
        sampling[call - 1].set()
        return ""

    monkeypatch.setattr(PolicyUpdater, "update", update_once_the_next_batch_is_begun)
    async with running(tmp_path, model_folder, staleness=1, num_steps=4) as run:
        await in_thread(lambda: run.train(FakeRewards(fails=begin)))
    assert len(run.metrics()) == 4


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"staleness": 0}, id="staleness 0"),
        pytest.param({"staleness": 1, "kl_target": 0.05, "kl_gain": 1.0, **WATCH}, id="staleness 1, all that adapts"),
    ],
)
async def test_kill_9_and_a_second_start_end_with_the_same_weights(
    changes: dict[str, Any], tmp_path: Path, model_folder: Path
) -> None:
    changes = {**changes, "checkpoint_every": 3, "num_steps": 8}
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


@pytest.mark.parametrize("dies_at", [2, 4])
async def test_a_training_that_dies_once_a_checkpoint_is_written_tells_every_step_all_the_same(
    dies_at: int, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_and_die(*arguments: Any, step: int, **more: Any) -> None:
        save_checkpoint(*arguments, step=step, **more)
        if step == dies_at:
            raise RuntimeError("the end")

    async with running(tmp_path, model_folder, num_steps=4, checkpoint_every=2) as run:
        with monkeypatch.context() as dying:
            dying.setattr("rlaif_pipelines.training.rl.save_checkpoint", save_and_die)
            with pytest.raises(RuntimeError, match="the end"):
                await in_thread(run.train)
        results = await in_thread(run.train)
    assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4]
    assert results["last_step"]["reward"] == pytest.approx(run.metrics()[-1]["reward"], abs=1e-5)
    assert results["last_step"]["entropy"] == pytest.approx(run.metrics()[-1]["entropy"], abs=1e-5)


async def test_without_a_held_out_score_a_guard_goes_back_to_before_the_update(
    tmp_path: Path, model_folder: Path
) -> None:
    async with running(tmp_path, model_folder, guards={**OFF, "kl": {"limit": 0.02}}, num_steps=20) as run:
        with pytest.raises(GuardError, match=r"nats a completion away from the reference; the limit is 0\.02"):
            await in_thread(run.train)
        served = await in_thread(run.served)
    results = json.loads((run.root / "out" / "training.json").read_text())["results"]
    assert "the limit is 0.02" in results["stopped_by"]
    assert results["guard"]["guard"] == "kl"
    assert 0 < results["version"] == results["num_steps"] == served.version < 20
    assert results["rolled_back"]["num_steps"] == served.version
    assert run.digest() == served.digest == results["digest"]
    last = run.metrics()[-1]
    assert (last["step"], last["policy_version"]) == (served.version + 1, served.version)
    assert [firing["guard"] for firing in last["guards"]] == ["kl"]


class Hacked(FakeRewards):
    """Every reward rises with every step; the second opinion has its best measurement third."""

    MEASUREMENTS = (0.1, 0.2, 0.4, 0.3, 0.2)

    def score(
        self, reward_model: str, inputs: Sequence[ResponseToScore], *, constitution: str = ""
    ) -> list[RewardResult]:
        results = super().score(reward_model, inputs, constitution=constitution)
        number = self.calls.count(reward_model) - 1
        if reward_model == "rewardModels/watch":
            return [replace(result, value=self.MEASUREMENTS[number]) for result in results]
        return [replace(result, value=number + (result.value or 0.0)) for result in results]


@pytest.mark.parametrize("staleness", [0, 1])
async def test_a_guard_goes_back_to_the_best_version_which_is_served_as_a_new_one(
    staleness: int, tmp_path: Path, model_folder: Path
) -> None:
    changes = {**WATCH, "guards": {**OFF, "held_out": {"limit": 1.0, "window": 2}}, "staleness": staleness}
    async with running(tmp_path, model_folder, num_steps=20, **changes) as run:
        with pytest.raises(GuardError, match=r"the held-out score fell from 0\.400"):
            await in_thread(lambda: run.train(Hacked()))
        served = await in_thread(run.served)
    results = json.loads((run.root / "out" / "training.json").read_text())["results"]
    # Measured before the steps 1, 3, 5, 7 and 9, the best before the fifth; of weights a step older with staleness 1.
    best = 4 - staleness
    assert results["rolled_back"] == {"num_steps": best, "from_version": best, "version": 9, "held_out": 0.4}
    assert (results["num_steps"], results["version"], served.version) == (8, 9, 9)
    assert f"went back to the weights after step {best}" in results["stopped_by"]
    versions = tmp_path / "artifacts" / POLICY / "versions"
    assert run.digest() == served.digest == folder_digest(versions / f"{best:08d}")
    assert served.digest != folder_digest(versions / "00000008")
    card = (run.root / "out" / "model" / "README.md").read_text()
    assert "| version | 9 |" in card
    assert run.metrics()[-1]["rolled_back"]["num_steps"] == best
    assert [line["held_out"] for line in run.metrics()][::2] == [0.1, 0.2, 0.4, 0.3, 0.2]


async def test_a_guard_may_slow_a_training_and_let_it_go_on(tmp_path: Path, model_folder: Path) -> None:
    guards = {**OFF, "kl": {"limit": 0.01, "action": "lower_rate"}}
    async with running(tmp_path, model_folder, guards=guards, num_steps=6) as run:
        await in_thread(run.train)
    lines = run.metrics()
    fired = [len(line["guards"]) for line in lines]
    assert 0 < sum(fired) < 6
    rates = [line["learning_rate"] for line in lines]
    assert rates == [pytest.approx(2e-3 * 0.5 ** sum(fired[:step])) for step in range(6)]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"advantage": "rloo", "aggregation": "constant_length"}, id="RLOO"),
        pytest.param({"advantage": "dr_grpo", "aggregation": "constant_length"}, id="Dr.GRPO"),
        pytest.param({"aggregation": "sequence_mean", "ratio": "sequence", "updates_per_batch": 2}, id="GSPO"),
        pytest.param(
            {"advantage": "reinforce_plus_plus", "kl_in": "reward", "kl_estimator": "k1", "kl_beta": 1e-3},
            id="REINFORCE++",
        ),
    ],
)
async def test_other_algorithms_learn_what_is_rewarded(
    changes: dict[str, Any], tmp_path: Path, model_folder: Path
) -> None:
    changes = {"num_steps": 12, "group_size": 8, "kl_beta": 0.0, "optimizer": {"learning_rate": 5e-3}} | changes
    async with running(tmp_path, model_folder, **changes) as run:
        await in_thread(run.train)
    lines = run.metrics()
    assert lines[-1]["reward"] > lines[0]["reward"] + 0.1


async def test_a_kl_in_the_reward_holds_the_policy_back(tmp_path: Path, model_folder: Path) -> None:
    changes = {"num_steps": 8, "optimizer": {"learning_rate": 5e-3}, "kl_in": "reward", "kl_estimator": "k1"}
    ends = []
    for kl_beta in (0.0, 10.0):
        async with running(tmp_path / str(kl_beta), model_folder, kl_beta=kl_beta, **changes) as run:
            await in_thread(run.train)
        ends.append(run.metrics()[-1]["kl"])
    assert ends[1] < 0.8 * ends[0]


async def test_the_weight_of_the_kl_follows_its_target(tmp_path: Path, model_folder: Path) -> None:
    changes = {"kl_beta": 0.1, "kl_target": 1e6, "kl_gain": 1.0, "num_steps": 3}
    async with running(tmp_path, model_folder, **changes) as run:
        await in_thread(run.train)
    # Far below the target, a batch takes a fifth off.
    assert [line["kl_beta"] for line in run.metrics()] == pytest.approx([0.1, 0.08, 0.064])


@pytest.mark.parametrize(
    ("rewards", "dropped"),
    [
        pytest.param({"value": lambda text: 0.5}, {"groups_without_variance": 4}, id="no group varies"),
        pytest.param(
            {"fails": lambda call, index: "ABSTAINED" if index % 4 else ""},
            {"ABSTAINED": 12, "groups_below_quorum": 4},
            id="one reward a group",
        ),
        pytest.param(
            {"value": lambda text: math.nan, "fails": lambda call, index: "" if index % 4 else "TOO_LONG"},
            {"TOO_LONG": 4, "NOT_FINITE": 12, "groups_below_quorum": 4},
            id="no reward is a number",
        ),
    ],
)
async def test_a_step_without_anything_to_learn_from_is_skipped_and_counted(
    rewards: dict[str, Any], dropped: dict[str, int], tmp_path: Path, model_folder: Path
) -> None:
    failures = {"max_failed_fraction": 0.999, "pause_seconds": 0.05}
    if "NOT_FINITE" in dropped:
        with pytest.raises(PausedError, match="16 of 16 rewards failed 3 times in a row"):
            async with running(tmp_path, model_folder, num_steps=2, failures=failures) as run:
                await in_thread(lambda: run.train(FakeRewards(**rewards)))
        return
    async with running(tmp_path, model_folder, num_steps=2, failures=failures) as run:
        results = await in_thread(lambda: run.train(FakeRewards(**rewards)))
    desired = read_desired(tmp_path / "artifacts", POLICY)
    assert desired is not None
    first = folder_digest(tmp_path / "artifacts" / POLICY / "versions" / "00000000")
    assert (desired.version, desired.digest) == (2, first)
    assert results["num_skipped_steps"] == 2
    line = run.metrics()[0]
    assert {name: count for name, count in line["dropped"].items() if count} == dropped
    assert (line["skipped"], line["kl"], line["loss"], line["num_sequences"]) == (True, None, None, 0)


async def test_a_group_with_no_number_is_left_out_and_the_others_train(tmp_path: Path, model_folder: Path) -> None:
    rewards = FakeRewards(fails=lambda call, index: "NOT_FINITE" if index < 4 else "")
    async with running(tmp_path, model_folder, num_steps=1) as run:
        results = await in_thread(lambda: run.train(rewards))
    line = run.metrics()[0]
    assert (line["dropped"]["NOT_FINITE"], line["dropped"]["groups_below_quorum"]) == (4, 1)
    assert (results["num_skipped_steps"], line["skipped"], line["num_sequences"]) == (0, False, 12)


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


class Faulty:
    """A sampler's client whose calls go wrong from one on, until it is mended."""

    def __init__(self, client: SamplerClient, *, fault: str, from_call: int) -> None:
        self._client, self._fault, self._from_call = client, fault, from_call
        self._num_calls = 0

    def sample(self, policy: str, prompts: Sequence[Any], **more: Any) -> Any:
        self._num_calls += 1
        if self._fault == "sampler" and self._num_calls >= self._from_call:
            raise UnavailableError("connection refused")
        return self._client.sample(policy, prompts, **more)

    def load_policy(self, name: str, *, min_version: int) -> PolicyState:
        state = self._client.load_policy(name, min_version=min_version)
        other = self._fault == "digest" and self._num_calls >= self._from_call
        return replace(state, digest="f" * 64) if other else state


class Unreachable(FakeRewards):
    """A reward service that is gone from the fourth step on."""

    def score(
        self, reward_model: str, inputs: Sequence[ResponseToScore], *, constitution: str = ""
    ) -> list[RewardResult]:
        if len(self.calls) == 3:
            raise DeadlineError("deadline exceeded")
        return super().score(reward_model, inputs, constitution=constitution)


async def test_whatever_stays_away_pauses_the_run_with_a_sentence_and_the_next_start_loses_nothing(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"checkpoint_every": 2, "failures": {"attempts": 1, "outage_seconds": 0.2, "pause_seconds": 0.05}}
    async with running(tmp_path / "whole", model_folder, **changes) as whole:
        await in_thread(whole.train)

    def gone(*_: Any, **__: Any) -> PublishedVersion:
        raise UnavailableError("no route to host")

    table: dict[str, tuple[FakeRewards, str]] = {
        "failing rewards": (
            FakeRewards(fails=lambda call, index: "ABSTAINED" if call == 4 else ""),
            "16 of 16 rewards failed",
        ),
        "reward service": (Unreachable(), r"the reward service at unused has not answered for 0\.2 s"),
        "sampler": (FakeRewards(), r"the sampler at .* has not answered for 0\.2 s \(connection refused\)"),
        "digest": (FakeRewards(), r"with digest .* serves version 4 with digest ffffffffffff: it looks at another"),
        "store": (FakeRewards(), r"the store .* has not answered for 0\.2 s \(no route to host\)"),
    }
    for fault, (rewards, sentence) in table.items():
        async with running(tmp_path / fault, model_folder, **changes) as paused:

            def first_start(run: Run = paused, fault: str = fault, rewards: FakeRewards = rewards) -> None:
                with SamplerClient(run.settings.sampler) as client, monkeypatch.context() as patch:
                    sampler = Faulty(client, fault=fault, from_call=4)
                    if fault == "store":
                        write = LocalStore.publish_version
                        patch.setattr(
                            LocalStore,
                            "publish_version",
                            lambda self, policy, *, version, **more: (
                                write(self, policy, version=version, **more) if version < 4 else gone()
                            ),
                        )
                    train(run.settings, sampler=sampler, rewards=rewards)

            with pytest.raises(PausedError, match=sentence):
                await in_thread(first_start)
            again = FakeRewards()
            results = await in_thread(lambda run=paused, again=again: run.train(again))
            served = await in_thread(paused.served)
        assert (fault, len(again.calls)) == (fault, 3)
        assert paused.digest() == whole.digest() == results["digest"] == served.digest
        assert [line["step"] for line in paused.metrics()] == [1, 2, 3, 4, 5]


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
