"""From pairwise probabilities to a ranking: which pairs to compare, Bradley-Terry strengths, cycles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

MAX_ALL_PAIRS = 6
"""Up to this many responses every pair is compared; beyond it a Swiss tournament is played."""
_PROBABILITY_FLOOR = 1e-6
_MAX_NEWTON_STEPS = 100
_GRADIENT_TOLERANCE = 1e-10

Pairing = tuple[int, int]


@dataclass(frozen=True)
class Comparison:
    """Outcome of one pair: P(first preferred) in [0, 1]."""

    first: int
    second: int
    probability_first: float


@dataclass(frozen=True)
class Strength:
    """Bradley-Terry log-strength, mean 0 over the responses, and its standard error."""

    value: float
    standard_error: float


def all_pairs(num_responses: int) -> list[Pairing]:
    """Every pair, lower index first."""
    return list(itertools.combinations(range(num_responses), 2))


def num_swiss_rounds(num_responses: int) -> int:
    """Rounds of a Swiss tournament: one more than a knock-out would need."""
    return math.ceil(math.log2(num_responses)) + 1


def swiss_round(num_responses: int, comparisons: Sequence[Comparison], *, played: Collection[Pairing]) -> list[Pairing]:
    """Next round's pairs: neighbours by points so far that have not met; who finds no opponent sits out."""
    points = [0.0] * num_responses
    for comparison in comparisons:
        points[comparison.first] += comparison.probability_first
        points[comparison.second] += 1 - comparison.probability_first
    waiting = sorted(range(num_responses), key=lambda index: (-points[index], index))
    pairs = []
    while waiting:
        one = waiting.pop(0)
        for other in waiting:
            pair = (min(one, other), max(one, other))
            if pair not in played:
                waiting.remove(other)
                pairs.append(pair)
                break
    return pairs


def linking_pairs(
    num_responses: int, comparisons: Sequence[Comparison], *, played: Collection[Pairing]
) -> list[Pairing]:
    """Unplayed pairs that link the first group of connected responses to each of the others."""
    groups = connected_groups(num_responses, comparisons)
    links = []
    for group in groups[1:]:
        candidates = [(min(a, b), max(a, b)) for a in groups[0] for b in group]
        link = next((pair for pair in candidates if pair not in played), None)
        if link is not None:
            links.append(link)
    return links


def connected_groups(num_responses: int, comparisons: Sequence[Comparison]) -> list[list[int]]:
    """Responses that comparisons link, directly or through others; strengths are comparable only within a group."""
    root = list(range(num_responses))

    def find(index: int) -> int:
        while root[index] != index:
            index = root[index]
        return index

    for comparison in comparisons:
        low, high = sorted((find(comparison.first), find(comparison.second)))
        root[high] = low
    groups: dict[int, list[int]] = {}
    for index in range(num_responses):
        groups.setdefault(find(index), []).append(index)
    return list(groups.values())


def bradley_terry(num_responses: int, comparisons: Sequence[Comparison]) -> list[Strength]:
    """Maximum-likelihood strengths s with P(i beats j) = σ(s_i - s_j) (Bradley and Terry 1952, eq. 1), soft outcomes.

    Each comparison counts as one trial; the covariance is the pseudo-inverse of the Fisher information at the maximum.
    Deviation: probabilities are kept 1e-6 away from 0 and 1, without which a response that always wins has no finite
    strength. ValueError when the comparisons do not connect all responses.
    """
    if len(connected_groups(num_responses, comparisons)) > 1:
        raise ValueError("the comparisons do not connect all responses")
    outcomes = [
        Comparison(c.first, c.second, min(1 - _PROBABILITY_FLOOR, max(_PROBABILITY_FLOOR, c.probability_first)))
        for c in comparisons
    ]
    strengths = [0.0] * num_responses
    for _ in range(_MAX_NEWTON_STEPS):
        gradient = _gradient(strengths, outcomes)
        if max(abs(slope) for slope in gradient) < _GRADIENT_TOLERANCE:
            break
        covariance = _covariance(strengths, outcomes)
        step = [sum(c * g for c, g in zip(row, gradient, strict=True)) for row in covariance]
        strengths = _line_search(strengths, step, outcomes)
    covariance = _covariance(strengths, outcomes)
    mean = sum(strengths) / num_responses
    return [
        Strength(value - mean, math.sqrt(max(0.0, covariance[index][index]))) for index, value in enumerate(strengths)
    ]


