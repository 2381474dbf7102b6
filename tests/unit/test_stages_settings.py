"""What a run can be told, and what it says when told wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlaif.core.errors import SettingsError
from rlaif_pipelines.settings import RunSettings, make_settings


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"sampling": {"num_prompts": 0}}, "sampling.num_prompts = 0: input should be greater than or equal to 1"),
        ({"rewards": "judge"}, "there is no setting 'rewards'"),
        ({"rl": {"stepz": 3}}, r"there is no setting 'rl.stepz'; did you mean steps\?"),
        ({"algorithm": "ppo"}, "algorithm = 'ppo': input should be 'grpo', 'dpo' or 'sft'"),
        ({"algorithm": "sft", "rounds": 2}, "algorithm 'sft' is the constitutional stage alone: it has no rounds"),
        ({"constitutional": {"round": 2}}, "there is no setting 'constitutional.round'"),
        ({"constitutional": {"rounds": 0}}, "constitutional.rounds = 0: input should be greater than or equal to 1"),
        ({"prompts": "my.jsonl"}, "prompts of your own need --policy and --judge"),
        ({"prompts": "my.jsonl", "policy": "a/b"}, "prompts of your own need --judge"),
        ({"evaluator": "playground"}, "evaluator 'playground' is the judge that labels"),
        ({"reward": "model", "reward_model": {"enabled": False}}, "reward 'model' needs reward_model.enabled"),
    ],
)
def test_a_wrong_setting_is_one_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence.replace(".", r"\.")):
        make_settings(values)


def test_none_means_not_given() -> None:
    assert make_settings({"prompts": None, "seed": None}) == RunSettings()


def test_sizes_follow_the_inputs_and_what_is_given_wins() -> None:
    ours = make_settings({})
    theirs = make_settings({"prompts": "my.jsonl", "policy": "a/b", "judge": "c/d", "rl": {"steps": 3}})
    assert ours.playground
    assert not theirs.playground
    assert theirs.judge_template == "standard"
    assert theirs.sampling.max_tokens > ours.sampling.max_tokens
    assert theirs.rl.steps == 3
    assert theirs.rl.learning_rate < ours.rl.learning_rate


def test_a_guard_s_limit_changes_alone() -> None:
    settings = make_settings({"rl": {"guards": {"length": {"limit": 3.0}, "entropy": {"limit": None}}}})
    guards = settings.rl.guards
    assert (guards.length.limit, guards.length.window, guards.entropy.limit) == (3.0, 5, None)
    assert guards.kl == make_settings({}).rl.guards.kl
    theirs = make_settings({"prompts": "my.jsonl", "policy": "a/b", "judge": "c/d"}).rl.guards
    assert theirs.kl.limit is not None
    assert guards.kl.limit is not None
    assert theirs.kl.limit > guards.kl.limit


def test_the_playground_judge_keeps_its_own_wording_on_other_prompts() -> None:
    settings = make_settings({"prompts": "my.jsonl", "policy": "playground", "judge": "playground"})
    assert (settings.judge_template, settings.constitution) == ("compact", "playground")


def test_a_reward_model_is_leaned_on_less_than_the_judge() -> None:
    assert make_settings({"reward": "model"}).rl.kl_beta > make_settings({}).rl.kl_beta
    assert make_settings({"reward": "model", "rl": {"kl_beta": 0.01}}).rl.kl_beta == 0.01


@pytest.mark.parametrize(
    ("values", "route", "branch"),
    [
        ({}, "judge", "with_reward_model"),
        ({"reward": "model"}, "model", "with_reward_model"),
        ({"reward_model": {"enabled": False}}, "judge", "direct"),
        ({"algorithm": "dpo"}, "dpo", "dpo"),
        ({"algorithm": "sft"}, "sft", "sft"),
    ],
)
def test_the_route_follows_from_algorithm_and_reward(values: dict[str, Any], route: str, branch: str) -> None:
    settings = make_settings(values)
    assert (settings.route, settings.branch) == (route, branch)


def test_the_constitutional_stage_comes_first_or_stands_alone() -> None:
    assert make_settings({}).constitutional_stage == "none"
    assert make_settings({"constitutional": {"enabled": True}}).constitutional_stage == "first"
    assert make_settings({"algorithm": "sft"}).constitutional_stage == "only"


def test_settings_survive_run_json() -> None:
    settings = make_settings({"prompts": "my.jsonl", "policy": "a/b", "judge": "c/d", "seed": 7})
    assert make_settings(settings.model_dump(mode="json")) == settings


def test_runs_that_train_differently_train_different_policies(tmp_path: Path) -> None:
    base = make_settings({})
    assert base.policy_name == make_settings({"out": tmp_path, "evaluation": {"num_other": 8}}).policy_name
    assert base.policy_name != make_settings({"seed": 1}).policy_name
    prompts = tmp_path / "my.jsonl"
    values = {"prompts": prompts, "policy": "a/b", "judge": "c/d"}
    prompts.write_text('{"prompt": "one"}\n')
    before = make_settings(values).policy_name
    prompts.write_text('{"prompt": "two"}\n')
    assert make_settings(values).policy_name != before
