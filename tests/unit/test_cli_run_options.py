"""What describes a run is told to `rlaif run` and `rlaif plan` by the same options."""

from __future__ import annotations

import inspect
from pathlib import Path

from rlaif.cli import plan, run
from rlaif.cli.run_options import settings_of

SHARED = {"prompts", "constitution", "policy", "judge", "evaluator", "reward", "algorithm", "constitutional", "rounds"}
SHARED |= {"num_prompts", "num_completions", "steps", "max_tokens", "set_"}


def test_a_plan_describes_a_run_by_the_options_of_a_run() -> None:
    of_run, of_plan = (inspect.signature(command, eval_str=True).parameters for command in (run.run, plan.plan))
    assert of_run.keys() & of_plan.keys() == SHARED
    for name in SHARED:
        assert (of_run[name].annotation, of_run[name].default) == (of_plan[name].annotation, of_plan[name].default)


def test_options_are_settings_and_sizes_changes_that_set_may_override() -> None:
    options = {
        "prompts": None,
        "judge": "j",
        "human_labels": Path("people.jsonl"),
        "constitutional": True,
        "steps": 9,
        "max_tokens": None,
        "set_": ["rl.steps=7"],
        "plain": True,
    }
    values = {"judge": "j", "human_labels": {"path": Path("people.jsonl")}, "constitutional": {"enabled": True}}
    assert settings_of(options) == (values, ["rl.steps=9", "rl.steps=7"])
    assert settings_of({"constitutional": False, "set_": None, "seed": 0}) == ({"seed": 0}, [])
