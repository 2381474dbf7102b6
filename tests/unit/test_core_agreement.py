"""Agreement and kappa against numbers worked out by hand, and against statsmodels."""

from __future__ import annotations

import math
import random

import pytest
from statsmodels.stats.inter_rater import aggregate_raters, cohens_kappa
from statsmodels.stats.inter_rater import fleiss_kappa as reference_fleiss_kappa
from statsmodels.stats.proportion import proportion_confint

from rlaif.core.agreement import (
    cohen_kappa,
    fleiss_kappa,
    human_agreement,
    human_agreement_with_ties,
    human_kappa,
    panel_kappa,
    people_kappa,
    single_order_agreement,
)
from rlaif.core.estimate import clustered_share, mean, share, unknown, wilson_interval
from rlaif.core.judged_pair import JudgedPair


def judged(probability: float | None, *votes: float, pair: str = "", **changes: object) -> JudgedPair:
    return JudgedPair(pair=pair, probability_first=probability, human_votes=votes, **changes)  # type: ignore[arg-type]


def test_a_share_has_the_wilson_interval_of_statsmodels() -> None:
    for successes, size in ((8, 10), (0, 7), (7, 7), (213, 400)):
        found = share([1.0] * successes + [0.0] * (size - successes))
        expected = proportion_confint(successes, size, method="wilson")
        assert (found.low, found.high) == pytest.approx(expected, abs=1e-12)
        assert found.num_samples == size


def test_votes_that_belong_together_are_worth_fewer() -> None:
    # sizes 3 and 1: value (3 + 0)/4, effective size 16/10
    found = clustered_share([[1.0, 1.0, 1.0], [0.0], []])
    assert found.value == 0.75
    assert (found.low, found.high) == pytest.approx(wilson_interval(0.75, 1.6))
    assert found.num_samples == 2
    assert clustered_share([[], []]) == unknown()


def test_a_mean_has_a_normal_interval() -> None:
    # values 1, 2, 3, 4: s² = 5/3, s/√n = √(5/12)
    found = mean([1.0, 2.0, 3.0, 4.0])
    half = 1.959963984540054 * math.sqrt(5 / 12)
    assert (found.value, found.low, found.high) == pytest.approx((2.5, 2.5 - half, 2.5 + half))
    assert (mean([3.0]).value, mean([3.0]).low) == (3.0, None)
    assert mean([]) == unknown()


def test_agreement_counts_votes_where_both_prefer_one_response() -> None:
    pairs = [
        judged(0.9, 1.0, 0.0, 0.5),  # one of two decided votes
        judged(0.2, 0.0),  # agrees
        judged(0.5, 1.0),  # the judge ties: left out
        judged(None, 1.0),  # abstains: left out
        judged(0.7),  # nobody voted
    ]
    found = human_agreement(pairs)
    assert found.value == pytest.approx(2 / 3)
    assert found.num_samples == 2


def test_with_ties_a_tie_is_an_answer() -> None:
    pairs = [judged(0.9, 1.0, 0.5), judged(0.5, 0.5), judged(0.5, 0.0), judged(None, 0.5)]
    assert human_agreement_with_ties(pairs).value == 0.5


def test_one_order_alone_is_right_half_the_time_on_inconsistent_pairs() -> None:
    pairs = [
        judged(0.9, 1.0, probability_when_first=0.9, probability_when_second=0.9),  # right in both orders
        judged(0.6, 1.0, probability_when_first=0.9, probability_when_second=0.3),  # right in one
        judged(0.2, 1.0, probability_when_first=0.2, probability_when_second=0.2),  # wrong in both
        judged(0.9, 1.0),  # orders not known: left out
    ]
    assert single_order_agreement(pairs).value == 0.5
    assert single_order_agreement(pairs).num_samples == 3


def test_cohens_kappa_of_the_textbook_table() -> None:
    # Cohen's example as in many textbooks: 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no; p_o .7, p_e .5, kappa .4
    answers = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    found = cohen_kappa(answers)
    assert found.value == pytest.approx(0.4)
    assert found.num_samples == 50
    # Fleiss, Cohen and Everitt (1969) with row shares .5/.5, column shares .6/.4, kappa .4:
    # A = .4·(1 - 1.1·.6)² + .3·(1 - .9·.6)², B = .36·(.1·1.1² + .2·.9²) crosswise (n/y: .5 + .5 …), C = (.4 - .5·.6)²
    a = 0.4 * (1 - (0.5 + 0.6) * 0.6) ** 2 + 0.3 * (1 - (0.5 + 0.4) * 0.6) ** 2
    b = 0.6**2 * (0.1 * (0.6 + 0.5) ** 2 + 0.2 * (0.4 + 0.5) ** 2)
    c = (0.4 - 0.5 * 0.6) ** 2
    half = 1.959963984540054 * math.sqrt((a + b - c) / (0.5**2 * 50))
    assert found.high is not None
    assert found.high - 0.4 == pytest.approx(half)


