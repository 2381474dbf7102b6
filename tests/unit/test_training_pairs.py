"""Pairs: how they are cut up changes nothing about what a model says of them."""

from __future__ import annotations

import math

import pytest
from torch import Tensor

from rlaif_pipelines.training.config.common import OptimizerSettings
from rlaif_pipelines.training.engine import learning_rate
from rlaif_pipelines.training.losses import sum_by_sequence
from rlaif_pipelines.training.packing import Layout, Rows
from rlaif_pipelines.training.pair_loop import PairSchedule
from rlaif_pipelines.training.pairs import EncodedPair, measure_pairs, pair_quality, pair_values


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


def test_quality_of_known_margins() -> None:
    margins = [2.0, -1.0, 0.5, 1.0]
    probabilities = [0.9, 0.8, 0.5, 0.6]  # right, wrong, a tie that counts for nothing, right
    found = pair_quality(margins, probabilities)
    sigmoids = [1 / (1 + math.exp(-margin)) for margin in margins]
    expected_brier = sum((s - p) ** 2 for s, p in zip(sigmoids, probabilities, strict=True)) / 4
    expected_loss = -sum(
        p * math.log(s) + (1 - p) * math.log(1 - s) for s, p in zip(sigmoids, probabilities, strict=True)
    )
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["brier"] == pytest.approx(expected_brier)
    assert found["loss"] == pytest.approx(expected_loss / 4)


def test_without_pairs_quality_is_unknown_and_not_a_number() -> None:
    assert pair_quality([], []) == {"num_pairs": 0, "accuracy": None, "brier": None, "loss": None}
    assert pair_quality([0.1], [0.5])["accuracy"] is None


def test_a_schedule_shows_every_pair_once_an_epoch() -> None:
    schedule = PairSchedule(num_pairs=10, batch_pairs=4, num_epochs=2, seed=0)
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
