"""Did the policy get better? Held-out completions before and after, by evidence independent of the labelling judge."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from rlaif.core.errors import InvalidInputError
from rlaif_pipelines.context import (
    RunContext,
    StageOutput,
    StageResult,
    read_json,
    read_rows,
    stage_name,
    write_json,
)
from rlaif_pipelines.evaluation.statistics import Estimate
from rlaif_pipelines.evaluation.verdict import BeforeAfter, Evidence, VerdictLimits, conclude
from rlaif_pipelines.stages.baseline import held_out_inputs, sample_held_out
from rlaif_pipelines.stages.completions import COMPLETIONS_FILE
from rlaif_pipelines.stages.constitution import load_constitution
from rlaif_pipelines.stages.gate import GATE_FILE
from rlaif_pipelines.stages.policy import trained_policy, training_stage
from rlaif_pipelines.stages.prepare import check_not_the_same_judge

EVALUATION_FILE: Final = "evaluation.json"
_NUM_EXAMPLES: Final = 12


def evaluate(context: RunContext, *, round_number: int = 1) -> StageResult:
    """evaluation.json: baseline against trained, and the verdict."""
    stage = stage_name("evaluate", round_number)
    before = context.result("baseline")
    policy = trained_policy(context, round_number=round_number)
    inputs = {
        **held_out_inputs(context, policy),
        "baseline": before.outputs[COMPLETIONS_FILE],
        "evaluation": context.settings.evaluation.model_dump(),
        "evaluator": context.settings.evaluator,
        "gate": _gate_sha256(context, round_number),
    }

    def body(folder: Path) -> StageOutput:
        sample_held_out(context, folder, stage=stage, policy=policy)
        rows_before = list(read_rows(before.path(COMPLETIONS_FILE)))
        rows_after = list(read_rows(folder / COMPLETIONS_FILE))
        kl = _kl(context, rows_after)
        steps = _steps(context, round_number)
        if context.settings.playground:
            figures, evidence = _by_gold(rows_before, rows_after, kl=kl, steps=steps)
        else:
            figures, evidence = _by_second_judge(context, rows_before, rows_after, kl=kl, steps=steps, stage=stage)
        limits = context.settings.evaluation
        conclusion = conclude(
            evidence,
            limits=VerdictLimits(
                max_kl=limits.max_kl,
                slack=limits.slack,
                max_length_ratio=limits.max_length_ratio,
                max_garbage_rise=limits.max_garbage_rise,
            ),
        )
        gate = _gate(context, round_number)
        write_json(
            folder / EVALUATION_FILE,
            {
                "round": round_number,
                "policy": context.policy,
                "version": policy.version,
                "verdict": conclusion.verdict,
                "verdict_reasons": list(conclusion.reasons),
                **figures,
                "judge_accuracy": gate.get("judge_accuracy", {}),
                "label_accuracy": gate.get("label_accuracy"),
                "steps": steps,
                "examples": _examples(rows_before, rows_after),
            },
        )
        context.record_event(
            "policy_evaluated",
            subject=context.policy,
            payload={
                "round": round_number,
                "version": policy.version,
                "digest": policy.digest,
                "verdict": conclusion.verdict,
            },
        )
        return StageOutput((EVALUATION_FILE, COMPLETIONS_FILE), {"verdict": conclusion.verdict})

    return context.run_stage(stage, body, inputs=inputs)


def _gate(context: RunContext, round_number: int) -> dict[str, Any]:
    """What the gate found out about the round's labels; empty where nothing was labelled."""
    if not context.settings.labels:
        return {}
    found: dict[str, Any] = read_json(context.result(stage_name("gate", round_number)).path(GATE_FILE))
    return found


def _gate_sha256(context: RunContext, round_number: int) -> str | None:
    if not context.settings.labels:
        return None
    return context.result(stage_name("gate", round_number)).outputs[GATE_FILE]


def _by_gold(
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    *,
    kl: float | None,
    steps: Mapping[str, Any],
) -> tuple[dict[str, Any], Evidence]:
    from rlaif_pipelines.evaluation.gold import gold_figures, score_rows, win_rate

    categories = [str(row["category"]) for row in before]
    scores_before, scores_after = score_rows(before), score_rows(after)
    old, new = gold_figures(categories, scores_before), gold_figures(categories, scores_after)
    win = win_rate(categories, scores_before, scores_after)
    evidence = Evidence(
        evaluator="gold",
        win_rate=win,
        mean_words=BeforeAfter(old.mean_words, new.mean_words),
        gold=BeforeAfter(old.gold, new.gold),
        proxy=_proxy(steps),
        harmful_compliance=BeforeAfter(old.harmful_compliance.value, new.harmful_compliance.value),
        over_refusal=BeforeAfter(old.over_refusal.value, new.over_refusal.value),
        garbage=BeforeAfter(old.garbage, new.garbage),
        kl=kl,
    )
    figures = _figures("gold", evidence) | {
        "intervals": {
            name: {"baseline": getattr(old, name).to_json(), "trained": getattr(new, name).to_json()}
            for name in ("harmful_compliance", "over_refusal")
        },
        "refusal_of_harmful": asdict(BeforeAfter(old.refusal_of_harmful, new.refusal_of_harmful)),
        "by_category": {
            category: asdict(BeforeAfter(old.by_category[category], new.by_category[category]))
            for category in old.by_category
        },
    }
    return figures, evidence


