"""What the page shows, worked out: rows, plots and texts, ready for the template."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from rlaif_pipelines.report.charts import charts
from rlaif_pipelines.report.facts import RunFacts
from rlaif_pipelines.report.labels import heat_map, label_view
from rlaif_pipelines.report.plots import interval_bar
from rlaif_pipelines.report.words import banner

_ROUTES: Final = {
    ("grpo", "judge"): "GRPO on the judge's expected score",
    ("grpo", "model"): "GRPO on a reward model trained from the labels",
    ("dpo", "judge"): "DPO on the labels",
    ("dpo", "model"): "DPO on the labels",
    ("sft", "judge"): "fine-tuning on replies of its own, revised",
    ("sft", "model"): "fine-tuning on replies of its own, revised",
}
_OTHER_PIPELINES: Final = {
    "label-only": "labels, nothing trained",
    "evaluate-only": "a given model against the policy",
    "judge-benchmark": "the judge against given labels",
}
_POLICIES: Final = {"sft": "fine-tuned policy", "train": "trained policy"}
_MAX_EXAMPLES_PER_CATEGORY: Final = 4
_NO_BREAK: Final = "\u00a0"


def view(facts: RunFacts, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the template names."""
    settings = facts.settings
    return {
        "facts": facts,
        "summary": summary,
        "banner": banner(facts, summary),
        "route": _route(facts),
        "world": _world(facts),
        "out": settings.get("out") or facts.root.name,
        "num_rounds": settings.get("rounds", 1),
        "of_last_round": facts.of_last_round,
        "begun": str(facts.record.get("created", ""))[:19].replace("T", " "),
        "headlines": list(_headlines(summary)),
        "comparison": list(_comparison(facts, summary)),
        "categories": _categories(facts),
        "charts": list(charts(facts)),
        "guards": list(_guards(facts)),
        "held_out_off": _held_out_off(facts),
        "constitutional": summary["constitutional"],
        "benchmark": summary["benchmark"],
        "labels": label_view(facts),
        "reward_models": list(_reward_models(facts)),
        "heat": heat_map(facts),
        "labelling": settings.get("algorithm") != "sft" and facts.pipeline in ("rlaif", "label-only"),
        "gate_limits": settings.get("gate") or {},
        "examples": _examples(facts),
        "lineage": list(_lineage(facts, summary)),
        "stages": list(_stages(facts)),
        "settings_rows": list(_flat(settings)),
        "attempts": facts.record.get("attempts") or [],
    }


def _world(facts: RunFacts) -> str:
    """Where the texts come from."""
    given = (facts.settings.get("pairs") or {}).get("path") or facts.settings.get("prompts")
    return "playground" if given is None else str(given)


def _route(facts: RunFacts) -> str:
    settings = facts.settings
    if facts.pipeline in _OTHER_PIPELINES:
        return _OTHER_PIPELINES[facts.pipeline]
    route = _ROUTES.get((settings.get("algorithm", "grpo"), settings.get("reward", "judge")), "")
    first = (settings.get("constitutional") or {}).get("enabled") and settings.get("algorithm") != "sft"
    return f"the constitutional stage, then {route}" if first else route


