"""Position, verbosity, reliability, entropy and slices, against numbers worked out by hand."""

from __future__ import annotations

import math
import random

import pytest
import statsmodels.api as sm

from rlaif.core.errors import InvalidInputError
from rlaif.core.estimate import unknown
from rlaif.core.judged_pair import JudgedPair
from rlaif.core.label_statistics import DIMENSIONS, MAX_SLICES, STATISTICS, label_statistics, slice_pairs
from rlaif.core.position import order_inconsistency, shown_first_share
from rlaif.core.reliability import brier, entropy_bits, expected_calibration_error, log_loss, reliability_bins
from rlaif.core.verbosity import (
    human_longer_preferred,
    human_verbosity_slope,
    length_slope,
    longer_preferred,
    verbosity_slope,
)


def ordered(when_first: float, when_second: float) -> JudgedPair:
    return JudgedPair(
        pair="",
        probability_first=(when_first + when_second) / 2,
        order_consistent=(when_first > 0.5) == (when_second > 0.5),
        probability_when_first=when_first,
        probability_when_second=when_second,
    )


def test_inconsistency_is_over_decided_pairs_and_its_direction_over_inconsistent_ones() -> None:
    pairs = [
        ordered(0.9, 0.8),
        ordered(0.9, 0.2),  # whatever is shown first
        ordered(0.8, 0.4),  # whatever is shown first
        ordered(0.3, 0.7),  # whatever is shown second
        JudgedPair(pair="", probability_first=None, order_consistent=False),
    ]
    assert order_inconsistency(pairs).value == 0.75
    assert order_inconsistency(pairs).num_samples == 4
    assert shown_first_share(pairs).value == pytest.approx(2 / 3)
    assert shown_first_share(pairs[:1]) == unknown()


def test_exchanging_the_responses_changes_neither() -> None:
    # P(first) when shown first becomes 1 - P(first) when shown second
    pairs = [ordered(0.9, 0.2), ordered(0.3, 0.7), ordered(0.8, 0.4)]
    exchanged = [ordered(0.8, 0.1), ordered(0.3, 0.7), ordered(0.6, 0.2)]
    assert order_inconsistency(pairs) == order_inconsistency(exchanged)
    assert shown_first_share(pairs) == shown_first_share(exchanged)


def test_a_slope_of_one_doubling_has_a_closed_form() -> None:
    # every difference is one doubling, 15 of 20 prefer the longer: β = ln(15/5), s² = 1/(20 · ¾ · ¼)
    choices = [((199, 99), True)] * 10 + [((99, 199), False)] * 5 + [((99, 199), True)] * 5
    found = length_slope(choices)
    assert found.value == pytest.approx(math.log(3), abs=1e-6)
    half = 1.959963984540054 / math.sqrt(20 * 0.75 * 0.25)
    assert (found.low, found.high) == pytest.approx((math.log(3) - half, math.log(3) + half), abs=1e-5)


def test_a_slope_is_that_of_a_binomial_model_and_found_again() -> None:
    rng = random.Random(3)
    choices = []
    for _ in range(3000):
        lengths = (rng.randrange(50, 2000), rng.randrange(50, 2000))
        chance = 1 / (1 + math.exp(-0.8 * math.log2((lengths[0] + 1) / (lengths[1] + 1))))
        choices.append((lengths, rng.random() < chance))
    found = length_slope(choices)
    model = sm.GLM(
        [float(choice) for _, choice in choices],
        [[math.log2((a + 1) / (b + 1))] for (a, b), _ in choices],
        family=sm.families.Binomial(),
    ).fit()
    assert found.value == pytest.approx(model.params[0], abs=1e-6)
    assert (found.low, found.high) == pytest.approx(tuple(model.conf_int()[0]), abs=1e-6)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.8 < found.high


