import math

import pytest

from rlaif.core.preference import (
    AbstentionReason,
    JudgeVote,
    OrderVote,
    Preference,
    average_samples,
    clamp_reasoned,
    combine_judges,
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


def judge(probability: float | None, *, reason: AbstentionReason | None = None) -> JudgeVote:
    if probability is None:
        return JudgeVote("", "", "", abstention_reason=reason or AbstentionReason.TIMED_OUT)
    return JudgeVote("", "", "", 0, probability, probability, probability, probability)


@pytest.mark.parametrize(
    ("rule", "probabilities", "decided"),
    [
        ("mean", (0.9, 0.6, 0.3), 0.6),
        ("mean", (0.9, 0.9, 0.3), 0.7),
        ("median", (0.9, 0.9, 0.3), 0.9),
        ("median", (0.9, 0.3), 0.6),
        ("majority", (0.51, 0.9, 0.3), 2 / 3),
        ("majority", (0.9, 0.9, 0.9), 1.0),
        # A tie counts half for each side.
        ("majority", (0.9, 0.9, 0.5), 5 / 6),
    ],
)
def test_a_panel_combines_by_its_rule(rule, probabilities, decided):
    decision = combine_judges([judge(p) for p in probabilities], rule=rule, quorum=2)
    assert decision.probability_first == pytest.approx(decided)
    assert decision.abstention_reason is None


@pytest.mark.parametrize(
    ("probabilities", "rule", "quorum", "max_disagreement"),
    [
        ((0.9, None, None), "mean", 2, 0.5),
        ((None, None), "mean", 1, 0.5),
        # Two of four agree where three must.
        ((0.9, 0.9, 0.1, 0.1), "majority", 3, 0.5),
        # Standard deviation 0.4.
        ((0.9, 0.1), "mean", 1, 0.39),
    ],
)
def test_a_panel_short_of_its_quorum_abstains(probabilities, rule, quorum, max_disagreement):
    votes = [judge(p) for p in probabilities]
    decision = combine_judges(votes, rule=rule, quorum=quorum, max_disagreement=max_disagreement)
    assert decision.probability_first is None
    assert decision.raw_probability_first is None
    assert decision.abstention_reason is AbstentionReason.PANEL_SPLIT


def test_disagreement_is_the_standard_deviation_of_those_who_voted():
    decision = combine_judges([judge(0.9), judge(0.1), judge(None)], rule="mean", quorum=2)
    assert decision.disagreement == pytest.approx(0.4)
    assert combine_judges([judge(1.0), judge(0.0)], rule="mean", quorum=1).disagreement == pytest.approx(0.5)


def test_a_panel_follows_the_order_when_its_judges_do():
    follows = JudgeVote("", "", "", 0, 0.5, 0.5, 0.9, 0.1)
    assert not combine_judges([follows, judge(0.5)], rule="mean", quorum=1).order_consistent
    assert combine_judges([follows, judge(0.99)], rule="mean", quorum=1).order_consistent


def test_reasoned_probabilities_are_clamped():
    assert [clamp_reasoned(p) for p in (0.0, 0.45, 0.6, 0.99)] == [0.4, 0.45, 0.6, 0.6]


def test_samples_are_averaged_and_hold_the_least_mass():
    assert average_samples([OrderVote(0.9, 0.8), OrderVote(0.6, 0.5)]) == OrderVote(0.75, 0.5)
