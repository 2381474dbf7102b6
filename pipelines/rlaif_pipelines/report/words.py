"""The verdict in words: what was found, by whose lights, and what it does not show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from rlaif_pipelines.report.facts import RunFacts

Tone = Literal["good", "bad", "open"]

_HEADLINES: Final[Mapping[str, tuple[Tone, str]]] = {
    "improved": ("good", "The policy improved."),
    "not_improved": ("bad", "The policy did not improve."),
    "over_optimised": ("bad", "The policy was over-optimised: it learned the reward, not what the reward stands for."),
    "biased": ("bad", "The policy wins more often, but became worse where it must not."),
    "unknown": ("open", "Whether the policy improved is not known."),
}


@dataclass(frozen=True)
class Banner:
    """The first thing a reader sees."""

    tone: Tone
    headline: str
    reasons: Sequence[str]
    evidence: str
    not_claimed: Sequence[str]


def banner(facts: RunFacts, summary: Mapping[str, Any]) -> Banner:
    """The banner of a run in whatever state."""
    tone, headline = _HEADLINES[summary["verdict"]]
    if facts.outcome == "gated":
        closed = "labels" if facts.gate is not None else "revised replies"
        headline = f"No policy was trained: the {closed} did not pass the gate."
    elif facts.outcome == "failed":
        told = headline if facts.benchmark is None else _judge_headline(facts.benchmark)
        tone, headline = "bad", f"The run failed. {told}"
    elif facts.outcome == "unfinished":
        headline = "The run has not finished. " + headline
    elif facts.pipeline == "label-only":
        headline = "The labels passed the gate; nothing was trained."
    elif facts.pipeline == "judge-benchmark":
        headline = _judge_headline(facts.benchmark or {})
    return Banner(
        tone=tone,
        headline=headline,
        reasons=[reason[:1].upper() + reason[1:] for reason in summary["verdict_reasons"]],
        evidence=_evidence(summary),
        not_claimed=list(_not_claimed(facts, summary)),
    )


def _judge_headline(found: Mapping[str, Any]) -> str:
    accuracy = found["statistics"][""]["human_agreement"]
    if accuracy["value"] is None:
        return "Whether the judge is right is not known: it decided no pair that was labelled with a preference."
    interval = f"95 % CI {accuracy['low']:.3f} to {accuracy['high']:.3f}"
    return f"The judge agrees with the given labels on {accuracy['value']:.1%} of the pairs ({interval})."


def _evidence(summary: Mapping[str, Any]) -> str:
    num_samples = summary["win_rate"].get("num_samples") or 0
    if summary["evaluator"] == "gold":
        return (
            f"Judged by gold rules, which never see the judge, on {num_samples} held-out prompts that training never "
            "saw: each reply of the trained policy against the starting policy's reply to the same prompt."
        )
    if summary["evaluator"] == "second_judge":
        return (
            f"Judged by a second model, not the one that labelled, on {num_samples} held-out prompts, both orders of "
            "each pair; without gold rules there is no better witness here."
        )
    if summary["evaluator"] == "none":
        return (
            "There are no gold rules for these prompts and no second judge was given, so nobody independent has looked."
        )
    if summary["benchmark"] is not None:
        return f"The judge compared {summary['benchmark']['num_pairs']} pairs, each in both orders."
    return "No evaluation has been made."


def _not_claimed(facts: RunFacts, summary: Mapping[str, Any]) -> Sequence[str]:
    if facts.pipeline == "label-only":
        looked = "only the playground's gold rules have" if facts.playground else "nobody independent has"
        return [f"Labels are one judge's preferences under one constitution; {looked} looked at them."]
    if facts.pipeline == "judge-benchmark":
        return [
            "The given labels are taken for right; where people disagree, no judge can agree with all of them.",
            "Pairs of another kind, or another constitution, may give another accuracy.",
        ]
    claims = []
    if facts.playground:
        claims.append(
            "The playground is a tiny synthetic world with models of a million parameters. That the loop works here "
            "does not show that it works for other prompts, constitutions or models."
        )
        claims.append("Gold rules read words of a closed grammar; they are no judgement of safety in the open.")
    else:
        claims.append("No person has read these replies: figures by models repeat what models overlook.")
        claims.append(
            "Held-out prompts come from the same file as the training prompts; other prompts may behave otherwise."
        )
    if summary["evaluator"] == "second_judge":
        claims.append("A win rate is one model's preference under one constitution, not quality as such.")
    claims.append(
        "One run with one seed. Intervals are of the held-out sample alone; another seed may give another result."
    )
    return claims
