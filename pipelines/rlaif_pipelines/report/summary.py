"""report.json: the figures that tools read. What cannot be known is null."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rlaif.core.errors import RlaifError
from rlaif_pipelines.report.facts import RunFacts
from rlaif_pipelines.report.reproduce import command_line

SCHEMA: Final = 1
_REVISIONS: Final = (
    "num_replies",
    "num_critiques",
    "num_revised",
    "num_unchanged",
    "num_dropped",
    "dropped",
    "by_principle",
)
_PAIR: Final = {"baseline": None, "trained": None}
_ESTIMATE: Final = {"value": None, "low": None, "high": None, "num_samples": 0}


def summarise(facts: RunFacts) -> dict[str, Any]:
    """All keys, always; a run that was stopped early has null figures and says why in `verdict_reasons`."""
    evaluation: Mapping[str, Any] = facts.evaluation or {}
    gate = facts.gate
    verdict, reasons = _verdict(facts)
    return {
        "schema": SCHEMA,
        "outcome": facts.outcome,
        "verdict": verdict,
        "verdict_reasons": reasons,
        "evaluator": evaluation.get("evaluator"),
        "win_rate": evaluation.get("win_rate") or dict(_ESTIMATE),
        **{
            name: evaluation.get(name) or dict(_PAIR)
            for name in ("harmful_compliance", "over_refusal", "mean_words", "garbage", "gold", "proxy")
        },
        "intervals": evaluation.get("intervals") or {},
        "kl": evaluation.get("kl"),
        "judge_accuracy": (gate or {}).get("judge_accuracy") or {},
        "label_accuracy": (gate or {}).get("label_accuracy"),
        "label_quality": (gate or {}).get("quality"),
        "gate": {"passed": gate["passed"] if gate else None, "reasons": list(gate["reasons"]) if gate else []},
        "constitutional": _constitutional(facts),
        "benchmark": facts.benchmark,
        "rounds": [_round(facts, number) for number in sorted({*facts.gates, *facts.evaluations})],
        "seconds": {name: stage.seconds for name, stage in facts.stages.items() if stage.seconds is not None},
        "seconds_total": _total_seconds(facts),
        "peak_rss_bytes": facts.record.get("peak_rss_bytes"),
        "seed": facts.record.get("seed"),
        "policy": facts.record.get("policy"),
        "policy_version": evaluation.get("version"),
        "digests": dict(facts.digests),
        "versions": facts.record.get("versions") or {},
        "settings": dict(facts.settings),
        "command": _command(facts),
    }


def _verdict(facts: RunFacts) -> tuple[str, list[str]]:
    evaluation = facts.evaluation
    if facts.outcome == "finished" and evaluation is not None:
        guarded = [f"a guard stopped training early: {facts.guard}"] if facts.guard else []
        return evaluation["verdict"], [*evaluation["verdict_reasons"], *guarded]
    if facts.outcome == "finished":
        return "unknown", ["nothing was trained or evaluated: that is not what this pipeline does"]
    if facts.outcome == "gated":
        why = [f"the gate let no training begin: {reason}" for reason in facts.gated]
    elif facts.failure is not None:
        why = [f"stage {facts.failure.name} failed: {facts.failure.message}"]
    elif facts.last_error is not None:
        why = [f"the run failed: {facts.last_error}"]
    else:
        running = next((stage.name for stage in facts.stages.values() if stage.state == "started"), None)
        why = [f"the run has not finished; it was in stage {running}" if running else "the run has not finished"]
    if evaluation is not None:
        done = max(facts.evaluations)
        why.append(f"the figures are of round {done}, whose verdict was {evaluation['verdict'].replace('_', ' ')}")
    return "unknown", why


def _round(facts: RunFacts, number: int) -> dict[str, Any]:
    gate, evaluation = facts.gates.get(number), facts.evaluations.get(number, {})
    return {
        "round": number,
        "gate_passed": gate["passed"] if gate else None,
        "verdict": evaluation.get("verdict"),
        "win_rate": (evaluation.get("win_rate") or {}).get("value"),
        "gold": (evaluation.get("gold") or {}).get("trained"),
        "kl": evaluation.get("kl"),
    }


def _constitutional(facts: RunFacts) -> dict[str, Any] | None:
    """What became of the policy's own replies, and of the policy that learnt them; null without such a stage."""
    found = facts.constitutional
    if found is None:
        return None
    gate, training = found.get("revision_gate") or {}, (found.get("sft") or {}).get("results") or {}
    return {
        **{key: found.get(key) for key in _REVISIONS},
        "gate": {"passed": gate.get("passed"), "reasons": gate.get("reasons") or []},
        "num_learnt": gate.get("num_conversations"),
        "steps": training.get("num_steps"),
        "held_out_loss": {"baseline": (training.get("before") or {}).get("loss"), "trained": training.get("loss")},
    }


def _total_seconds(facts: RunFacts) -> float | None:
    attempts = facts.record.get("attempts")
    return round(sum(attempt["seconds"] for attempt in attempts), 1) if attempts else None


def _command(facts: RunFacts) -> str | None:
    try:
        return command_line(facts.settings)
    except RlaifError:  # written by another version, with other settings
        return None
