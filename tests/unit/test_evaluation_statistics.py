"""Shares and intervals against numbers worked out by hand."""

from __future__ import annotations

import pytest

from rlaif_pipelines.evaluation.kl import sequence_kl
from rlaif_pipelines.evaluation.statistics import mean_of_strata, share, stratified_share, wilson_interval


def test_wilson_interval_of_eight_out_of_ten() -> None:
    # z = 1.96: middle (0.8 + 0.19208) / 1.38416 = 0.71674, half 0.22658 (textbook values .490, .943)
    low, high = wilson_interval(0.8, 10)
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_an_interval_never_has_zero_width_and_never_leaves_zero_to_one() -> None:
    low, high = wilson_interval(1.0, 20)
    assert high == 1.0
    assert low == pytest.approx(1 / (1 + 1.959964**2 / 20), abs=1e-6)


def test_a_tie_is_half_a_win() -> None:
    found = share([1.0, 0.5, 0.5, 0.0])
    assert (found.value, found.num_samples) == (0.5, 4)


def test_strata_count_the_same_whatever_their_size() -> None:
    found = stratified_share([[1.0] * 30, [0.0] * 10])
    assert found.value == 0.5
    # effective size 2² / (1/30 + 1/10) = 30, so the interval is that of 15 out of 30
    assert (found.low, found.high) == pytest.approx(wilson_interval(0.5, 30))
    assert found.num_samples == 40


def test_nothing_counted_is_unknown_not_zero() -> None:
    found = stratified_share([[], []])
    assert found.to_json() == {"value": None, "low": None, "high": None, "num_samples": 0}


def test_empty_strata_are_left_out() -> None:
    assert mean_of_strata([[2.0, 4.0], [], [6.0]]) == 4.5


def test_kl_of_a_sequence_is_the_mean_of_summed_log_ratios() -> None:
    # sample 1: (-1 - 2) - (-2 - 3) = 2; sample 2: -1 - (-0.5) = -0.5
    assert sequence_kl([[-1.0, -2.0], [-1.0]], [[-2.0, -3.0], [-0.5]]) == pytest.approx(0.75)
