"""Pairs: how they are cut up changes nothing about what a model says of them."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from torch import Tensor

from rlaif_pipelines.training.config.common import OptimizerSettings
from rlaif_pipelines.training.engine import learning_rate
from rlaif_pipelines.training.fitting import Schedule
from rlaif_pipelines.training.losses import sum_by_sequence
from rlaif_pipelines.training.packing import Layout, Rows
from rlaif_pipelines.training.pair_data import bootstrap
from rlaif_pipelines.training.pair_quality import pair_quality, quality_by_slice
from rlaif_pipelines.training.pairs import EncodedPair, measure_pairs, pair_values


def pair(prompt: int, first: int, second: int) -> EncodedPair:
    """A pair with that many tokens in its parts; tokens are 7 in prompts, 1 in firsts, 2 in seconds."""
    return EncodedPair((7,) * prompt, (1,) * first, (2,) * second, 0.5, 1.0)


def sums_of_responses(rows: Rows) -> Tensor:
    return sum_by_sequence(rows.targets_N.float(), sequence_N=rows.branches_N, num_sequences=rows.num_branches)


PAIRS = [pair(3, 5, 40), pair(9, 33, 2), pair(1, 1, 1), pair(20, 17, 18)]


@pytest.mark.parametrize("shares_prefixes", [True, False])
def test_values_come_back_in_the_order_of_the_pairs(shares_prefixes: bool) -> None:
    layout = Layout(pad_id=9, shares_prefixes=shares_prefixes)
    first, second = pair_values(PAIRS, forward=sums_of_responses, layout=layout)
    assert first.tolist() == [5.0, 33.0, 1.0, 17.0]
    assert second.tolist() == [80.0, 4.0, 2.0, 36.0]


@pytest.mark.parametrize("max_tokens", [1, 96, 100_000])
def test_measured_in_passes_they_do_too(max_tokens: int) -> None:
    first, second = measure_pairs(PAIRS, forward=sums_of_responses, layout=Layout(pad_id=9), max_tokens=max_tokens)
    assert first.tolist() == [5.0, 33.0, 1.0, 17.0]
    assert second.tolist() == [80.0, 4.0, 2.0, 36.0]
    assert measure_pairs([], forward=sums_of_responses, layout=Layout(pad_id=9), max_tokens=1)[0].shape == (0,)


def labelled(probability: float, *, prompt: str, **slices: str) -> EncodedPair:
    return EncodedPair((7,), (1,), (2,), probability, 1.0, prompt_id=prompt, slices=slices)


def test_quality_of_known_margins() -> None:
    margins = [2.0, -1.0, 0.5, 1.0]
    probabilities = [0.9, 0.8, 0.5, 0.6]  # right, wrong, a tie that counts for nothing, right
    pairs = [labelled(p, prompt=f"prompt-{number}") for number, p in enumerate(probabilities)]
    found = pair_quality(margins, pairs)
    sigmoids = [1 / (1 + math.exp(-margin)) for margin in margins]
    expected_brier = sum((s - p) ** 2 for s, p in zip(sigmoids, probabilities, strict=True)) / 4
    expected_loss = -sum(
        p * math.log(s) + (1 - p) * math.log(1 - s) for s, p in zip(sigmoids, probabilities, strict=True)
    )
    assert found["accuracy"] == pytest.approx(2 / 3)
    # Wilson's interval of 2 in 3.
    assert (found["accuracy_low"], found["accuracy_high"]) == (
        pytest.approx(0.2077, abs=1e-4),
        pytest.approx(0.9385, abs=1e-4),
    )
    assert found["brier"] == pytest.approx(expected_brier)
    # Each margin is alone in its bin of confidence: .881, .731 (for the second), .622, .731 with .9, .2, .5, .6.
    in_one_bin = abs((sigmoids[3] + 1 - sigmoids[1]) / 2 - (0.6 + 0.2) / 2) * 2
    assert found["ece"] == pytest.approx((abs(sigmoids[0] - 0.9) + abs(sigmoids[2] - 0.5) + in_one_bin) / 4)
    assert found["loss"] == pytest.approx(expected_loss / 4)
    assert found["auc"] is None  # no label says second


def test_auc_of_known_margins() -> None:
    # Firsts at 3, 1, 1; seconds at 2, 1: of the 6 pairings 1 wins by 3 over 2 and over 1, and 1 ties with 1 twice.
    margins = [3.0, 1.0, 1.0, 2.0, 1.0]
    probabilities = [0.9, 0.8, 0.7, 0.2, 0.1]
    pairs = [labelled(p, prompt=str(number)) for number, p in enumerate(probabilities)]
    assert pair_quality(margins, pairs)["auc"] == pytest.approx((1 + 1 + 0 + 0.5 + 0 + 0.5) / 6)


def test_pairs_of_one_prompt_widen_the_interval() -> None:
    margins, probabilities = [1.0, 1.0, 1.0, -1.0] * 5, [0.9] * 20
    alone = pair_quality(margins, [labelled(p, prompt=str(n)) for n, p in enumerate(probabilities)])
    together = pair_quality(margins, [labelled(p, prompt=str(n // 4)) for n, p in enumerate(probabilities)])
    assert alone["accuracy"] == together["accuracy"] == 0.75
    assert together["accuracy_low"] < alone["accuracy_low"]
    # As 5 independent pairs: Wilson's interval of .75 with n = 5.
    assert together["accuracy_low"] == pytest.approx(0.3360, abs=1e-3)


def test_quality_by_slice_is_that_of_its_pairs() -> None:
    pairs = [
        labelled(0.9, prompt="a", category="fact", source="ai"),
        labelled(0.9, prompt="b", category="howto", source="ai"),
        labelled(0.2, prompt="c", category="howto", source="human"),
    ]
    found = quality_by_slice([1.0, -1.0, -1.0], pairs)
    assert {name: each["num_pairs"] for name, each in found.items()} == {
        "category=fact": 1,
        "category=howto": 2,
        "source=ai": 2,
        "source=human": 1,
    }
    assert [found[name]["accuracy"] for name in ("category=fact", "category=howto", "source=human")] == [1.0, 0.5, 1.0]


def test_rare_slices_are_put_together() -> None:
    pairs = [labelled(0.9, prompt=str(n), category=f"c{n}") for n in range(30)]
    found = quality_by_slice([1.0] * 30, pairs)
    assert len(found) == 21
    assert found["category=other"]["num_pairs"] == 10


def test_margins_that_are_no_log_odds_are_not_taken_for_probabilities() -> None:
    found = pair_quality([3.0, -2.0], [labelled(0.9, prompt="a"), labelled(0.1, prompt="b")], are_log_odds=False)
    assert (found["accuracy"], found["auc"]) == (1.0, 1.0)
    assert [found[name] for name in ("brier", "ece", "loss")] == [None, None, None]


def test_without_pairs_quality_is_unknown_and_not_a_number() -> None:
    found = pair_quality([], [])
    assert found.pop("num_pairs") == 0
    assert set(found.values()) == {None}
    assert pair_quality([0.1], [labelled(0.5, prompt="a")])["accuracy"] is None


def test_a_bootstrap_draws_whole_prompts_and_repeats() -> None:
    pairs = [labelled(0.9, prompt=str(n // 2)) for n in range(40)]
    drawn = bootstrap(pairs, seed=3)
    assert drawn == bootstrap(pairs, seed=3) != bootstrap(pairs, seed=4)
    assert len(drawn) == 40
    counts = Counter(pair.prompt_id for pair in drawn)
    assert len(counts) < 20
    assert all(count % 2 == 0 for count in counts.values())


def test_a_schedule_shows_every_pair_once_an_epoch() -> None:
    schedule = Schedule(num_examples=10, batch_examples=4, num_epochs=2, seed=0)
    assert (schedule.steps_per_epoch, schedule.num_steps) == (3, 6)
    batches = [schedule.batch(step) for step in range(6)]
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2]
    for epoch in (batches[:3], batches[3:]):
        assert sorted(position for batch in epoch for position in batch) == list(range(10))
    assert batches[:3] != batches[3:]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]),
    ],
)
def test_learning_rates_by_hand(schedule: str, expected: list[float]) -> None:
    settings = OptimizerSettings.model_validate({"learning_rate": 1.0, "warmup_steps": 2, "schedule": schedule})
    found = [learning_rate(step, settings=settings, num_steps=6) for step in range(6)]
    assert found == pytest.approx(expected)
