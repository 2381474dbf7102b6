"""How often raters agree, and how often beyond chance: judge with people, people with people, judges with judges."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

from rlaif.core.estimate import Z_95, Estimate, clustered_share, effective_size, unknown
from rlaif.core.judged_pair import JudgedPair
from rlaif.core.preference import Preference, preference_of


def human_agreement(pairs: Sequence[JudgedPair]) -> Estimate:
    """Share of people's votes that the judge's preference equals, where both prefer one response.

    Agreement without ties, setup S2 of MT-Bench (Zheng et al. 2023, arXiv 2306.05685, §4.2); the "AI labeler
    alignment" of RLAIF (arXiv 2309.00267). Chance is 1/2.
    """
    return clustered_share(
        [
            [float(vote is pair.preference) for vote in _votes(pair) if vote is not Preference.TIE]
            for pair in pairs
            if pair.preference in (Preference.FIRST, Preference.SECOND)
        ]
    )


def human_agreement_with_ties(pairs: Sequence[JudgedPair]) -> Estimate:
    """Share of people's votes that the judge's verdict equals, ties a third answer (setup S1 of MT-Bench, §4.2)."""
    return clustered_share(
        [
            [float(vote is pair.preference) for vote in _votes(pair)]
            for pair in pairs
            if pair.preference is not Preference.ABSTAIN
        ]
    )


def single_order_agreement(pairs: Sequence[JudgedPair]) -> Estimate:
    """Agreement with people of a judge asked in one order only, averaged over the two orders.

    The accuracy that LLMBar reports (Zeng et al. 2024, arXiv 2310.07641); below human_agreement by what
    averaging the orders gains.
    """
    clusters = []
    for pair in pairs:
        orders = (pair.probability_when_first, pair.probability_when_second)
        if pair.preference is Preference.ABSTAIN or None in orders:
            continue
        said = [preference_of(probability) for probability in orders if probability is not None]
        decided = [vote for vote in _votes(pair) if vote is not Preference.TIE]
        clusters.append([sum(vote is preference for preference in said) / 2 for vote in decided])
    return clustered_share(clusters)


def human_kappa(pairs: Sequence[JudgedPair]) -> Estimate:
    """Cohen's kappa of judge and people over first, second and tie; every vote is one observation."""
    decided = [pair for pair in pairs if pair.preference is not Preference.ABSTAIN and pair.human_votes]
    answers = [(pair.preference, vote) for pair in decided for vote in _votes(pair)]
    found = cohen_kappa(answers)
    if found.value is None or found.high is None:
        return unknown(len(decided))
    # Votes on one pair are not independent; widen by the design effect, as clustered_share does.
    widening = math.sqrt(len(answers) / effective_size([len(pair.human_votes) for pair in decided]))
    half = (found.high - found.value) * widening
    return Estimate(found.value, max(-1.0, found.value - half), min(1.0, found.value + half), len(decided))


def people_kappa(pairs: Sequence[JudgedPair]) -> Estimate:
    """Fleiss' kappa among the people, over pairs with at least two votes: what a judge can be asked to reach."""
    by_pair = {pair.pair: _votes(pair) for pair in pairs}
    return fleiss_kappa(list(by_pair.values()))


def panel_kappa(pairs: Sequence[JudgedPair]) -> Estimate:
    """Fleiss' kappa among the judges of a panel."""
    return fleiss_kappa([[preference_of(vote) for vote in pair.panel_votes] for pair in pairs])


def cohen_kappa(answers: Sequence[tuple[Hashable, Hashable]]) -> Estimate:
    """Cohen's kappa of two raters, (p_o - p_e) / (1 - p_e), from their answers item by item (Cohen 1960).

    Interval: asymptotic, with the variance of Fleiss, Cohen and Everitt (1969); not clipped. Unknown when
    neither rater ever changes the answer: nothing then tells agreement from chance.
    """
    if all(len({pair[rater] for pair in answers}) < 2 for rater in (0, 1)):
        return unknown(len(answers))
    number = len(answers)
    cells = {cell: count / number for cell, count in Counter(answers).items()}
    row, column = ({answer: n / number for answer, n in Counter(rater).items()} for rater in zip(*answers, strict=True))
    observed = sum(share for (first, second), share in cells.items() if first == second)
    expected = sum(share * column.get(answer, 0.0) for answer, share in row.items())
    kappa = (observed - expected) / (1 - expected)
    agreeing = sum(
        share * (1 - (row[first] + column[first]) * (1 - kappa)) ** 2
        for (first, second), share in cells.items()
        if first == second
    )
    disagreeing = (1 - kappa) ** 2 * sum(
        share * (column.get(first, 0.0) + row.get(second, 0.0)) ** 2
        for (first, second), share in cells.items()
        if first != second
    )
    spread = agreeing + disagreeing - (kappa - expected * (1 - kappa)) ** 2
    half = Z_95 * math.sqrt(max(0.0, spread) / number) / (1 - expected)
    return Estimate(kappa, kappa - half, kappa + half, number)


def fleiss_kappa(items: Sequence[Sequence[Hashable]]) -> Estimate:
    """Fleiss' kappa of any number of raters, from the answers to each item; items with one answer are left out.

    (P̄ - P̄e) / (1 - P̄e) with P̄ the mean over items of the share of agreeing pairs of raters and P̄e = Σ p_j² (Fleiss
    1971). Items may differ in their number of raters, which statsmodels does not allow: each item counts the same in P̄
    (Gwet 2014). Interval: jackknife over items.
    """
    counts = [Counter(item) for item in items if len(item) > 1]
    totals: Counter[Hashable] = sum(counts, Counter())
    if len(counts) < 2 or len(totals) < 2:
        return unknown(len(counts))
    agreements = [_agreement(count) for count in counts]
    whole = _kappa(sum(agreements) / len(counts), totals.values())
    if whole is None:
        return unknown(len(counts))
    left_out = []
    for count, agreement in zip(counts, agreements, strict=True):
        rest = [totals[category] - count[category] for category in totals]
        kappa = _kappa((sum(agreements) - agreement) / (len(counts) - 1), rest)
        if kappa is None:
            return Estimate(whole, None, None, len(counts))
        left_out.append(kappa)
    middle = sum(left_out) / len(left_out)
    variance = (len(left_out) - 1) / len(left_out) * sum((kappa - middle) ** 2 for kappa in left_out)
    half = Z_95 * math.sqrt(variance)
    return Estimate(whole, max(-1.0, whole - half), min(1.0, whole + half), len(counts))


def _votes(pair: JudgedPair) -> list[Preference]:
    return [preference_of(vote) for vote in pair.human_votes]


def _agreement(count: Counter[Hashable]) -> float:
    raters = count.total()
    return sum(n * (n - 1) for n in count.values()) / (raters * (raters - 1))


def _kappa(observed: float, totals: Iterable[int]) -> float | None:
    counts = list(totals)
    number = sum(counts)
    expected = sum((count / number) ** 2 for count in counts) if number else 1.0
    return (observed - expected) / (1 - expected) if expected < 1 else None