def find_cycles(comparisons: Sequence[Comparison], *, tie_margin: float = 1e-9) -> list[tuple[int, int, int]]:
    """Triples (i, j, k), i lowest, with i preferred to j, j to k and k to i."""
    beats = set()
    for c in comparisons:
        if c.probability_first > 0.5 + tie_margin:
            beats.add((c.first, c.second))
        elif c.probability_first < 0.5 - tie_margin:
            beats.add((c.second, c.first))
    indices = sorted({index for pair in beats for index in pair})
    return [
        (i, j, k)
        for i, j, k in itertools.permutations(indices, 3)
        if i < j and i < k and {(i, j), (j, k), (k, i)} <= beats
    ]


def _gradient(strengths: Sequence[float], outcomes: Sequence[Comparison]) -> list[float]:
    gradient = [0.0] * len(strengths)
    for outcome in outcomes:
        surprise = outcome.probability_first - _sigmoid(strengths[outcome.first] - strengths[outcome.second])
        gradient[outcome.first] += surprise
        gradient[outcome.second] -= surprise
    return gradient


def _log_likelihood(strengths: Sequence[float], outcomes: Sequence[Comparison]) -> float:
    total = 0.0
    for outcome in outcomes:
        margin = strengths[outcome.first] - strengths[outcome.second]
        total += outcome.probability_first * _log_sigmoid(margin)
        total += (1 - outcome.probability_first) * _log_sigmoid(-margin)
    return total


def _line_search(strengths: Sequence[float], step: Sequence[float], outcomes: Sequence[Comparison]) -> list[float]:
    """Halves the Newton step until the likelihood does not fall."""
    before, scale = _log_likelihood(strengths, outcomes), 1.0
    while True:
        moved = [value + scale * change for value, change in zip(strengths, step, strict=True)]
        if scale < 1e-6 or _log_likelihood(moved, outcomes) >= before - 1e-12:
            return moved
        scale /= 2


def _covariance(strengths: Sequence[float], outcomes: Sequence[Comparison]) -> list[list[float]]:
    """Pseudo-inverse of the Fisher information L, as (L + J/n)⁻¹ - J/n with J all ones."""
    size = len(strengths)
    information = [[1 / size] * size for _ in range(size)]
    for outcome in outcomes:
        p = _sigmoid(strengths[outcome.first] - strengths[outcome.second])
        weight, i, j = p * (1 - p), outcome.first, outcome.second
        information[i][i] += weight
        information[j][j] += weight
        information[i][j] -= weight
        information[j][i] -= weight
    return [[value - 1 / size for value in row] for row in _inverse(information)]


def _inverse(matrix: list[list[float]]) -> list[list[float]]:
    """Gauss-Jordan with partial pivoting; at most 16 × 16 here."""
    size = len(matrix)
    rows = [list(row) + [float(i == j) for j in range(size)] for i, row in enumerate(matrix)]
    for column in range(size):
        pivot = max(range(column, size), key=lambda i: abs(rows[i][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        scale = rows[column][column]
        rows[column] = [value / scale for value in rows[column]]
        for i in range(size):
            if i != column and rows[i][column]:
                factor = rows[i][column]
                rows[i] = [value - factor * top for value, top in zip(rows[i], rows[column], strict=True)]
    return [row[size:] for row in rows]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))
