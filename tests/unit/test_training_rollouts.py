"""Rollouts when services misbehave: a failure is never a number, waiting has an end, and the version is exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlaif.core.errors import DeadlineError, InvalidInputError, PreconditionError, UnavailableError
from rlaif_pipelines.training.config.rl import RlTraining
from rlaif_pipelines.training.data import read_prompts
from rlaif_pipelines.training.errors import PausedError
from rlaif_pipelines.training.rollouts import RolloutMaker, Rollouts
from training_fakes import FakeRewards, FakeSampler, prompt, write_lines

Make = Callable[..., Rollouts]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes the rollouts of step 3 at version 7."""

    def make_rollouts(
        sampler: FakeSampler, rewards: FakeRewards, *, step: int = 3, num_prompts: int = 6, **changes: Any
    ) -> Rollouts:
        path = write_lines(tmp_path / "prompts.jsonl", [prompt(n) for n in range(num_prompts)])
        values = {
            "out": tmp_path,
            "policy": "p",
            "publish": {"artifact_root": tmp_path, "policy": "policies/t"},
            "prompts": path,
            "sampler": {"target": "s:1"},
            "rewards": {"target": "r:1"},
            "reward": {"name": "rewardModels/judge", "constitution": "constitutions/c"},
            "prompts_per_step": 2,
            "group_size": 4,
            "quorum": 2,
            "failures": {"outage_seconds": 0.05, "pause_seconds": 0.01},
        }
        settings = RlTraining.model_validate(values | changes)
        return RolloutMaker(settings, prompts=read_prompts(path), sampler=sampler, rewards=rewards).make(
            step, version=7
        )

    return make_rollouts


def test_rewards_stand_beside_their_completions(make: Make) -> None:
    sampler = FakeSampler(version=7)
    rollouts = make(sampler, FakeRewards())
    assert rollouts.rewards == [[0.1, 0.2, 0.3, 0.4]] * 2
    assert (rollouts.failures, rollouts.gold, rollouts.held_out) == ({}, None, None)
    assert sampler.calls[0]["min_policy_version"] == 7
    assert Rollouts.from_json(rollouts.to_json()) == rollouts


def test_a_failed_reward_is_missing_and_counted(make: Make) -> None:
    rewards = FakeRewards(fails=lambda call, index: "ABSTAINED" if index == 1 else "")
    rollouts = make(FakeSampler(version=7), rewards)
    assert rollouts.rewards[0] == [0.1, None, 0.3, 0.4]
    assert rollouts.failures == {"ABSTAINED": 1}
    assert len(rewards.calls) == 1


def test_too_many_failed_rewards_are_asked_for_again(make: Make) -> None:
    rewards = FakeRewards(fails=lambda call, index: "ABSTAINED" if call == 1 else "")
    assert make(FakeSampler(version=7), rewards).failures == {}
    assert len(rewards.calls) == 2


def test_rewards_that_keep_failing_pause_the_run(make: Make) -> None:
    rewards = FakeRewards(fails=lambda call, index: "NOT_FINITE" if index < 3 else "")
    with pytest.raises(PausedError, match=r"3 of 8 rewards failed 3 times in a row \(NOT_FINITE: 3\)"):
        make(FakeSampler(version=7), rewards)


def test_an_outage_is_waited_out(make: Make) -> None:
    sampler = FakeSampler(version=7, fails=lambda call: DeadlineError("slow") if call == 1 else None)
    assert make(sampler, FakeRewards()).policy_version == 7
    assert len(sampler.calls) == 2


def test_an_outage_without_end_is_an_error_that_says_who(make: Make) -> None:
    sampler = FakeSampler(version=7, fails=lambda call: UnavailableError("connection refused"))
    with pytest.raises(PausedError, match=r"the sampler at s:1 has not answered for 0\.05 s \(connection refused\)"):
        make(sampler, FakeRewards())


def test_a_wrong_request_is_not_repeated(make: Make) -> None:
    sampler = FakeSampler(version=7, fails=lambda call: InvalidInputError("max_tokens is too large"))
    with pytest.raises(InvalidInputError):
        make(sampler, FakeRewards())
    assert len(sampler.calls) == 1


def test_a_sampler_that_is_behind_is_told_to_look(make: Make) -> None:
    sampler = FakeSampler(version=2, fails=lambda call: PreconditionError("at version 2") if call == 1 else None)
    assert make(sampler, FakeRewards()).policy_version == 7
    assert sampler.loads == [7]


def test_samples_of_a_newer_version_are_refused(make: Make) -> None:
    with pytest.raises(PausedError, match="was sampled at version 9 instead of 7"):
        make(FakeSampler(version=9), FakeRewards())


def test_a_reward_that_is_no_number_is_a_failure(make: Make) -> None:
    rewards = FakeRewards(value=lambda text: math.nan if text == "eee" else 0.5)
    rollouts = make(FakeSampler(version=7), rewards)
    assert rollouts.rewards == [[0.5, 0.5, None, 0.5]] * 2
    assert rollouts.failures == {"NOT_FINITE": 2}


WATCH = {"watch": {"name": "rewardModels/distilled"}, "watch_every": 3, "watch_completions": 2}


def test_the_second_opinion_scores_every_so_often_prompts_that_are_never_trained_on(make: Make) -> None:
    rewards, sampler = FakeRewards(), FakeSampler(version=7)
    found = make(sampler, rewards, step=3, num_prompts=80, **WATCH)
    assert rewards.calls == ["rewardModels/judge", "rewardModels/distilled"]
    # One in eight of 80 prompts; completions "e" and "ee" score 0.1 and 0.2.
    assert found.held_out == [pytest.approx(0.15)] * 10
    dev = sampler.calls[1]["prompts"]
    assert make(sampler, rewards, step=4, num_prompts=80, **WATCH).held_out is None

    for step in range(6, 27):
        make(sampler, rewards, step=step, num_prompts=80, prompts_per_step=7, **WATCH)
    trained = {p for call in sampler.calls if len(call["prompts"]) == 7 for p in call["prompts"]}
    assert len(trained) == 70
    assert not trained & set(dev)
    again = [call for call in sampler.calls if len(call["prompts"]) == 10]
    assert {tuple(call["prompts"]) for call in again} == {tuple(dev)}
    assert len({call["seed"] for call in again}) == 1


def test_an_input_that_the_second_opinion_cannot_score_is_missing(make: Make) -> None:
    rewards = FakeRewards(fails=lambda call, index: "TOO_LONG" if call == 2 and index in (0, 2, 3) else "")
    found = make(FakeSampler(version=7), rewards, num_prompts=80, **WATCH).held_out
    assert found is not None
    assert found[:3] == [pytest.approx(0.2), None, pytest.approx(0.15)]


def test_with_few_prompts_none_is_set_apart(make: Make) -> None:
    rewards = FakeRewards()
    assert make(FakeSampler(version=7), rewards, num_prompts=63, **WATCH).held_out is None
    assert rewards.calls == ["rewardModels/judge"]
