"""Bradley-Terry, schedules and cycles, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from rlaif.judge.ranking import (
    Comparison,
    all_pairs,
    bradley_terry,
    connected_groups,
    find_cycles,
    linking_pairs,
    num_swiss_rounds,
    swiss_round,
)


def test_two_responses_have_the_logit_between_them():
    one, two = bradley_terry(2, [Comparison(0, 1, 0.8)])
    # s_0 - s_1 = logit(0.8) = ln 4; the information is 0.8 * 0.2 = 0.16, its pseudo-inverse's diagonal 1 / (4 * 0.16)
    assert one.value == pytest.approx(math.log(4) / 2)
    assert two.value == pytest.approx(-math.log(4) / 2)
    assert [one.standard_error, two.standard_error] == pytest.approx([1.25, 1.25])


def test_consistent_probabilities_are_reproduced():
    truth = [1.0, 0.2, -1.2]
    pairs = [Comparison(i, j, 1 / (1 + math.exp(truth[j] - truth[i]))) for i, j in all_pairs(3)]
    assert [strength.value for strength in bradley_terry(3, pairs)] == pytest.approx(truth)


def test_a_circle_has_equal_strengths():
    circle = [Comparison(0, 1, 0.7), Comparison(1, 2, 0.7), Comparison(2, 0, 0.7)]
    strengths = bradley_terry(3, circle)
    assert [strength.value for strength in strengths] == pytest.approx([0, 0, 0])
    # Laplacian of the triangle with weights 1/4 at strengths 0: pseudo-inverse diagonal = (4 / 3) * (2 / 3) = 8 / 9
    assert strengths[0].standard_error == pytest.approx(math.sqrt(8 / 9))


def test_a_response_that_always_wins_stays_finite_and_uncertain():
    strengths = bradley_terry(3, [Comparison(0, 1, 1.0), Comparison(0, 2, 1.0), Comparison(1, 2, 0.5)])
    assert all(math.isfinite(strength.value) for strength in strengths)
    assert strengths[0].value > 5
    assert strengths[0].standard_error > 100


def test_unconnected_comparisons_have_no_strengths():
    with pytest.raises(ValueError, match="connect"):
        bradley_terry(3, [Comparison(0, 1, 0.8)])


def test_cycles_are_found_once_and_in_direction():
    circle = [Comparison(0, 1, 0.7), Comparison(1, 2, 0.7), Comparison(0, 2, 0.2), Comparison(2, 3, 0.9)]
    assert find_cycles(circle) == [(0, 1, 2)]
    assert find_cycles([Comparison(0, 1, 0.3), Comparison(1, 2, 0.3), Comparison(0, 2, 0.8)]) == [(0, 2, 1)]


def test_ties_make_no_cycle():
    assert find_cycles([Comparison(0, 1, 0.5), Comparison(1, 2, 0.7), Comparison(0, 2, 0.2)]) == []


@pytest.mark.parametrize("size", [7, 8, 11, 16])
def test_a_swiss_tournament_repeats_no_pair_and_connects_everybody(size: int):
    comparisons: list[Comparison] = []
    for _ in range(num_swiss_rounds(size)):
        pairs = swiss_round(size, comparisons, played={(c.first, c.second) for c in comparisons})
        comparisons += [Comparison(i, j, 0.9 if i < j else 0.1) for i, j in pairs]
    played = [(c.first, c.second) for c in comparisons]
    assert len(played) == len(set(played)) <= num_swiss_rounds(size) * (size // 2)
    assert len(played) < len(all_pairs(size))
    assert len(connected_groups(size, comparisons)) == 1
    ranked = sorted(range(size), key=lambda i: -bradley_terry(size, comparisons)[i].value)
    assert ranked[0] == 0


def test_links_join_separate_groups():
    comparisons = [Comparison(0, 1, 0.9), Comparison(2, 3, 0.9)]
    assert linking_pairs(4, comparisons, played={(0, 1), (2, 3)}) == [(0, 2)]
    assert linking_pairs(4, comparisons, played={(0, 1), (2, 3), (0, 2), (0, 3), (1, 2), (1, 3)}) == []
