import math

import pytest

from rlaif.core.preference import (
    AbstentionReason,
    OrderVote,
    Preference,
    combine_orders,
    combine_principles,
    order_vote,
)


def vote(principle_id="p", *, weight=1.0, when_first=0.9, shown_second=0.3, mass=0.8, min_mass=0.5):
    return combine_orders(
        principle_id,
        weight=weight,
        first_shown_first=OrderVote(when_first, mass),
        second_shown_first=OrderVote(shown_second, 0.9),
        min_verdict_mass=min_mass,
    )


def test_one_order_is_the_share_of_the_first_label():
    cast = order_vote(math.log(0.6), math.log(0.2))
    assert cast.probability_shown_first == pytest.approx(0.75)
    assert cast.verdict_mass == pytest.approx(0.8)


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_log_probability_that_is_not_finite_is_no_vote(bad):
    assert order_vote(bad, -1.0) is None
    cast = combine_orders(
        "p", weight=1.0, first_shown_first=None, second_shown_first=OrderVote(0.5, 1.0), min_verdict_mass=0.0
    )
    assert cast.abstention_reason is AbstentionReason.NOT_FINITE


def test_both_orders_are_averaged():
    # Shown first .9; shown second, "1" means the other response: 1 - .3 = .7; the mean is .8.
    cast = vote()
    assert cast.probability_first == pytest.approx(0.8)
    assert cast.verdict_mass == 0.8
    assert cast.order_consistent


def test_a_judge_that_always_says_one_is_undecided_and_inconsistent():
    label = combine_principles([vote(when_first=0.9, shown_second=0.9)])
    assert label.probability_first == pytest.approx(0.5)
    assert label.preference is Preference.TIE
    assert not label.order_consistent


def test_principles_are_weighted():
    label = combine_principles([vote("a", weight=3.0), vote("b", weight=1.0, when_first=0.1, shown_second=0.9)])
    # a: .8, b: (.1 + .1) / 2 = .1; (3 · .8 + 1 · .1) / 4 = .625
    assert label.probability_first == pytest.approx(0.625)
    assert label.preference is Preference.FIRST


def test_too_little_verdict_mass_abstains_with_its_reason():
    cast = vote(mass=0.4)
    assert cast.abstention_reason is AbstentionReason.LOW_VERDICT_MASS
    label = combine_principles([cast])
    assert label.preference is Preference.ABSTAIN
    assert label.probability_first is None
    assert label.abstention_reason is AbstentionReason.LOW_VERDICT_MASS


def test_a_label_needs_more_than_half_the_weight():
    silent = vote("b", weight=1.0, mass=0.1)
    assert combine_principles([vote("a", weight=1.0), silent]).preference is Preference.ABSTAIN
    assert combine_principles([vote("a", weight=1.1), silent]).preference is Preference.FIRST
