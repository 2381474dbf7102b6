"""The loop over labelled pairs that reward and DPO training share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlaif_pipelines.training.config.common import TrainingSettings
from rlaif_pipelines.training.engine import TrainingEngine
from rlaif_pipelines.training.fitting import Measured, Schedule, fit
from rlaif_pipelines.training.metrics import MetricsLog
from rlaif_pipelines.training.packing import Layout
from rlaif_pipelines.training.pairs import EncodedPair


@dataclass(frozen=True)
class MeasuredLoss:
    """What a model says of some pairs; `margins_P`, its lead of the first responses, carries no gradient."""

    loss: Tensor
    """Weighted mean over the pairs."""
    margins_P: Tensor


PairLoss = Callable[[Sequence[EncodedPair]], MeasuredLoss]


def fit_pairs(
    engine: TrainingEngine,
    pairs: Sequence[EncodedPair],
    *,
    pair_loss: PairLoss,
    schedule: Schedule,
    layout: Layout,
    settings: TrainingSettings,
    checkpoints: Path,
    identity: str,
    metrics: Callable[[int], MetricsLog],
) -> None:
    """Minimises the weighted mean of `pair_loss` over the pairs, as `fit` does.

    The log shows, beside the loss, the share of decided pairs whose preferred response leads, and by how much.
    """

    def measure(members: Sequence[EncodedPair]) -> Measured:
        found = pair_loss(members)
        sides_P = torch.tensor([pair.preferred for pair in members], dtype=torch.float64, device=engine.device)
        leads_P = sides_P * found.margins_P
        decided_P = sides_P != 0
        # No lead counts half: before the first step a policy is its own reference.
        num_right = (0.5 * (leads_P[decided_P].sign() + 1.0)).sum()
        return Measured(found.loss, torch.stack([num_right, leads_P.sum(), decided_P.sum()]))

    fit(
        engine,
        pairs,
        measure=measure,
        figures=_figures,
        schedule=schedule,
        layout=layout,
        settings=settings,
        checkpoints=checkpoints,
        identity=identity,
        metrics=metrics,
    )


def _figures(sums: Sequence[float]) -> dict[str, float | None]:
    num_right, lead, num_decided = sums
    return {
        "accuracy": num_right / num_decided if num_decided else None,
        "margin": lead / num_decided if num_decided else None,
    }