def test_a_slope_that_is_nearly_infinite_is_still_the_most_likely_one() -> None:
    choices = [((200_000, 0), True)] * 500 + [((101, 100), True)] * 30 + [((101, 100), False)]
    slope = length_slope(choices).value
    assert slope is not None
    near = math.log2(102 / 101)
    # at the root the expected wins of the 31 close pairs are those seen: 31 · σ(β · near) = 30, the others are certain
    assert slope == pytest.approx(math.log(30) / near, rel=1e-9)


def test_calling_the_other_response_first_changes_no_slope() -> None:
    choices = [((300, 100), True), ((120, 500), True), ((80, 90), False), ((700, 60), False)] * 4
    exchanged = [((second, first), not choice) for (first, second), choice in choices]
    assert length_slope(choices).value == pytest.approx(length_slope(exchanged).value)


def test_a_slope_that_would_be_infinite_or_rests_on_little_is_not_told() -> None:
    assert length_slope([((200, 100), True)] * 40) == unknown(40)
    assert length_slope([((200, 100), False)] * 40) == unknown(40)
    assert length_slope([((200, 100), True), ((200, 100), False)] * 4) == unknown(8)
    assert length_slope([((100, 100), True), ((100, 100), False)] * 40) == unknown(0)


def test_people_and_judge_have_slopes_of_their_own() -> None:
    def pair(index: int, probability: float, vote: float) -> JudgedPair:
        return JudgedPair(pair=str(index), probability_first=probability, human_votes=(vote,), num_characters=(199, 99))

    pairs = [pair(index, 0.9 if index < 15 else 0.1, 1.0 if index < 10 else 0.0) for index in range(20)]
    assert verbosity_slope(pairs).value == pytest.approx(math.log(3), abs=1e-6)
    assert human_verbosity_slope(pairs).value == pytest.approx(0.0, abs=1e-9)


def test_a_judge_that_always_prefers_the_longer_has_no_slope_but_a_share() -> None:
    def pair(index: int, lengths: tuple[int, int]) -> JudgedPair:
        longer_first = lengths[0] > lengths[1]
        return JudgedPair(
            pair=str(index),
            probability_first=0.9 if longer_first else 0.1,
            human_votes=(0.0,),
            num_characters=lengths,
        )

    pairs = [pair(index, (200, 100) if index % 2 else (100, 200)) for index in range(40)]
    undecided = JudgedPair(pair="tie", probability_first=0.5, human_votes=(0.5,), num_characters=(9, 5))
    alike = JudgedPair(pair="alike", probability_first=0.9, human_votes=(1.0,), num_characters=(9, 9))
    assert verbosity_slope(pairs).value is None
    # Wilson's lower bound of 40 out of 40: n / (n + z²)
    found = longer_preferred([*pairs, undecided, alike])
    assert (found.value, found.num_samples) == (1.0, 40)
    assert found.low == pytest.approx(40 / (40 + 1.959963984540054**2))
    # People always take the second, which is the longer every other time.
    assert human_longer_preferred([*pairs, undecided, alike]).value == 0.5


def test_brier_and_log_loss_by_hand() -> None:
    forecasts = [(0.8, 1.0), (0.6, 0.0), (0.5, 0.5)]
    assert brier(forecasts).value == pytest.approx((0.04 + 0.36 + 0.0) / 3)
    assert log_loss(forecasts).value == pytest.approx(-(math.log(0.8) + math.log(0.4) + math.log(0.5)) / 3)
    assert log_loss([(1.0, 0.0)]).value == pytest.approx(-math.log(1e-6))


def test_bins_are_of_confidence_so_that_both_responses_share_them() -> None:
    # 0.93 right and 0.07 wrong fall together: confidence .93, one of two right
    bins = reliability_bins([(0.93, 1.0), (0.07, 1.0), (0.5, 0.0), (1.0, 1.0)])
    assert [held.num_labels for held in bins] == [1, 0, 0, 0, 0, 0, 0, 0, 2, 1]
    assert (bins[8].low, bins[8].high) == pytest.approx((0.9, 0.95))
    assert (bins[8].mean_confidence, bins[8].accuracy) == pytest.approx((0.93, 0.5))
    assert (bins[1].mean_confidence, bins[1].accuracy) == (None, None)
    assert (bins[9].mean_confidence, bins[9].accuracy) == (1.0, 1.0)


