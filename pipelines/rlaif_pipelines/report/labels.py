"""What the report shows of the labels and of the judge that made them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from rlaif_pipelines.report.facts import RunFacts
from rlaif_pipelines.report.plots import histogram


def label_view(facts: RunFacts) -> dict[str, Any] | None:
    """Quality of the labels as a whole and principle by principle; None where there are none."""
    if not facts.labels:
        return None
    decided = [label for label in facts.labels if label.get("probability_first") is not None]
    by_principle: dict[str, list[float]] = defaultdict(list)
    against: dict[str, int] = defaultdict(int)
    for label in decided:
        for vote in label["votes"]:
            probability = vote["probability_first"]
            if probability is None:
                continue
            by_principle[vote["principle_id"]].append(probability)
            against[vote["principle_id"]] += (probability > 0.5) != (label["probability_first"] > 0.5)
    reasons: dict[str, int] = defaultdict(int)
    for label in facts.labels:
        if label.get("abstention_reason"):
            reasons[str(label["abstention_reason"]).replace("_", " ")] += 1
    num_labels = len(facts.labels)
    return {
        "num_labels": num_labels,
        "abstention_rate": 1 - len(decided) / num_labels,
        "abstention_reasons": dict(sorted(reasons.items())),
        "order_inconsistency": fmean(not label["order_consistent"] for label in decided) if decided else None,
        "mean_confidence": fmean(abs(2 * label["probability_first"] - 1) for label in decided) if decided else None,
        "label_accuracy": (facts.gate or {}).get("label_accuracy"),
        "principles": [
            {
                "principle_id": principle_id,
                "num_votes": len(votes),
                "decisiveness": fmean(abs(2 * vote - 1) for vote in votes),
                "outvoted": against[principle_id] / len(votes),
            }
            for principle_id, votes in sorted(by_principle.items())
        ],
        "histogram": histogram(
            [label["probability_first"] for label in decided],
            num_bins=20,
            title="How the labels are distributed",
            x_label="probability that the first reply is better",
        ),
    }


def heat_map(facts: RunFacts) -> dict[str, Any] | None:
    """Judge accuracy, category × principle, with what decides the gate; None where it cannot be known."""
    gate = facts.gate or {}
    accuracy: Mapping[str, Mapping[str, float | None]] = gate.get("judge_accuracy") or {}
    if not accuracy:
        return None
    counts: Mapping[str, Mapping[str, int]] = gate.get("num_decided") or {}
    limits = facts.settings.get("gate") or {}
    principles = list(dict.fromkeys(principle for cells in accuracy.values() for principle in cells))
    rows = []
    for category, cells in sorted(accuracy.items()):
        row = []
        for principle in principles:
            value, count = cells.get(principle), counts.get(category, {}).get(principle, 0)
            decides = count >= limits.get("min_cell_labels", 0)
            row.append(
                {
                    "value": value,
                    "count": count,
                    # From chance to certainty: .5 has no colour, 1 the full one.
                    "shade": None if value is None else round(max(0.0, min(1.0, (value - 0.5) * 2)), 3),
                    "failed": value is not None and decides and value < limits.get("min_judge_accuracy", 0.0),
                    "decides": decides,
                }
            )
        rows.append({"category": category, "cells": row})
    return {"principles": principles, "rows": rows}
