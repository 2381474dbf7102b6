"""Label quality and the gate: may these labels train anything?

The gate looks at every cell of category × principle, never at their mean: a mean of .75 has hidden chance level on
harmful prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rlaif.core.preference import PairLabel, Preference


@dataclass(frozen=True)
class GateLimits:
    """What labels must hold to train. Rates and accuracies are in [0, 1]."""

    max_abstention_rate: float = 0.2
    max_order_inconsistency: float = 0.35
    min_num_labels: int = 32
    min_judge_accuracy: float = 0.6
    min_cell_labels: int = 20
    """Cells of category × principle with fewer decided pairs than this are reported but do not decide."""


@dataclass(frozen=True)
class CellAccuracy:
    """How often the judge agrees with the reference in one cell of category × principle."""

    num_correct: int
    num_decided: int

    @property
    def value(self) -> float | None:
        """Accuracy in [0, 1]; None without a decided pair."""
        return self.num_correct / self.num_decided if self.num_decided else None


@dataclass(frozen=True)
class LabelQuality:
    """Rates over one set of labels; None where there is nothing to divide by."""

    num_labels: int
    num_abstained: int
    abstention_rate: float | None
    order_inconsistency: float | None
    mean_confidence: float | None
    """Mean of |2p - 1| over labels with a verdict: 0 undecided, 1 certain."""


@dataclass(frozen=True)
class GateDecision:
    """Whether the labels may train, and every reason why not."""

    passed: bool
    reasons: tuple[str, ...]
    quality: LabelQuality
    accuracy: Mapping[str, Mapping[str, CellAccuracy]] = field(default_factory=dict)


def label_quality(labels: Iterable[PairLabel]) -> LabelQuality:
    """Abstention, order inconsistency and confidence of labels."""
    labels = list(labels)
    decided = [label for label in labels if label.preference is not Preference.ABSTAIN]
    probabilities = [label.probability_first for label in decided if label.probability_first is not None]
    return LabelQuality(
        num_labels=len(labels),
        num_abstained=len(labels) - len(decided),
        abstention_rate=_ratio(len(labels) - len(decided), len(labels)),
        order_inconsistency=_ratio(sum(not label.order_consistent for label in decided), len(decided)),
        mean_confidence=sum(abs(2 * p - 1) for p in probabilities) / len(probabilities) if probabilities else None,
    )


def decide_gate(
    quality: LabelQuality,
    *,
    limits: GateLimits,
    accuracy: Mapping[str, Mapping[str, CellAccuracy]] | None = None,
) -> GateDecision:
    """The decision with every limit that is broken, cell by cell; `accuracy` maps category to principle to cell."""
    reasons = []
    if quality.num_labels < limits.min_num_labels:
        reasons.append(f"{quality.num_labels} labels are fewer than the {limits.min_num_labels} required")
    if quality.abstention_rate is not None and quality.abstention_rate > limits.max_abstention_rate:
        reasons.append(f"abstention rate {quality.abstention_rate:.3f} exceeds {limits.max_abstention_rate:.3f}")
    if quality.num_labels and quality.num_labels == quality.num_abstained:
        reasons.append("the judge abstained on every pair")
    if quality.order_inconsistency is not None and quality.order_inconsistency > limits.max_order_inconsistency:
        reasons.append(
            f"order inconsistency {quality.order_inconsistency:.3f} exceeds {limits.max_order_inconsistency:.3f}"
        )
    for category, cells in sorted((accuracy or {}).items()):
        for principle_id, cell in sorted(cells.items()):
            value = cell.value
            if value is None or cell.num_decided < limits.min_cell_labels or value >= limits.min_judge_accuracy:
                continue
            reasons.append(
                f"judge accuracy on {category} × {principle_id} is {value:.3f} over {cell.num_decided} pairs, "
                f"below {limits.min_judge_accuracy:.3f}"
            )
    return GateDecision(not reasons, tuple(reasons), quality, accuracy or {})


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
