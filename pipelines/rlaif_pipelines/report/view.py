"""What the page shows, worked out: rows, plots and texts, ready for the template."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from rlaif_pipelines.report.facts import RunFacts
from rlaif_pipelines.report.labels import heat_map, label_view
from rlaif_pipelines.report.plots import Mark, Series, interval_bar, line_chart
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
_Chart = tuple[str, str, str, str]
"""Key of a step's line, title, meaning, style."""
_CHARTS: Final[Sequence[_Chart]] = (
    ("reward", "Reward (proxy)", "what the policy is trained on", "first"),
    ("gold", "Gold", "independent rules; logged only, never trained on", "second"),
    ("held_out", "Held-out score", "second opinion on prompts set apart; guards, never trained on", "third"),
    ("kl", "KL", "nats a reply from where the round began", "fourth"),
    ("completion_tokens", "Reply length", "tokens", "fifth"),
    ("entropy", "Entropy", "nats a token", "sixth"),
    ("repetition", "Repetition", "share of a reply's 4-grams that it has said before", "first"),
    ("clip_fraction", "Clipped", "share of tokens whose ratio of policies was clipped", "second"),
    ("truncated_fraction", "Truncated", "share of tokens whose weight against the sampler was cut", "third"),
    ("cut_off_fraction", "Cut off", "share of replies that ended because their token budget did", "fourth"),
    ("learning_rate", "Learning rate", "", "fifth"),
    ("kl_beta", "KL weight", "", "sixth"),
    ("grad_norm", "Gradient norm", "before clipping", "first"),
    ("num_dropped", "Dropped", "replies without a reward, and groups left out", "second"),
    ("staleness", "Staleness", "steps that replies trail the weights by", "third"),
)
_CONSTANT_IS_NO_NEWS: Final = (
    "repetition",
    "clip_fraction",
    "truncated_fraction",
    "cut_off_fraction",
    "learning_rate",
    "kl_beta",
    "num_dropped",
    "staleness",
)
_STYLES: Final = ("first", "second", "third", "fourth", "fifth", "sixth")
_TOGETHER: Final = (("reward", "proxy", "first"), ("held_out", "held-out", "third"), ("gold", "gold", "second"))
_LOSS_CHART: Final[Sequence[_Chart]] = (
    ("loss", "Loss", "of the preferences; DPO has no reward", "first"),
    ("accuracy", "Accuracy", "share of a step's pairs whose preferred reply has the higher implicit reward", "second"),
    ("margin", "Margin", "mean lead of the preferred replies' implicit reward", "third"),
)
_SFT_CHART: Final[Sequence[_Chart]] = (("loss", "Loss", "nats a token of the revised replies", "first"),)
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
        "begun": str(facts.record.get("created", ""))[:19].replace("T", " "),
        "headlines": list(_headlines(summary)),
        "comparison": list(_comparison(summary)),
        "categories": _categories(facts),
        "charts": list(_charts(facts)),
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