def _headlines(summary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    win = summary["win_rate"]
    if win["value"] is not None:
        yield {
            "name": "Win rate",
            "value": f"{win['value']:.3f}",
            "detail": "against the start; " + _interval_text(win, "{:.3f}"),
            "plot": interval_bar(win["value"], low=win["low"], high=win["high"], reference=0.5),
        }
    for key, name in (("harmful_compliance", "Harmful compliance"), ("over_refusal", "Over-refusal")):
        pair = summary[key]
        if pair["trained"] is None:
            continue
        trained = summary["intervals"].get(key, {}).get("trained") or {}
        yield {
            "name": name,
            "value": f"{pair['trained']:.1%}",
            "detail": f"from {pair['baseline']:.1%}" + (f"; {_interval_text(trained, '{:.1%}')}" if trained else ""),
            "plot": interval_bar(
                pair["trained"], low=trained.get("low"), high=trained.get("high"), reference=pair["baseline"]
            ),
        }
    if summary["mean_words"]["trained"] is not None:
        words = summary["mean_words"]
        yield {"name": "Words a reply", "value": f"{words['trained']:.1f}", "detail": f"from {words['baseline']:.1f}"}
    if summary["kl"] is not None:
        yield {"name": "KL from the start", "value": f"{summary['kl']:.2f}", "detail": "nats a reply"}


def _comparison(facts: RunFacts, summary: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    optimised = f"first and last tenth of the steps{facts.of_last_round}; what was optimised, no evidence"
    rows: Sequence[tuple[str, str, str, str]] = (
        ("harmful_compliance", "Harmful compliance", "{:.1%}", "share of harmful prompts that were helped with"),
        ("over_refusal", "Over-refusal", "{:.1%}", "share of harmless prompts that were refused"),
        ("gold", "Gold score", "{:.3f}", "mean over categories"),
        ("garbage", "Garbage", "{:.1%}", "share of words outside the world's phrases"),
        ("mean_words", "Words a reply", "{:.1f}", ""),
        ("proxy", "Reward (proxy)", "{:.3f}", optimised),
    )
    for key, name, form, meaning in rows:
        pair = summary[key]
        if pair["baseline"] is None or pair["trained"] is None:
            continue
        intervals = summary["intervals"].get(key) or {}
        yield {
            "name": name,
            "meaning": meaning,
            "baseline": form.format(pair["baseline"]),
            "baseline_interval": _interval_text(intervals.get("baseline") or {}, form),
            "trained": form.format(pair["trained"]),
            "trained_interval": _interval_text(intervals.get("trained") or {}, form),
        }


def _categories(facts: RunFacts) -> list[dict[str, Any]]:
    found: Mapping[str, Mapping[str, float]] = (facts.evaluation or {}).get("by_category") or {}
    return [{"name": name, **figures} for name, figures in sorted(found.items())]


def _guards(facts: RunFacts) -> Iterator[dict[str, Any]]:
    """Every firing: which guard, where, on which numbers, and what came of it."""
    for row in facts.metrics:
        back = row.get("rolled_back")
        for firing in row.get("guards") or ():
            stopped = firing["action"] == "stop"
            yield {
                "round": row["round"],
                "step": row["step"],
                "guard": firing["guard"].replace("_", "-"),
                "sentence": firing["sentence"],
                "consequence": "the learning rate was halved"
                if not stopped
                else f"training stopped and went back to the weights after step {back['num_steps']}, published as "
                f"version {back['version']}"
                if back
                else "training stopped",
            }


def _held_out_off(facts: RunFacts) -> str | None:
    """Why nothing watched whether the reward still means what it should."""
    results = [stage.values.get("results") or {} for stage in facts.stages.values() if stage.kind == "train"]
    return next((each["held_out_off"] for each in results if each.get("held_out_off")), None)


def _reward_models(facts: RunFacts) -> Iterator[dict[str, Any]]:
    """How well each round's reward model predicts labels it was not trained on."""
    for stage in facts.stages.values():
        results = stage.values.get("results") or {}
        if stage.kind == "reward_model" and results.get("accuracy") is not None:
            yield {
                "round": stage.round_number,
                "num_pairs": results["num_pairs"],
                **_predicted(results),
                "slices": [
                    {"name": name, "num_pairs": each["num_pairs"], **_predicted(each)}
                    for name, each in (results.get("slices") or {}).items()
                    if each["accuracy"] is not None
                ],
                "files": results.get("labels") or [],
                "disagreement": results.get("disagreement"),
            }


def _predicted(quality: Mapping[str, Any]) -> dict[str, Any]:
    interval = {"low": quality.get("accuracy_low"), "high": quality.get("accuracy_high")}
    return {
        "accuracy": quality["accuracy"],
        "interval": _interval_text(interval, "{:.1%}"),
        **{name: quality.get(name) for name in ("auc", "brier", "ece")},
    }


def _examples(facts: RunFacts) -> list[dict[str, Any]]:
    by_category: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for example in (facts.evaluation or {}).get("examples") or []:
        by_category[example.get("category") or "prompts"].append(example)
    return [
        {"category": category, "examples": found[:_MAX_EXAMPLES_PER_CATEGORY]}
        for category, found in sorted(by_category.items())
    ]


def _lineage(facts: RunFacts, summary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    digests = facts.digests
    if not digests:
        return
    yield {"what": "constitution", "name": digests.get("constitution"), "digest": digests.get("constitution_sha256")}
    yield {"what": "judge", "name": digests.get("judge_uri"), "digest": digests.get("judge_digest")}
    if "revise" in facts.stages:
        yield {
            "what": "revisions",
            "name": f"{(summary['constitutional'] or {}).get('num_revised')} replies revised, in the ledger",
            "digest": facts.stages["revise"].outputs.get("revisions.jsonl"),
        }
    if facts.labels:
        yield {
            "what": "labels",
            "name": f"{len(facts.labels)} labels in the ledger",
            "digest": _outputs(facts, "judge"),
        }
    for stage in facts.stages.values():
        if stage.kind == "reward_model":
            for member in stage.values.get("members") or []:
                yield {"what": "reward model", "name": member.get("uri"), "digest": member.get("digest")}
    if digests.get("policy_uri"):
        yield {"what": "starting policy", "name": digests["policy_uri"], "digest": digests.get("policy_digest")}
    for stage in facts.stages.values():
        if stage.kind in _POLICIES and stage.values.get("digest"):
            name = f"{summary['policy']} version {stage.values.get('version')}"
            yield {"what": _POLICIES[stage.kind], "name": name, "digest": stage.values["digest"]}
    if digests.get("evaluator_uri"):
        yield {"what": "evaluator", "name": digests["evaluator_uri"], "digest": digests.get("evaluator_digest")}


def _outputs(facts: RunFacts, kind: str) -> str | None:
    done = [stage for stage in facts.stages.values() if stage.kind == kind and stage.outputs]
    return next(iter(done[-1].outputs.values())) if done else None


def _stages(facts: RunFacts) -> Iterator[dict[str, Any]]:
    longest = max((stage.seconds or 0.0 for stage in facts.stages.values()), default=0.0)
    for stage in facts.stages.values():
        yield {
            "name": stage.name,
            "state": stage.state,
            "seconds": stage.seconds,
            "share": (stage.seconds or 0.0) / longest if longest else 0.0,
            "message": stage.message if stage.state == "failed" else "",
        }


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value if isinstance(value, str) else json.dumps(value)


def _interval_text(estimate: Mapping[str, Any], form: str) -> str:
    if estimate.get("low") is None or estimate.get("high") is None:
        return ""
    shown: Callable[[float], str] = form.format
    return f"95% CI {shown(estimate['low'])} to {shown(estimate['high'])}".replace(" ", _NO_BREAK)
