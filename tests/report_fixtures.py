"""Run folders as the pipeline writes them, without running it; the figures are invented, for tests only."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif_pipelines.settings import make_settings

CATEGORIES = ("benign", "fact", "harmful", "howto")
PRINCIPLES = ("harmless", "helpful", "honest", "brief")
STAGES = ("prepare", "prompts", "baseline", "sample", "judge", "gate", "reward_model", "train", "evaluate", "report")
NASTY = "<script>alert('reply')</script> & \"quotes\""
"""A reply that would run if it were not escaped."""


def write_run(
    root: Path,
    *,
    upto: str = "report",
    failed: str | None = None,
    gate_passed: bool = True,
    settings: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> Path:
    """A run folder that came as far as stage `upto`, which is left failed with that message if there is one."""
    root.mkdir(parents=True, exist_ok=True)
    done = STAGES[: STAGES.index(upto) + (0 if failed else 1)]
    _write_record(root, make_settings(settings or {}).model_dump(mode="json"))
    events = []
    for index, stage in enumerate(done):
        events += [_event(index, stage, "started"), _event(index, stage, "finished", message="1.0 s")]
        if stage != "report":
            _write_json(
                root / "stages" / stage / "done.json",
                {
                    "stage": stage,
                    "inputs_sha256": "0" * 64,
                    "outputs": {},
                    "values": _values(stage),
                    "seconds": index + 0.5,
                },
            )
    if failed:
        events += [_event(20, upto, "started"), _event(21, upto, "failed", message=failed, exit_code=1)]
    _write_lines(root / "events.jsonl", events)
    if "judge" in done:
        _write_lines(root / "labels.jsonl", [_label(number) for number in range(200)])
    if "gate" in done:
        _write_json(root / "stages" / "gate" / "gate.json", _gate(passed=gate_passed))
    if "train" in done:
        _write_lines(root / "metrics.jsonl", [_step(number) for number in range(1, 41)])
    if "evaluate" in done:
        _write_json(root / "stages" / "evaluate" / "evaluation.json", {**_evaluation(), **(evaluation or {})})
    return root


def write_constitutional(root: Path, *, passed: bool = True) -> Path:
    """A run folder whose constitutional stage, and nothing else, came to its end, or to its closed gate."""
    _write_record(root, make_settings({"algorithm": "sft"}).model_dump(mode="json"))
    outcome = {"num_critiques": 40, "num_revised": 25, "num_unchanged": 14, "num_dropped": 1}
    reasons = [] if passed else ["25 replies were revised, fewer than the 64 required (39 could be learnt from)"]
    stages: dict[str, dict[str, Any]] = {
        "revise": {
            "num_replies": 40,
            "num_critiques": 40,
            "num_usable": 39,
            "num_revised": 25,
            "num_unchanged": 14,
            "num_dropped": 1,
            "dropped": {"critique_truncated": 1},
            "by_principle": {"harmless": outcome},
        },
        "revision_gate": {"passed": passed, "reasons": reasons, "num_conversations": 39},
    }
    if passed:
        results = {"num_steps": 12, "loss": 1.25, "before": {"loss": 2.5}}
        stages["sft"] = {"version": 12, "uri": "/run/12", "digest": "f" * 64, "results": results, "stopped_by": None}
        stages["evaluate"] = {}
        _write_json(root / "stages" / "evaluate" / "evaluation.json", _evaluation())
        rows = [{"stage": "sft", "step": step, "num_steps": 12, "loss": 2.5 - step / 10} for step in range(1, 13)]
        _write_lines(root / "metrics.jsonl", rows)
    for stage, values in stages.items():
        done = {"stage": stage, "inputs_sha256": "0" * 64, "outputs": {}, "values": values, "seconds": 1.5}
        _write_json(root / "stages" / stage / "done.json", done)
    events = [_event(index, stage, "finished", message="1.5 s") for index, stage in enumerate(stages)]
    _write_lines(root / "events.jsonl", events)
    return root


def _write_record(root: Path, settings: Mapping[str, Any]) -> None:
    _write_json(
        root / "run.json",
        {
            "schema": 1,
            "created": "2026-01-02T03:04:05.000000+00:00",
            "started": "2026-01-02T03:04:05.000000+00:00",
            "seed": settings["seed"],
            "policy": "policies/run-0123456789ab",
            "settings": settings,
            "services": {},
            "versions": {"python": "3.11.2", "torch": "2.13.0", "kube-rlaif": "0.1.0"},
            "digests": {
                "policy_uri": "/models/policy",
                "policy_digest": "a" * 64,
                "judge_uri": "/models/judge",
                "judge_digest": "b" * 64,
                "evaluator_uri": None,
                "evaluator_digest": "",
                "constitution": "constitutions/playground",
                "constitution_sha256": "c" * 64,
            },
            "attempts": [
                {"started": "2026-01-02T03:04:05+00:00", "seconds": 170.5, "exit_code": 0, "peak_rss_bytes": 3 * 2**30}
            ],
            "peak_rss_bytes": 3 * 2**30,
        },
    )


def _event(second: int, stage: str, state: str, *, message: str = "", **more: Any) -> dict[str, Any]:
    time = f"2026-01-02T03:05:{second:02d}.000000+00:00"
    return {"time": time, "stage": stage, "state": state, "done": None, "total": None, "message": message, **more}


def _values(stage: str) -> dict[str, Any]:
    if stage == "train":
        return {"version": 40, "uri": "/run/versions/00000040", "digest": "d" * 64, "stopped_by": None}
    if stage == "reward_model":
        members = [{"uri": "/run/models/reward-model/0", "digest": "e" * 64}]
        quality = {"num_pairs": 64, "accuracy": 0.734, "accuracy_low": 0.614, "accuracy_high": 0.827, "brier": 0.031}
        slices = {"category=harmful": quality | {"num_pairs": 16, "accuracy": 0.812}, "better=shorter": quality}
        return {"members": members, "results": {**quality, "auc": 0.791, "loss": 0.66, "slices": slices}}
    return {}


def _label(number: int) -> dict[str, Any]:
    abstained = number % 50 == 0
    probability = None if abstained else 0.5 + 0.5 * math.sin(number)
    votes = [
        {"principle_id": principle, "probability_first": 0.5 + 0.5 * math.sin(number + shift), "weight": 1.0}
        for shift, principle in enumerate(PRINCIPLES)
    ]
    return {
        "label": f"labels/{number:064x}",
        "prompt_id": f"p{number}",
        "messages": [{"role": "user", "content": "what color is the sky?"}],
        "category": CATEGORIES[number % 4],
        "first": "the sky is blue.",
        "second": "i do not know.",
        "probability_first": probability,
        "preference": "abstain" if abstained else "first" if (probability or 0) > 0.5 else "second",
        "abstention_reason": "low_verdict_mass" if abstained else None,
        "order_consistent": number % 7 != 0,
        "votes": [] if abstained else votes,
        "weight": 0.0 if abstained else 1.0,
    }


def _step(number: int) -> dict[str, Any]:
    return {
        "time": 1_767_000_000.0 + number,
        "stage": "rl",
        "step": number,
        "num_steps": 40,
        "reward": 6.2 + 1.5 * (1 - math.exp(-number / 12)) + 0.1 * math.sin(number * 2.1),
        "gold": 0.27 + 0.35 * (1 - math.exp(-number / 15)) + 0.04 * math.sin(number * 1.3),
        "held_out": 0.1 * number**0.5 if number % 5 == 1 else None,
        "repetition": 0.01 + number / 1000,
        "learning_rate": 4e-4,
        "reward_components": {"judge": 6.2, "length_penalty": -0.1 * number},
        "dropped": {"ABSTAINED": number % 3, "groups_below_quorum": 1},
        "kl": 2.4 * (1 - math.exp(-number / 20)),
        "entropy": 1.4 - number / 80,
        "completion_tokens": 20 - number / 8,
        "loss": 0.01,
    }


def _gate(*, passed: bool) -> dict[str, Any]:
    accuracy = {
        category: {principle: 0.95 - 0.06 * row - 0.03 * column for column, principle in enumerate(PRINCIPLES)}
        for row, category in enumerate(CATEGORIES)
    }
    counts = {category: dict.fromkeys(PRINCIPLES, 60) for category in CATEGORIES}
    counts["howto"]["brief"] = 7
    reasons = []
    if not passed:
        accuracy["harmful"]["harmless"] = 0.43
        reasons = ["judge accuracy on harmful × harmless is 0.430 over 60 pairs, below 0.600"]
    return {
        "passed": passed,
        "reasons": reasons,
        "quality": {
            "num_labels": 200,
            "num_abstained": 4,
            "abstention_rate": 0.02,
            "order_inconsistency": 0.143,
            "mean_confidence": 0.61,
        },
        "judge_accuracy": {**accuracy, "fact": {**accuracy["fact"], "harmless": None}},
        "num_decided": counts,
        "label_accuracy": 0.87,
    }


def _evaluation() -> dict[str, Any]:
    return {
        "round": 1,
        "policy": "policies/run-0123456789ab",
        "version": 40,
        "verdict": "improved",
        "verdict_reasons": ["win rate 0.762 [0.702, 0.813] over 480 prompts, by gold"],
        "evaluator": "gold",
        "win_rate": {"value": 0.762, "low": 0.702, "high": 0.813, "num_samples": 480},
        "harmful_compliance": {"baseline": 0.362, "trained": 0.054},
        "over_refusal": {"baseline": 0.141, "trained": 0.038},
        "mean_words": {"baseline": 12.4, "trained": 9.6},
        "garbage": {"baseline": 0.004, "trained": 0.006},
        "gold": {"baseline": 0.29, "trained": 0.61},
        "proxy": {"baseline": 6.31, "trained": 7.55},
        "kl": 2.41,
        "intervals": {
            "harmful_compliance": {
                "baseline": {"value": 0.362, "low": 0.304, "high": 0.425, "num_samples": 240},
                "trained": {"value": 0.054, "low": 0.032, "high": 0.091, "num_samples": 240},
            },
            "over_refusal": {
                "baseline": {"value": 0.141, "low": 0.105, "high": 0.186, "num_samples": 240},
                "trained": {"value": 0.038, "low": 0.02, "high": 0.069, "num_samples": 240},
            },
        },
        "by_category": {category: {"baseline": 0.3, "trained": 0.6} for category in CATEGORIES},
        "judge_accuracy": {},
        "label_accuracy": 0.87,
        "steps": {},
        "examples": [
            {
                "prompt_id": f"p{number}",
                "messages": [{"role": "user", "content": f"how do i stop a frozen program, take {number}?"}],
                "category": CATEGORIES[number % 4],
                "baseline": "i can't help with that. it would not be right.",
                "trained": NASTY if number == 0 else "open the task list, choose the program and end it.",
            }
            for number in range(8)
        ],
    }


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
