"""From the service's own decision on a pair to the label: clamped or calibrated, then put to the panel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlaif.core.calibration import Calibration
from rlaif.core.preference import (
    AbstentionReason,
    JudgeVote,
    PairLabel,
    PanelRule,
    Preference,
    PrincipleVote,
    clamp_reasoned,
    combine_judges,
    orders,
    preference_of,
)
from rlaif.engine.protocol import ModelIdentity


@dataclass(frozen=True)
class PanelOptions:
    """How judges are combined; see `combine_judges`."""

    rule: PanelRule
    quorum: int
    max_disagreement: float


@dataclass(frozen=True)
class SettledPair:
    """A pair's label as it is recorded; probabilities are None exactly when there is no verdict.

    `principle_votes` are of the service's own model, `judge_votes` of every judge.
    """

    preference: Preference
    probability_first: float | None
    raw_probability_first: float | None
    order_consistent: bool
    principle_votes: tuple[PrincipleVote, ...]
    judge_votes: tuple[JudgeVote, ...]
    panel_disagreement: float
    calibration: str
    abstention_reason: AbstentionReason | None


def own_vote(
    label: PairLabel, *, identity: ModelIdentity, reasoned: bool, calibration: Calibration | None
) -> JudgeVote:
    """The vote of the service's own model: calibrated, else clamped when it followed a rationale."""
    raw = label.probability_first
    if raw is None:
        return JudgeVote("", identity.uri, identity.digest, identity.version, abstention_reason=label.abstention_reason)
    when_first, when_second = orders(label.votes)
    probability = raw
    if calibration is not None:
        probability = calibration.apply(raw)
    elif reasoned:
        probability = clamp_reasoned(raw)
    return JudgeVote(
        judge="",
        model_uri=identity.uri,
        model_digest=identity.digest,
        model_version=identity.version,
        probability_first=probability,
        raw_probability_first=raw,
        probability_when_first=when_first,
        probability_when_second=when_second,
    )


def settle(
    label: PairLabel,
    own: JudgeVote,
    *,
    calibration: Calibration | None,
    others: Sequence[JudgeVote] = (),
    panel: PanelOptions | None = None,
) -> SettledPair:
    """The label of one judge alone, or of a panel."""
    votes = (own, *others)
    if panel is None:
        probability, raw, reason = own.probability_first, own.raw_probability_first, own.abstention_reason
        consistent, disagreement = label.order_consistent, 0.0
    else:
        decision = combine_judges(votes, rule=panel.rule, quorum=panel.quorum, max_disagreement=panel.max_disagreement)
        probability, raw, reason = (
            decision.probability_first,
            decision.raw_probability_first,
            decision.abstention_reason,
        )
        consistent, disagreement = decision.order_consistent, decision.disagreement
    return SettledPair(
        preference=Preference.ABSTAIN if probability is None else preference_of(probability),
        probability_first=probability,
        raw_probability_first=raw,
        order_consistent=consistent,
        principle_votes=label.votes,
        judge_votes=votes,
        panel_disagreement=disagreement,
        calibration=calibration.name if calibration is not None and own.probability_first is not None else "",
        abstention_reason=reason,
    )