def test_cohens_kappa_and_its_interval_are_those_of_statsmodels() -> None:
    rng = random.Random(5)
    answers = [(first, first if rng.random() < 0.6 else rng.choice("abc")) for first in rng.choices("abbd", k=300)]
    table = [[sum(pair == (row, column) for pair in answers) for column in "abcd"] for row in "abcd"]
    found, reference = cohen_kappa(answers), cohens_kappa(table)
    assert (found.value, found.low, found.high) == pytest.approx(
        (reference.kappa, reference.kappa_low, reference.kappa_upp)
    )


def test_kappa_is_unknown_where_only_one_answer_is_ever_given() -> None:
    assert cohen_kappa([("y", "y")] * 9) == unknown(9)
    assert cohen_kappa([("y", "n")] * 9) == unknown(9)
    assert cohen_kappa([]) == unknown()
    assert fleiss_kappa([["y", "y"]] * 9) == unknown(9)


def test_no_better_than_chance_is_a_kappa_of_zero() -> None:
    answers = [(a, b) for a in "yn" for b in "yn"] * 10
    assert cohen_kappa(answers).value == pytest.approx(0.0)


def test_fleiss_kappa_by_hand() -> None:
    # three raters, four items: agreements 1, 1/3, 1/3, 1, so P̄ = 2/3; six answers of each kind, so P̄e = 1/2
    assert fleiss_kappa(["aaa", "aab", "abb", "bbb"]).value == pytest.approx(1 / 3)


def test_fleiss_kappa_equals_statsmodels_where_everybody_rates_everything() -> None:
    rng = random.Random(5)
    truth = [rng.choice("abc") for _ in range(80)]
    ratings = [[each if rng.random() < 0.7 else rng.choice("abc") for _ in range(4)] for each in truth]
    found = fleiss_kappa(ratings)
    table, _ = aggregate_raters(ratings)
    assert found.value == pytest.approx(reference_fleiss_kappa(table))
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    # The jackknife's width is that of resampling the items.
    resampled = sorted(fleiss_kappa([rng.choice(ratings) for _ in ratings]).value or 0.0 for _ in range(400))
    assert found.high - found.low == pytest.approx(resampled[389] - resampled[9], rel=0.25)


def test_items_may_have_different_numbers_of_raters() -> None:
    # agreements 1 and 0; answers a: 3, b: 1, so P̄e = 10/16; the single answer is left out
    found = fleiss_kappa(["aa", "ab", "b"])
    assert found.value == pytest.approx((0.5 - 0.625) / 0.375)
    assert found.num_samples == 2


def test_the_judges_kappa_with_people_is_cohens_over_all_votes() -> None:
    pairs = [judged(0.9, 1.0, 1.0), judged(0.2, 0.0, 1.0), judged(0.5, 0.5), judged(0.8, 0.0), judged(None, 1.0)]
    answers = [("f", "f"), ("f", "f"), ("s", "s"), ("s", "f"), ("t", "t"), ("f", "s")]
    found, plain = human_kappa(pairs), cohen_kappa(answers)
    assert found.value == pytest.approx(plain.value)
    # six votes on four pairs of sizes 2, 2, 1, 1 are worth 36/10
    assert plain.high is not None
    assert found.high == pytest.approx(min(1.0, plain.value + (plain.high - plain.value) * math.sqrt(6 / 3.6)))
    assert found.num_samples == 4


def test_people_are_compared_once_a_pair_however_often_the_judge_saw_it() -> None:
    pairs = [judged(0.9, 1.0, 1.0, pair="x"), judged(0.3, 1.0, 1.0, pair="x"), judged(0.9, 1.0, 0.0, pair="y")]
    assert people_kappa(pairs).num_samples == 2
    assert people_kappa(pairs).value == pytest.approx((0.5 - 0.625) / 0.375)


def test_a_panels_kappa_is_among_its_judges() -> None:
    pairs = [judged(0.9, panel_votes=(0.9, 0.8)), judged(0.5, panel_votes=(0.9, 0.1)), judged(0.9)]
    assert panel_kappa(pairs).value == pytest.approx((0.5 - 0.625) / 0.375)
