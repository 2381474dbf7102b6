"""May these labels train anything? The gate decides and says why; it never raises on bad labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlaif.core.preference import AbstentionReason, PairLabel, Preference
from rlaif.core.quality import CellAccuracy, GateDecision, decide_gate, label_quality
from rlaif_pipelines.context import (
    RunContext,
    StageOutput,
    StageResult,
    file_sha256,
    read_rows,
    stage_name,
    write_json,
)
from rlaif_pipelines.evaluation.classification import classify
from rlaif_pipelines.evaluation.gold import judge_accuracy, label_accuracy, scored_by_gold
from rlaif_pipelines.stages.constitution import load_constitution
from rlaif_pipelines.stages.judge import LABELS_FILE

GATE_FILE = "gate.json"


def gate(context: RunContext, *, round_number: int = 1) -> StageResult:
    """gate.json of one round: passed or why not, rates, and on the playground the judge's accuracy cell by cell."""
    labels = context.result(stage_name("judge", round_number))
    constitution = load_constitution(context.settings.constitution)
    inputs = {
        "labels": labels.outputs[LABELS_FILE],
        "constitution": constitution.sha256,
        "limits": context.settings.gate.model_dump(),
        "gold": context.settings.playground,
        "people": _people_sha256(context),
    }

    def body(folder: Path) -> StageOutput:
        rows = list(read_rows(labels.path(LABELS_FILE)))
        accuracy = judge_accuracy(rows, principles=constitution.principles) if context.settings.playground else None
        decision = decide_gate(
            label_quality(map(pair_label, rows)), limits=context.settings.gate.limits(), accuracy=accuracy
        )
        overall = label_accuracy(rows) if context.settings.playground else None
        found = gate_json(decision, overall=overall) | {"classification": _against_reference(context, rows)}
        write_json(folder / GATE_FILE, found)
        context.record_event(
            "gate_decided",
            subject=context.policy,
            payload={
                "round": round_number,
                "passed": decision.passed,
                "reasons": list(decision.reasons),
                "labels_sha256": labels.outputs[LABELS_FILE],
                "limits": context.settings.gate.model_dump(),
            },
        )
        return StageOutput((GATE_FILE,), {"passed": decision.passed, "reasons": list(decision.reasons)})

    return context.run_stage(stage_name("gate", round_number), body, inputs=inputs)


def _people_sha256(context: RunContext) -> str | None:
    people = context.settings.human_labels
    return file_sha256(people.path) if people is not None else None


def _against_reference(context: RunContext, rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The labels held against gold, else against what people said of the same pairs; None where nobody did."""
    if context.settings.playground:
        scored = scored_by_gold(rows)
    elif context.settings.human_labels is not None:
        from rlaif_pipelines.evaluation.people import scored_by_people

        scored = scored_by_people(rows, context.settings.human_labels)
    else:
        return None
    return classify(scored).to_json() if scored else None


def pair_label(row: dict[str, Any]) -> PairLabel:
    """A row of labels.jsonl as the domain's label, less the votes."""
    reason = row["abstention_reason"]
    return PairLabel(
        preference=Preference(row["preference"]),
        probability_first=row["probability_first"],
        order_consistent=row["order_consistent"],
        votes=(),
        abstention_reason=AbstentionReason(reason) if reason else None,
    )


def gate_json(decision: GateDecision, *, overall: CellAccuracy | None) -> dict[str, Any]:
    """The decision as plain values; accuracies are null where nothing was decided."""
    return {
        "passed": decision.passed,
        "reasons": list(decision.reasons),
        "quality": asdict(decision.quality),
        "judge_accuracy": {
            category: {principle_id: cell.value for principle_id, cell in cells.items()}
            for category, cells in decision.accuracy.items()
        },
        "num_decided": {
            category: {principle_id: cell.num_decided for principle_id, cell in cells.items()}
            for category, cells in decision.accuracy.items()
        },
        "label_accuracy": overall.value if overall else None,
    }
