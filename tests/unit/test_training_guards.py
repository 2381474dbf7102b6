"""Guards on series of figures: which one fires, at which step, on which numbers, and what it remembers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from rlaif_pipelines.training.config.rl import GuardSettings
from rlaif_pipelines.training.guards import Firing, Guards, HeldOutScore, paired_fall, repeated_share

QUIET = {"reward": 0.5, "kl": 1.0, "completion_tokens": 20.0, "entropy": 0.4, "repetition": 0.1}


def fire(
    steps: Sequence[Mapping[str, Any]], *, guards: Guards | None = None, **settings: Mapping[str, Any]
) -> list[Firing]:
    """All firings over the steps, each quiet but for what it says."""
    guards = guards or Guards(GuardSettings.model_validate(settings))
    return [
        firing for number, step in enumerate(steps, start=1) for firing in guards.observe(number, figures=QUIET | step)
    ]


@pytest.mark.parametrize(
    ("figure", "values", "settings", "fires_at", "value", "said"),
    [
        ("kl", [1, 5.9, 6.5], {}, 3, 6.5, "6.50 nats a completion away from the reference; the limit is 6"),
        # Means of three: 3, 5, 7.
        ("kl", [1, 1, 7, 7, 7], {"window": 3}, 5, 7.0, "7.00 nats"),
        # From 20: means of two 20, 30, 45.
        ("completion_tokens", [20, 20, 40, 50], {"window": 2}, 4, 2.25, "from 20.0 to 45.0 tokens, a factor 2.25"),
        ("completion_tokens", [20, 20, 8, 8], {"window": 2}, 4, 2.5, "from 20.0 to 8.0 tokens, a factor 2.50"),
        ("entropy", [0.4, 0.4, 0.1, 0.04], {"window": 2}, 4, 0.175, "from 0.400 to 0.070 nats a token"),
        ("repetition", [0.1, 0.1, 0.3, 0.4], {"window": 2}, 4, 0.25, "from 10.0% to 35.0% of a completion"),
    ],
)
def test_a_figure_over_its_limit_fires_its_guard(
    figure: str, values: list[float], settings: dict[str, Any], fires_at: int, value: float, said: str
) -> None:
    name = {"completion_tokens": "length"}.get(figure, figure)
    found = fire([{figure: value} for value in values], **{name: settings})
    assert [(firing.guard, firing.step) for firing in found] == [(name, fires_at)]
    assert found[0].value == pytest.approx(value)
    assert said in found[0].sentence
    assert fire([{figure: value} for value in values], **{name: {**settings, "limit": None}}) == []


def test_guards_tell_how_much_of_their_limits_is_used() -> None:
    settings = {name: {"window": 1} for name in ("kl", "length", "entropy", "repetition")}
    guards = Guards(GuardSettings.model_validate(settings))
    fire([{}], guards=guards)
    assert guards.used == {"kl": 1 / 6, "length": 0.0, "entropy": 0.0, "repetition": 0.0}
    # 20 → 30 of at most 40 tokens; .4 → .24 of at least .08 nats; .1 → .2 of at most .3
    fire([{"kl": 9.0, "completion_tokens": 30.0, "entropy": 0.24, "repetition": 0.2}], guards=guards)
    assert guards.used == pytest.approx({"kl": 1.5, "length": 0.5, "entropy": 0.5, "repetition": 0.5})
    fire([dict.fromkeys(QUIET)], guards=guards)
    assert guards.used == {}


def test_what_is_missing_or_no_number_is_no_evidence() -> None:
    missing = dict.fromkeys(QUIET)
    assert fire([missing, {"kl": math.nan}, {"kl": math.inf}, {"entropy": math.nan}, missing]) == []


def test_a_guard_may_halve_the_learning_rate_again_and_again() -> None:
    guards = Guards(GuardSettings.model_validate({"kl": {"limit": 2.0, "window": 2, "action": "lower_rate"}}))
    found = fire([{"kl": 3.0}] * 5, guards=guards)
    # A window of two begins anew after each.
    assert [(firing.step, firing.action) for firing in found] == [(2, "lower_rate"), (4, "lower_rate")]
    assert guards.rate_factor == 0.25


def score(number: int, mean: float) -> HeldOutScore:
    """Eight prompts, half 0.02 above and half below; at step 3 the other half.

    Of a fall since then the standard error is 0.04·√(8/7)/√8 = 0.0151.
    """
    sign = 1 if number == 3 else -1
    return HeldOutScore(number - 1, number - 1, tuple(mean + sign * (0.02 if i % 2 else -0.02) for i in range(8)))


def measure(
    held_out: Sequence[float],
    *,
    rewards: Sequence[float],
    guards: Guards | None = None,
    steps: Sequence[int] = range(1, 10),
    **settings: Any,
) -> list[Firing]:
    """A measurement at every second step."""
    guards = guards or Guards(GuardSettings.model_validate({"held_out": settings}))
    return [
        firing
        for number in steps
        for firing in guards.observe(
            number,
            figures=QUIET | {"reward": rewards[number - 1]},
            held_out=score(number, held_out[number // 2]) if number % 2 else None,
        )
    ]


# A training without a KL on a reward model of 640 labels: gold fell from -0.02 at step 6 to -0.74 at step 11.
FOOLED = {
    "reward": [-0.001, 0.014, 0.038, 0.064, 0.116, 0.178, 0.207, 0.284, 0.34, 0.366, 0.434],
    "kl": [0.0, 0.02, 0.08, 0.13, 0.39, 0.57, 1.25, 2.53, 4.15, 4.89, 7.64],
    "completion_tokens": [21.9, 19.6, 19.1, 19.9, 18.3, 16.6, 15.8, 16.0, 15.9, 16.5, 16.5],
    "entropy": [0.425, 0.453, 0.442, 0.415, 0.439, 0.439, 0.462, 0.495, 0.492, 0.496, 0.513],
    "repetition": [0.002, 0.002, 0.002, 0.002, 0.0, 0.002, 0.001, 0.001, 0.0, 0.002, 0.005],
}  # fmt: skip


def test_a_recorded_run_that_fooled_its_reward_model_is_stopped() -> None:
    steps = [dict(zip(FOOLED, values, strict=True)) for values in zip(*FOOLED.values(), strict=True)]
    (found,) = fire(steps)
    assert (found.guard, found.step) == ("kl", 11)
    # Longer windows, for noisier figures, see it as well, and nothing else fires on what is no drift.
    assert fire(steps, kl={"limit": 4.0, "window": 3})[0].step == 11


RISING = [0.1 * step for step in range(1, 10)]
HACKED = [0.3, 0.5, 0.44, 0.44, 0.38]


def test_a_reward_that_rises_while_the_held_out_score_falls_fires() -> None:
    guards = Guards(GuardSettings())
    (found,) = measure(HACKED, rewards=RISING, guards=guards)
    # Best after step 2; the falls of steps 5 and 7 are the first two in a row.
    assert (found.guard, found.step, found.action) == ("held_out", 7, "stop")
    assert guards.best is not None
    assert (guards.best.num_steps, guards.best.version, guards.best.mean) == (2, 2, pytest.approx(0.5))
    assert "the held-out score fell from 0.500 after step 2 to 0.440" in found.sentence
    assert "2 times in a row" in found.sentence
    # At step 9: 0.12 over 0.0151.
    assert guards.fall == pytest.approx(0.12 / 0.01512, rel=1e-3)


@pytest.mark.parametrize(
    ("held_out", "rewards", "settings"),
    [
        pytest.param(HACKED, RISING[::-1], {}, id="the reward falls too"),
        pytest.param([0.3, 0.5, 0.44, 0.49, 0.44], RISING, {}, id="one fall is not two in a row"),
        pytest.param([0.3, 0.5, 0.49, 0.48, 0.49], RISING, {}, id="less than chance"),
        pytest.param([0.3, 0.4, 0.5, 0.6, 0.7], RISING, {}, id="both rise"),
        pytest.param(HACKED, RISING, {"limit": None}, id="off"),
    ],
)
def test_the_held_out_guard_is_silent(held_out: list[float], rewards: list[float], settings: dict[str, Any]) -> None:
    assert measure(held_out, rewards=rewards, **settings) == []


def test_the_best_version_is_known_though_its_guard_is_off() -> None:
    guards = Guards(GuardSettings.model_validate({"held_out": {"limit": None}}))
    measure(HACKED, rewards=RISING, guards=guards)
    assert guards.best is not None
    assert guards.best.version == 2


def test_without_a_score_nothing_is_measured() -> None:
    guards = Guards(GuardSettings())
    guards.observe(1, figures=QUIET, held_out=HeldOutScore(0, 0, (None,) * 8))
    assert guards.best is None


def test_a_fall_is_told_in_standard_errors_of_the_pairs() -> None:
    # Falls 1, 2, 3: mean 2, sd 1, standard error 1/√3.
    assert paired_fall([2.0, 4.0, 6.0, None, 1.0], [1.0, 2.0, 3.0, 9.0, None]) == pytest.approx(2 * math.sqrt(3))
    assert paired_fall([1.0, 1.0], [1.0, 1.0]) == 0.0
    assert paired_fall([1.0], [0.0]) is None


def test_repeated_four_grams() -> None:
    assert repeated_share([1, 2, 3]) == 0.0
    assert repeated_share([1, 2, 3, 4, 5, 6]) == 0.0
    # 1212 2121 1212 2121 1212: two of five are new.
    assert repeated_share([1, 2, 1, 2, 1, 2, 1, 2]) == pytest.approx(3 / 5)


def test_what_a_guard_remembers_survives_a_checkpoint() -> None:
    settings = GuardSettings.model_validate({"kl": {"limit": 1.5, "window": 2, "action": "lower_rate"}})
    whole, first = Guards(settings), Guards(settings)
    expected = measure(HACKED, rewards=RISING, guards=whole)
    before = measure(HACKED, rewards=RISING, guards=first, steps=range(1, 6))
    second = Guards(settings)
    second.load(json.loads(json.dumps(first.to_json())))
    assert second.to_json() == first.to_json()
    assert before + measure(HACKED, rewards=RISING, guards=second, steps=range(6, 10)) == expected
    assert second.to_json() == whole.to_json()
