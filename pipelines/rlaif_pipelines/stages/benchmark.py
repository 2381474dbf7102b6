"""How often is the judge right? Its labels of given pairs against what people or rules said of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rlaif.core.canonical import digest
from rlaif.core.judged_pair import JudgedPair
from rlaif.core.label_statistics import STATISTICS, slice_pairs
from rlaif_pipelines.context import RunContext, StageOutput, StageResult, read_rows, write_json
from rlaif_pipelines.evaluation.classification import Scored, classify
from rlaif_pipelines.stages.judge import LABELS_FILE
from rlaif_pipelines.stages.pairs import PAIRS_FILE

BENCHMARK_FILE: Final = "benchmark.json"
_TOLD: Final = (
    "human_agreement",
    "human_agreement_with_ties",
    "human_kappa",
    "order_inconsistency",
    "abstention_rate",
    "brier",
    "ece",
    "verbosity_slope",
)
"""The statistics of labels that need no more than a label and what was wanted."""
_BY: Final = ("category", "length")


def benchmark(context: RunContext) -> StageResult:
    """benchmark.json: accuracy with its Wilson interval, order inconsistency, abstentions and more, also by slice."""
    given, labels = context.result("pairs"), context.result("judge")
    inputs = {"pairs": given.outputs[PAIRS_FILE], "labels": labels.outputs[LABELS_FILE]}

    def body(folder: Path) -> StageOutput:
        rows = list(zip(read_rows(given.path(PAIRS_FILE)), read_rows(labels.path(LABELS_FILE)), strict=True))
        scored = [
            Scored(label["probability_first"], pair["wanted"])
            for pair, label in rows
            if label["probability_first"] is not None
        ]
        found = {
            "num_pairs": len(rows),
            "judge_digests": labels.values["judge_digests"],
            "statistics": statistics([judged_pair(pair, label) for pair, label in rows]),
            "classification": classify(scored).to_json(),
        }
        write_json(folder / BENCHMARK_FILE, found)
        accuracy = found["statistics"][""]["human_agreement"]
        context.record_event(
            "judge_benchmarked",
            subject=f"runs/{context.root.name}",
            payload={"pairs_sha256": inputs["pairs"], "labels_sha256": inputs["labels"], "accuracy": accuracy},
        )
        return StageOutput((BENCHMARK_FILE,), {"num_pairs": len(rows), "accuracy": accuracy})

    return context.run_stage("benchmark", body, inputs=inputs)


def judged_pair(pair: dict[str, Any], label: dict[str, Any]) -> JudgedPair:
    """One pair as the statistics see it. Neither side is "first" because it is better: pairs are put in fixed order."""
    ordered = pair["first"] <= pair["second"]
    first, second = (pair["first"], pair["second"]) if ordered else (pair["second"], pair["first"])
    said, wanted = label["probability_first"], pair["wanted"]
    if not ordered:
        said, wanted = None if said is None else 1.0 - said, 1.0 - wanted
    return JudgedPair(
        pair=digest([pair["messages"], first, second]),
        probability_first=said,
        order_consistent=label["order_consistent"],
        human_votes=(wanted,),
        num_characters=(len(first), len(second)),
        category=pair["category"] or "",
    )


def statistics(pairs: Sequence[JudgedPair]) -> dict[str, dict[str, dict[str, Any]]]:
    """By slice, "" for all pairs, each statistic with its interval; values that cannot be known are null."""
    slices = {"": list(pairs)}
    for dimension in _BY:
        slices |= slice_pairs(pairs, dimension)
    return {
        name: {statistic: STATISTICS[statistic](members).to_json() for statistic in _TOLD}
        for name, members in sorted(slices.items())
    }
