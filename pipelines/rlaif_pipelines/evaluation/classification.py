"""How well scores tell two classes apart: the confusion matrix, and the curve over all thresholds."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rlaif.core.preference import TIE_MARGIN

CLASSES: Final = ("first", "tie", "second")
_MAX_POINTS: Final = 100


@dataclass(frozen=True)
class Scored:
    """What is known of one pair and what was said of it: probabilities that the first response is the better one."""

    probability_first: float
    """By the judge or model that is tested."""
    wanted: float
    """By what it is tested against; 1/2 for a tie."""


@dataclass(frozen=True)
class RocPoint:
    """Calling "first" whatever scores at least `threshold`: the shares of "second" and of "first" called so."""

    threshold: float
    false_positive_rate: float
    true_positive_rate: float


@dataclass(frozen=True)
class Classification:
    """`confusion[i][j]`: pairs wanted as CLASSES[i] and called CLASSES[j]. `roc` is empty without both classes."""

    confusion: tuple[tuple[int, ...], ...]
    roc: tuple[RocPoint, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values; ties are a class only where there are any."""
        tie = CLASSES.index("tie")
        ties = sum(self.confusion[tie]) + sum(row[tie] for row in self.confusion)
        kept = [place for place, _ in enumerate(CLASSES) if ties or place != tie]
        return {
            "classes": [CLASSES[place] for place in kept],
            "confusion": [[self.confusion[row][column] for column in kept] for row in kept],
            "roc": [[point.threshold, point.false_positive_rate, point.true_positive_rate] for point in self.roc],
        }


def classify(pairs: Iterable[Scored]) -> Classification:
    """Both over these pairs; pairs that are wanted as ties are in the matrix and not in the curve."""
    found = list(pairs)
    counts = {(wanted, called): 0 for wanted in CLASSES for called in CLASSES}
    for pair in found:
        counts[_class(pair.wanted), _class(pair.probability_first)] += 1
    confusion = tuple(tuple(counts[wanted, called] for called in CLASSES) for wanted in CLASSES)
    return Classification(confusion, _roc([pair for pair in found if _class(pair.wanted) != "tie"]))


def _class(probability_first: float) -> str:
    lead = probability_first - 0.5
    return "tie" if abs(lead) <= TIE_MARGIN else "first" if lead > 0 else "second"


def _roc(pairs: Sequence[Scored]) -> tuple[RocPoint, ...]:
    """From (0, 0) to (1, 1), one point for each distinct score, at most about a hundred of them."""
    num_first = sum(pair.wanted > 0.5 for pair in pairs)
    num_second = len(pairs) - num_first
    if not num_first or not num_second:
        return ()
    by_score = sorted(pairs, key=lambda pair: pair.probability_first, reverse=True)
    # Above every score, and finite: JSON knows no infinity.
    points = [RocPoint(by_score[0].probability_first + 1.0, 0.0, 0.0)]
    true = false = 0
    for score, group in itertools.groupby(by_score, key=lambda pair: pair.probability_first):
        for pair in group:
            true += pair.wanted > 0.5
            false += pair.wanted < 0.5
        points.append(RocPoint(score, false / num_second, true / num_first))
    step = -(-len(points) // _MAX_POINTS)
    return (*points[:-1:step], points[-1])
