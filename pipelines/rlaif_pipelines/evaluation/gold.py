"""The playground's gold rules over completions and labels. They never see the judge."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rlaif.core.constitution import Principle
from rlaif.core.quality import CellAccuracy
from rlaif.playground import gold
from rlaif_pipelines.evaluation.classification import Scored
from rlaif_pipelines.evaluation.statistics import Estimate, mean_of_strata, share, stratified_share

HARMFUL: Final = "harmful"


@dataclass(frozen=True)
class GoldFigures:
    """What gold says of one policy's held-out completions. Means are over categories first, so each counts the same."""

    gold: float
    harmful_compliance: Estimate
    """Share of harmful prompts that were helped with."""
    over_refusal: Estimate
    """Share of harmless prompts that were refused."""
    mean_words: float
    garbage: float
    refusal_of_harmful: float
    by_category: Mapping[str, float]
    """Mean gold score of each category."""


def score_rows(rows: Iterable[Mapping[str, Any]]) -> list[gold.GoldScore]:
    """Gold score of each row's first completion."""
    return [gold.evaluate(row["messages"][-1]["content"], row["completions"][0]["text"]) for row in rows]


def gold_figures(categories: Sequence[str], scores: Sequence[gold.GoldScore]) -> GoldFigures:
    """The figures of one policy; `categories` are those of the prompts, in the same order."""
    strata: dict[str, list[gold.GoldScore]] = defaultdict(list)
    for category, score in zip(categories, scores, strict=True):
        strata[category].append(score)
    harmful = strata.get(HARMFUL, [])
    harmless = {category: found for category, found in strata.items() if category != HARMFUL}
    return GoldFigures(
        gold=mean_of_strata([[score.overall for score in found] for found in strata.values()]),
        harmful_compliance=share([score.harmful_compliance for score in harmful]),
        over_refusal=stratified_share([[float(score.over_refusal) for score in found] for found in harmless.values()]),
        mean_words=mean_of_strata([[score.num_words for score in found] for found in strata.values()]),
        garbage=mean_of_strata([[score.garbage for score in found] for found in strata.values()]),
        refusal_of_harmful=share([score.refused for score in harmful]).value or 0.0,
        by_category={
            category: mean_of_strata([[score.overall for score in found]]) for category, found in strata.items()
        },
    )


def win_rate(categories: Sequence[str], before: Sequence[gold.GoldScore], after: Sequence[gold.GoldScore]) -> Estimate:
    """How often the completion after is better than the one before to the same prompt; a tie is half a win."""
    strata: dict[str, list[float]] = defaultdict(list)
    for category, old, new in zip(categories, before, after, strict=True):
        strata[category].append(gold.prefers(new, old))
    return stratified_share(list(strata.values()))


def judge_accuracy(
    labels: Iterable[Mapping[str, Any]], *, principles: Iterable[Principle]
) -> dict[str, dict[str, CellAccuracy]]:
    """Cells of category × principle: how often a principle's vote agrees with gold's sub-score of its dimension.

    Pairs that gold calls a tie, and votes that abstained, do not count. A principle has no cells when gold does not
    know its dimension.
    """
    dimensions = {
        principle.principle_id: principle.dimension
        for principle in principles
        if principle.dimension in gold.DIMENSION_TIE_MARGIN
    }
    correct: dict[tuple[str, str], int] = defaultdict(int)
    decided: dict[tuple[str, str], int] = defaultdict(int)
    categories: set[str] = set()
    for label in labels:
        category = str(label["category"])
        categories.add(category)
        prompt = label["messages"][-1]["content"]
        first, second = gold.evaluate(prompt, label["first"]), gold.evaluate(prompt, label["second"])
        for vote in label["votes"]:
            principle_id, probability = vote["principle_id"], vote["probability_first"]
            if principle_id not in dimensions or probability is None or label["probability_first"] is None:
                continue
            wanted = gold.prefers_by(dimensions[principle_id], first, second)
            if wanted == 0.5:
                continue
            decided[category, principle_id] += 1
            correct[category, principle_id] += (probability > 0.5) == (wanted > 0.5)
    return {
        category: {
            principle_id: CellAccuracy(correct[category, principle_id], decided[category, principle_id])
            for principle_id in dimensions
        }
        for category in sorted(categories)
    }


def scored_by_gold(labels: Iterable[Mapping[str, Any]]) -> list[Scored]:
    """Decided labels beside gold's preference for the same pairs."""
    found = []
    for label in labels:
        if label["probability_first"] is not None:
            prompt = label["messages"][-1]["content"]
            first, second = gold.evaluate(prompt, label["first"]), gold.evaluate(prompt, label["second"])
            found.append(Scored(label["probability_first"], gold.prefers(first, second)))
    return found


def label_accuracy(labels: Iterable[Mapping[str, Any]]) -> CellAccuracy:
    """How often the label, all principles together, agrees with gold's overall score where gold has a preference."""
    correct = decided = 0
    for label in labels:
        if label["probability_first"] is None:
            continue
        prompt = label["messages"][-1]["content"]
        wanted = gold.prefers(gold.evaluate(prompt, label["first"]), gold.evaluate(prompt, label["second"]))
        if wanted == 0.5:
            continue
        decided += 1
        correct += (label["probability_first"] > 0.5) == (wanted > 0.5)
    return CellAccuracy(correct, decided)
