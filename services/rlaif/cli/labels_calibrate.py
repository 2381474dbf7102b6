"""Fitting calibrations on the labels of a ledger that people voted on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from rlaif.client.judged_pairs import HumanVotes
from rlaif.core.calibration import Calibration, CalibrationKey, Method
from rlaif.core.calibration_fit import ReviewedLabel, fit_calibration
from rlaif.core.errors import PreconditionError
from rlaif.v1 import ledger_service_pb2 as pb


@dataclass(frozen=True)
class Candidates:
    """Reviewed labels that share judge, template and constitution."""

    key: CalibrationKey
    constitution: str
    labels: tuple[ReviewedLabel, ...]


@dataclass(frozen=True)
class Fitted:
    """A calibration, or why there is none."""

    candidates: Candidates
    calibration: Calibration | None
    refused: str = ""

    @property
    def helps(self) -> bool:
        """Whether labels that it was not fitted on became better forecasts."""
        return self.calibration is not None and self.calibration.after.nll < self.calibration.before.nll


def reviewed_labels(human: Iterable[pb.Label], judged: Iterable[pb.Label]) -> list[Candidates]:
    """The judge's labels that people voted on, by what a calibration holds for; most labels first.

    Left out are labels of judges whose weights or rules cannot be identified, and those of panels: a calibration is of
    one judge.
    """
    votes = HumanVotes(human)
    groups: dict[tuple[CalibrationKey, str], list[ReviewedLabel]] = defaultdict(list)
    for label in judged:
        pair = votes.judged(label)
        if pair is None or pair.key is None or pair.panel_votes:
            continue
        if pair.raw_probability_first is None or pair.human_share is None:
            continue
        groups[pair.key, pair.constitution].append(
            ReviewedLabel(pair.raw_probability_first, pair.human_share, pair.conversation)
        )
    found = [Candidates(key, constitution, tuple(labels)) for (key, constitution), labels in groups.items()]
    return sorted(found, key=lambda candidates: -len(candidates.labels))


def fit(candidates: Candidates, *, method: Method) -> Fitted:
    """The calibration of these labels, or the sentence that refuses it."""
    try:
        calibration = fit_calibration(
            candidates.labels, key=candidates.key, constitution=candidates.constitution, method=method
        )
    except PreconditionError as error:
        return Fitted(candidates, None, error.message)
    return Fitted(candidates, calibration)
