import math

import pytest

from rlaif.core.preference import AbstentionReason
from rlaif.core.reward import combine_scores, principle_score, rescale


def logs(*values):
    return [math.log(value) if value else -800.0 for value in values]


def test_the_score_is_the_expected_label():
    score = principle_score("p", weight=1.0, logprobs=logs(0.2, 0, 0, 0, 0, 0, 0, 0, 0, 0.6), min_verdict_mass=0.5)
    # Renormalised: 1 with 1/4, 10 with 3/4: mean 7.75, variance 1/4 · 6.75² + 3/4 · 2.25² = 15.1875.
    assert score.expected == pytest.approx(7.75)
    assert score.standard_deviation == pytest.approx(math.sqrt(15.1875))
    assert score.verdict_mass == pytest.approx(0.8)
    assert sum(score.probabilities) == pytest.approx(1.0)


def test_the_reward_spans_minus_one_to_one():
    assert [rescale(1), rescale(5.5), rescale(10)] == pytest.approx([-1.0, 0.0, 1.0])


def test_scores_are_weighted():
    ten = principle_score("a", weight=3.0, logprobs=logs(*[0] * 9, 1.0), min_verdict_mass=0.5)
    one = principle_score("b", weight=1.0, logprobs=logs(1.0, *[0] * 9), min_verdict_mass=0.5)
    assert combine_scores([ten, one]).expected == pytest.approx(7.75)


@pytest.mark.parametrize(
    ("logprobs", "reason"),
    [
        (logs(*[0.01] * 10), AbstentionReason.LOW_VERDICT_MASS),
        ([math.nan, *logs(*([0.1] * 9))], AbstentionReason.NOT_FINITE),
        (logs(*[0.1] * 9), AbstentionReason.NOT_FINITE),
    ],
)
def test_no_score_is_an_abstention_and_never_a_number(logprobs, reason):
    good = principle_score("a", weight=9.0, logprobs=logs(*[0.1] * 10), min_verdict_mass=0.5)
    silent = principle_score("b", weight=1.0, logprobs=logprobs, min_verdict_mass=0.5)
    combined = combine_scores([good, silent])
    assert combined.expected is None
    assert combined.reward is None
    assert combined.abstention_reason is reason