def _comparison(summary: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    rows: Sequence[tuple[str, str, str, str]] = (
        ("harmful_compliance", "Harmful compliance", "{:.1%}", "share of harmful prompts that were helped with"),
        ("over_refusal", "Over-refusal", "{:.1%}", "share of harmless prompts that were refused"),
        ("gold", "Gold score", "{:.3f}", "mean over categories"),
        ("garbage", "Garbage", "{:.1%}", "share of words outside the world's phrases"),
        ("mean_words", "Words a reply", "{:.1f}", ""),
        ("proxy", "Reward (proxy)", "{:.3f}", "first and last tenth of the steps; what was optimised, no evidence"),
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


def _charts(facts: RunFacts) -> Iterator[dict[str, Any]]:
    guards = (facts.settings.get("rl") or {}).get("guards") or {}
    max_kl = (guards.get("kl") or {}).get("limit")
    rows: list[Mapping[str, Any]] = [{**row, **_counted(row)} for row in facts.metrics if row["kind"] == "train"]
    shown = _CHARTS if any("reward" in row for row in rows) else _LOSS_CHART
    if not rows:
        rows, shown = [row for row in facts.metrics if row["kind"] == "sft"], _SFT_CHART
    place = _axis(rows)
    marks = list(_marks(rows, place))
    yield from _together(rows, place, marks)
    yield from _components(rows, place, marks)
    for key, title, meaning, style in shown:
        points = _points(rows, key, place)
        if len(points) < 2 or (key in _CONSTANT_IS_NO_NEWS and len({y for _, y in points}) == 1):
            continue
        yield {
            "title": title,
            "meaning": meaning,
            "first": f"{points[0][1]:.3g}",
            "last": f"{points[-1][1]:.3g}",
            "plot": line_chart(
                [Series(title, points, style)],
                title=f"{title} over training steps",
                x_label="step",
                limit=max_kl if key == "kl" else None,
                marks=marks,
            ),
        }


def _axis(rows: Sequence[Mapping[str, Any]]) -> Callable[[int, int], float]:
    """Where a step of a round stands: rounds follow each other on one axis."""
    last_steps: dict[int, int] = {}
    for row in rows:
        last_steps[row["round"]] = max(last_steps.get(row["round"], 0), row["step"])

    def place(round_number: int, step: int) -> float:
        return float(step + sum(steps for number, steps in last_steps.items() if number < round_number))

    return place


def _points(
    rows: Sequence[Mapping[str, Any]], key: str, place: Callable[[int, int], float]
) -> list[tuple[float, float]]:
    return [
        (place(row["round"], row["step"]), float(row[key])) for row in rows if isinstance(row.get(key), int | float)
    ]


def _together(
    rows: Sequence[Mapping[str, Any]], place: Callable[[int, int], float], marks: Sequence[Mark]
) -> Iterator[dict[str, Any]]:
    """Proxy, held-out score and gold in one picture: whether what is optimised still means what it should."""
    series = []
    for key, name, style in _TOGETHER:
        points = _points(rows, key, place)
        low, high = min((y for _, y in points), default=0.0), max((y for _, y in points), default=0.0)
        if len(points) > 1 and high > low:
            series.append(Series(name, [(x, (y - low) / (high - low)) for x, y in points], style))
    if len(series) > 1:
        yield {
            "title": "Proxy against the rest",
            "meaning": "each from its lowest to its highest",
            "first": "0",
            "last": "1",
            "plot": line_chart(series, title="Proxy, held-out score and gold over steps", x_label="step", marks=marks),
        }


def _components(
    rows: Sequence[Mapping[str, Any]], place: Callable[[int, int], float], marks: Sequence[Mark]
) -> Iterator[dict[str, Any]]:
    """The reward's components, where it has several."""
    names = sorted({name for row in rows for name in row.get("reward_components") or {}})[: len(_STYLES)]
    series = [
        Series(name, _points([{**row, **(row.get("reward_components") or {})} for row in rows], name, place), style)
        for name, style in zip(names, _STYLES, strict=False)
    ]
    if len(series) > 1:
        yield {
            "title": "Rewards by component",
            "meaning": "unweighted means",
            "first": "",
            "last": "",
            "plot": line_chart(series, title="Rewards by component over steps", x_label="step", marks=marks),
        }


def _counted(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"num_dropped": sum(row["dropped"].values())} if row.get("dropped") else {}


def _marks(rows: Sequence[Mapping[str, Any]], place: Callable[[int, int], float]) -> Iterator[Mark]:
    for row in rows:
        for firing in row.get("guards") or ():
            yield Mark(place(row["round"], row["step"]), f"{firing['guard']}: {firing['action']}")
        if back := row.get("rolled_back"):
            # The rollouts of step n + 1 come from the weights after step n.
            yield Mark(place(row["round"], back["num_steps"] + 1), "rolled back to")


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
    yield {"what": "starting policy", "name": digests.get("policy_uri"), "digest": digests.get("policy_digest")}
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
