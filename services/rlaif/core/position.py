"""Position bias: does the verdict depend on which response is shown first, and which place does it favour?"""

from __future__ import annotations

from collections.abc import Sequence

from rlaif.core.estimate import Estimate, share
from rlaif.core.judged_pair import JudgedPair


def order_inconsistency(pairs: Sequence[JudgedPair]) -> Estimate:
    """Share of decided pairs on which the two presentation orders prefer different responses.

    "Same position preferred" of RLAIF (arXiv 2309.00267, appendix on position bias); 1 - consistency of MT-Bench
    (arXiv 2306.05685 §3.3).
    """
    return share([float(not pair.order_consistent) for pair in pairs if pair.probability_first is not None])


def shown_first_share(pairs: Sequence[JudgedPair]) -> Estimate:
    """Of the inconsistent pairs, the share on which the judge prefers whatever is shown first.

    1/2 is no direction, 1 always the first place, 0 always the second. Of MT-Bench's Table 2 (arXiv 2306.05685 §3.3):
    "biased toward first" over the sum of both directions.
    """
    favours_first = []
    for pair in pairs:
        when_first, when_second = pair.probability_when_first, pair.probability_when_second
        if pair.probability_first is None or when_first is None or when_second is None:
            continue
        if (when_first > 0.5) != (when_second > 0.5):
            favours_first.append(float(when_first > 0.5))
    return share(favours_first)