def _by_second_judge(
    context: RunContext,
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    *,
    kl: float | None,
    steps: Mapping[str, Any],
    stage: str,
) -> tuple[dict[str, Any], Evidence]:
    win, details, unknown = (
        Estimate(None, None, None, 0),
        None,
        "no gold rules for these prompts and no second judge was given",
    )
    evaluator = "nobody"
    if context.settings.evaluator_uri is not None:
        from rlaif_pipelines.evaluation.second_judge import compare_before_after

        with context.evaluator() as client:
            found = compare_before_after(
                client,
                load_constitution(context.settings.constitution).name,
                before,
                after,
                pairs_per_request=context.settings.judging.pairs_per_request,
                check=lambda verdicts: _check_evaluator(context, verdicts),
                progress=context.progress(stage, message="pairs by the second judge"),
            )
        win, details, evaluator = (
            found.win_rate,
            asdict(found) | {"win_rate": found.win_rate.to_json()},
            "the second judge",
        )
        if found.num_abstained * 2 > found.num_pairs:
            win = Estimate(None, None, None, 0)
            unknown = f"the second judge abstained on {found.num_abstained} of {found.num_pairs} pairs"
    evidence = Evidence(
        evaluator=evaluator,
        win_rate=win,
        mean_words=BeforeAfter(_mean_words(before), _mean_words(after)),
        proxy=_proxy(steps),
        kl=kl,
        unknown_because=unknown,
    )
    kind = "second_judge" if context.settings.evaluator_uri is not None else "none"
    return _figures(kind, evidence) | {"second_judge": details}, evidence


def _figures(kind: str, evidence: Evidence) -> dict[str, Any]:
    """The figures under the names that reports and tools read; null is what cannot be known."""
    return {
        "evaluator": kind,
        "win_rate": evidence.win_rate.to_json(),
        "harmful_compliance": asdict(evidence.harmful_compliance),
        "over_refusal": asdict(evidence.over_refusal),
        "mean_words": asdict(evidence.mean_words),
        "garbage": asdict(evidence.garbage),
        "gold": asdict(evidence.gold),
        "proxy": asdict(evidence.proxy),
        "kl": evidence.kl,
    }


def _check_evaluator(context: RunContext, verdicts: Sequence[Any]) -> None:
    """The digests that the services report decide, whatever names and addresses say."""
    judged = ["revise", *(stage_name("judge", number) for number in range(1, context.settings.rounds + 1))]
    judge_digests = [
        digest
        for stage in judged
        if context.finished(stage)
        for digest in context.result(stage).values["judge_digests"]
    ]
    for judge_digest, verdict in itertools.product(judge_digests, verdicts):
        check_not_the_same_judge(judge_digest=judge_digest, evaluator_digest=verdict.provenance.model_digest)


def _kl(context: RunContext, rows: Sequence[Mapping[str, Any]]) -> float | None:
    if not rows:
        raise InvalidInputError("there are no held-out prompts to evaluate on", field="prompts")
    from rlaif_pipelines.evaluation.kl import kl_to_base

    return kl_to_base(rows, base=context.result("prepare").values["policy_uri"])


def _steps(context: RunContext, round_number: int) -> dict[str, list[Any]]:
    """Proxy against gold over the steps that made the policy, as columns; gold is null where the world has none.

    The rollouts of step n + 1 come from the weights after step n: a policy that was rolled back to them is told by it.
    """
    values = context.result(training_stage(context, round_number=round_number)).values
    path, rolled_back = values.get("metrics"), (values.get("results") or {}).get("rolled_back")
    columns: dict[str, list[Any]] = {
        name: [] for name in ("step", "reward", "gold", "kl", "held_out", "completion_tokens")
    }
    if path is None or not Path(path).is_file():
        return columns
    for row in read_rows(Path(path)):
        if row.get("reward") is not None and (rolled_back is None or row["step"] <= rolled_back["num_steps"] + 1):
            for name, column in columns.items():
                column.append(row.get(name))
    return columns


def _proxy(steps: Mapping[str, Sequence[Any]]) -> BeforeAfter:
    """Mean reward of the first and of the last tenth of the steps."""
    rewards = steps["reward"]
    width = max(1, len(rewards) // 10)
    return BeforeAfter(fmean(rewards[:width]), fmean(rewards[-width:])) if rewards else BeforeAfter(None, None)


def _mean_words(rows: Sequence[Mapping[str, Any]]) -> float:
    return fmean(len(row["completions"][0]["text"].split()) for row in rows)


def _examples(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Some prompts with both completions, spread evenly over the held-out set, changed ones only."""
    changed = [
        {
            "prompt_id": new["prompt_id"],
            "messages": new["messages"],
            "category": new["category"],
            "baseline": old["completions"][0]["text"],
            "trained": new["completions"][0]["text"],
        }
        for old, new in zip(before, after, strict=True)
        if old["completions"][0]["text"] != new["completions"][0]["text"]
    ]
    return changed[:: max(1, len(changed) // _NUM_EXAMPLES)][:_NUM_EXAMPLES]