def test_calibration_error_is_the_weighted_gap() -> None:
    # (2·|.5 - .93| + 1·|0 - .5| + 1·0) / 4
    found = expected_calibration_error([(0.93, 1.0), (0.07, 1.0), (0.5, 0.0), (1.0, 1.0)])
    assert found.value == pytest.approx((2 * 0.43 + 0.5) / 4)
    assert (found.low, found.num_samples) == (None, 4)
    assert expected_calibration_error([]) == unknown()


def test_a_judge_that_is_right_as_often_as_it_says_has_no_calibration_error() -> None:
    assert expected_calibration_error([(0.75, 1.0)] * 3 + [(0.75, 0.0)]).value == pytest.approx(0.0)


def test_entropy_is_in_bits() -> None:
    assert entropy_bits([0.5, 1.0, 0.0]).value == pytest.approx(1 / 3)
    assert entropy_bits([0.25]).value == pytest.approx(0.25 * 2 + 0.75 * math.log2(4 / 3))


PAIRS = [
    JudgedPair(pair="1", probability_first=0.9, human_votes=(1.0,), category="harmful", num_characters=(10, 300)),
    JudgedPair(pair="2", probability_first=0.4, human_votes=(1.0,), category="benign", num_characters=(10, 20)),
    JudgedPair(pair="3", probability_first=None, category="harmful"),
]


def test_every_statistic_is_given_for_all_labels_and_each_slice_in_order() -> None:
    found = label_statistics(PAIRS, dimensions=["category", "length"])
    slices = ["", "category=benign", "category=harmful", "length=0-255", "length=256-1023"]
    assert [(each.statistic, each.slice) for each in found.statistics] == [
        (statistic, name) for statistic in sorted(STATISTICS) for name in slices
    ]
    values = {(each.statistic, each.slice): each.estimate for each in found.statistics}
    assert values["abstention_rate", ""].value == pytest.approx(1 / 3)
    assert values["abstention_rate", "category=harmful"].value == 0.5
    assert values["human_agreement", "category=benign"].value == 0.0
    assert values["human_agreement", "length=256-1023"].value == 1.0
    assert values["brier", "category=harmful"].value == pytest.approx(0.01)
    assert [each.slice for each in found.reliability] == slices


def test_what_cannot_be_known_is_unknown_and_not_zero() -> None:
    values = {each.statistic: each.estimate for each in label_statistics(PAIRS[2:]).statistics}
    assert values["abstention_rate"].value == 1.0
    assert {name for name, estimate in values.items() if estimate.value is not None} == {"abstention_rate"}
    assert all(each.estimate.value is None for each in label_statistics([]).statistics)


def test_scores_before_calibration_are_told_where_one_applied() -> None:
    pair = JudgedPair(
        pair="1", probability_first=0.7, raw_probability_first=0.9, human_votes=(0.0,), calibration="calibrations/x"
    )
    values = {each.statistic: each.estimate.value for each in label_statistics([pair]).statistics}
    assert (values["brier"], values["raw_brier"]) == pytest.approx((0.49, 0.81))


def test_rare_slices_are_put_together() -> None:
    pairs = [JudgedPair(pair="", probability_first=0.5, category=str(index)) for index in range(MAX_SLICES)] * 2
    pairs += [JudgedPair(pair="", probability_first=0.5, category=f"rare {index}") for index in range(7)]
    slices = slice_pairs(pairs, "category")
    assert len(slices) == MAX_SLICES + 1
    assert len(slices["category=other"]) == 7


def test_an_unknown_slice_is_refused_by_name() -> None:
    with pytest.raises(InvalidInputError, match="unknown slice 'colour'") as caught:
        label_statistics([], dimensions=["judge", "colour"])
    assert caught.value.field == "slices[1]"
    assert set(DIMENSIONS) == {"judge", "constitution", "category", "language", "length"}
