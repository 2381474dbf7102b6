"""May these revisions teach anything? The gate decides, says why, and writes down what is to be learnt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rlaif_pipelines.context import RunContext, StageOutput, StageResult, read_rows, write_rows
from rlaif_pipelines.stage_settings import GateSettings
from rlaif_pipelines.stages.revise import REVISIONS_FILE, summarise

CONVERSATIONS_FILE: Final = "conversations.jsonl"


def revision_gate(context: RunContext) -> StageResult:
    """conversations.jsonl for fine-tuning, and whether there is enough to learn: passed, or why not."""
    revisions = context.result("revise")
    settings = context.settings
    limits = {"min_revisions": settings.gate.min_revisions, "max_dropped_replies": settings.gate.max_dropped_replies}
    inputs = {
        "revisions": revisions.outputs[REVISIONS_FILE],
        "keep_unchanged": settings.constitutional.keep_unchanged,
        "limits": limits,
    }

    def body(folder: Path) -> StageOutput:
        rows = list(read_rows(revisions.path(REVISIONS_FILE)))
        usable = [row for row in rows if row["dropped"] is None]
        learnt = [row for row in usable if settings.constitutional.keep_unchanged or row["revised"] != row["original"]]
        write_rows(folder / CONVERSATIONS_FILE, map(_conversation, learnt))
        reasons = decide(summarise(rows), num_learnt=len(learnt), limits=settings.gate)
        context.record_event(
            "gate_decided",
            subject=context.policy,
            payload={
                "stage": "revision_gate",
                "passed": not reasons,
                "reasons": reasons,
                "revisions_sha256": revisions.outputs[REVISIONS_FILE],
                "limits": limits,
            },
        )
        return StageOutput(
            (CONVERSATIONS_FILE,), {"passed": not reasons, "reasons": reasons, "num_conversations": len(learnt)}
        )

    return context.run_stage("revision_gate", body, inputs=inputs)


def decide(found: Mapping[str, Any], *, num_learnt: int, limits: GateSettings) -> list[str]:
    """Why nothing may be learnt from these revisions; empty where they may teach."""
    reasons = []
    share = found["num_dropped"] / found["num_replies"] if found["num_replies"] else 1.0
    if share > limits.max_dropped_replies:
        causes = ", ".join(f"{reason} {count}" for reason, count in found["dropped"].items())
        reasons.append(
            f"{share:.1%} of {found['num_replies']} replies have no revision, more than "
            f"{limits.max_dropped_replies:.1%} ({causes})"
        )
    if found["num_revised"] < limits.min_revisions:
        reasons.append(
            f"{found['num_revised']} replies were revised, fewer than the {limits.min_revisions} required "
            f"({num_learnt} could be learnt from)"
        )
    return reasons


def _conversation(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "prompt_id": row["prompt_id"],
        "category": row["category"],
        "messages": [*row["messages"], {"role": "assistant", "content": row["revised"]}],
    }
