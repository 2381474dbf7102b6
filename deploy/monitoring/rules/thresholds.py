"""Where alerts fire, as an operator sets it in the chart's values: the default, and where in the rules it stands."""

from __future__ import annotations

from typing import Any

from monitoring import limits, objectives
from monitoring.catalogue import quality
from monitoring.progress import dropped_share
from monitoring.promql import Scope
from monitoring.rules import recording


def thresholds(scope: Scope) -> dict[str, Any]:
    """By their names below `monitoring.rules.thresholds`: expressions hold `text` with `default` in place of %s."""
    overall = scope.largest(scope.select(quality("human_agreement"), slice="", bound="high"))
    sliced = scope.keep("slice").largest(scope.select(quality("human_agreement"), slice="!=", bound="high"))
    longer = scope.largest(scope.select(quality("longer_preferred"), slice="", bound="low"))
    dropped = dropped_share(scope.keep("pod", "stage"), "15m")
    shares = {
        "queueUsed": (f"{scope.select(recording.QUEUE_USED)} > ", limits.QUEUE_USED),
        "callsRefused": (f"{scope.select(recording.REFUSED)} > ", limits.CALLS_REFUSED),
        "abstentions": (f"{scope.select(recording.ABSTENTIONS)} > ", limits.ABSTENTIONS),
        "orderInconsistent": (f"{scope.select(recording.INCONSISTENT)} > ", limits.INCONSISTENT),
        "injections": (f"{scope.select(recording.INJECTIONS)} > ", limits.INJECTIONS),
        "rewardsFailed": (f"{scope.select(recording.REWARDS_FAILED)} > ", limits.REWARDS_FAILED),
        "humanAgreement": (f"{overall} < ", limits.HUMAN_AGREEMENT),
        "humanAgreementInSlice": (f"{sliced} < ", limits.HUMAN_AGREEMENT_IN_SLICE),
        "longerPreferred": (f"{longer} > ", limits.LONGER_PREFERRED),
        "samplesDropped": (f"{dropped} > ", limits.SAMPLES_DROPPED),
    }
    bounds = {}
    for bound in objectives.LATENCY_BOUNDS:
        methods = {"method": bound.methods} if bound.methods else {}
        selector = scope.select(bound.metric(), "bucket", le=bound.le, **methods)
        bounds[bound.name] = {"default": bound.le, "text": selector.replace(f'le="{bound.le}"', 'le="%s"')}
    return bounds | {name: {"default": str(at), "text": f"{text}%s"} for name, (text, at) in shares.items()}
