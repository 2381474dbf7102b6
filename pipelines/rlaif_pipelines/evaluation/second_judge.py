"""Evaluation by a second judge, for prompts without gold rules. Never the judge whose labels trained the policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlaif.core.conversation import parse_conversation
from rlaif_pipelines.evaluation.statistics import Estimate, share

if TYPE_CHECKING:
    from rlaif.client.judge import JudgeClient, Verdict


@dataclass(frozen=True)
class SecondJudgement:
    """Win rate over the pairs that were decided. Equal texts are ties and an empty text loses, unasked."""

    win_rate: Estimate
    num_pairs: int
    num_equal: int
    num_empty: int
    num_abstained: int
    order_inconsistency: float | None
    """Share of asked and decided pairs whose preference depends on the order shown."""


def compare_before_after(
    judge: JudgeClient,
    constitution: str,
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    *,
    pairs_per_request: int,
    check: Callable[[Sequence[Verdict]], None],
    progress: Callable[[int, int], None] | None = None,
) -> SecondJudgement:
    """Compare each completion after with the one before, both orders; `check` sees the verdicts before they count."""
    from rlaif.client.judge import ResponsePair

    pairs: list[ResponsePair] = []
    equal: list[float] = []
    empty: list[float] = []
    for old, new in zip(before, after, strict=True):
        old_text, new_text = old["completions"][0]["text"], new["completions"][0]["text"]
        if old_text.strip() == new_text.strip():
            equal.append(0.5)
        elif not old_text.strip() or not new_text.strip():
            empty.append(1.0 if new_text.strip() else 0.0)
        else:
            pairs.append(ResponsePair(parse_conversation(new["messages"]), new_text, old_text, new["category"] or ""))
    verdicts = judge.compare_many(constitution, pairs, batch_size=pairs_per_request, progress=progress) if pairs else []
    check(verdicts)
    decided = [verdict for verdict in verdicts if verdict.preference != "abstain"]
    wins = [{"first": 1.0, "tie": 0.5, "second": 0.0}[verdict.preference] for verdict in decided]
    return SecondJudgement(
        win_rate=share([*wins, *equal, *empty]),
        num_pairs=len(before),
        num_equal=len(equal),
        num_empty=len(empty),
        num_abstained=len(verdicts) - len(decided),
        order_inconsistency=sum(not verdict.order_consistent for verdict in decided) / len(decided)
        if decided
        else None,
    )
