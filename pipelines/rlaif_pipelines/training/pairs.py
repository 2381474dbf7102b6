"""Labelled pairs as token ids, what a model says of them, and how well that agrees with the labels.

Shape legend: P pairs; K principles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlaif.core.errors import InvalidInputError
from rlaif.core.preference import TIE_MARGIN
from rlaif_pipelines.training import engine as processes
from rlaif_pipelines.training.data import LabelledPair
from rlaif_pipelines.training.losses import soft_bradley_terry_loss
from rlaif_pipelines.training.packing import Layout, Rows, Tree
from rlaif_pipelines.training.tokens import ChatEncoder

Forward = Callable[[Rows], Tensor]
"""One value or row of values a branch."""


@dataclass(frozen=True)
class EncodedPair:
    """One pair as token ids. The reference's log-probabilities are sums over each response, nats; DPO only."""

    prompt_ids: tuple[int, ...]
    first_ids: tuple[int, ...]
    second_ids: tuple[int, ...]
    probability_first: float
    weight: float
    votes: tuple[float, ...] = ()
    """P(first preferred) by each principle asked for, NaN where it did not vote; reward models only."""
    reference_first: float = 0.0
    reference_second: float = 0.0

    @property
    def tree(self) -> Tree:
        """The prompt with both responses."""
        return Tree(self.prompt_ids, (self.first_ids, self.second_ids))

    @property
    def num_tokens(self) -> int:
        """Tokens of its two sequences."""
        return 2 * len(self.prompt_ids) + len(self.first_ids) + len(self.second_ids)

    def fits(self, context_length: int) -> bool:
        """Whether the longer of its two sequences fits."""
        return len(self.prompt_ids) + max(len(self.first_ids), len(self.second_ids)) <= context_length


def encode_pairs(
    pairs: Sequence[LabelledPair], *, encoder: ChatEncoder, context_length: int, principles: Sequence[str] = ()
) -> tuple[list[EncodedPair], int]:
    """(pairs that fit the context, number of those that do not)."""
    encoded = [
        EncodedPair(
            prompt_ids=encoder.prompt(pair.conversation),
            first_ids=encoder.response(pair.first),
            second_ids=encoder.response(pair.second),
            probability_first=pair.probability_first,
            weight=pair.weight,
            votes=tuple(pair.votes.get(principle, math.nan) for principle in principles),
        )
        for pair in pairs
    ]
    fitting = [pair for pair in encoded if pair.fits(context_length)]
    if pairs and not fitting:
        raise InvalidInputError(f"every pair is longer than the model's context of {context_length} tokens")
    return fitting, len(encoded) - len(fitting)


@dataclass(frozen=True)
class PairTargets:
    """What a loss compares a model's values with."""

    probability_first_P: Tensor
    weights_P: Tensor
    votes_PK: Tensor
    reference_first_P: Tensor
    reference_second_P: Tensor


def targets_of(pairs: Sequence[EncodedPair], *, device: torch.device) -> PairTargets:
    """The pairs' labels as tensors."""
    return PairTargets(
        probability_first_P=torch.tensor([pair.probability_first for pair in pairs], device=device),
        weights_P=torch.tensor([pair.weight for pair in pairs], device=device),
        votes_PK=torch.tensor([pair.votes for pair in pairs], device=device),
        reference_first_P=torch.tensor([pair.reference_first for pair in pairs], device=device),
        reference_second_P=torch.tensor([pair.reference_second for pair in pairs], device=device),
    )


def pair_values(pairs: Sequence[EncodedPair], *, forward: Forward, layout: Layout) -> tuple[Tensor, Tensor]:
    """(values of the firsts, of the seconds), from one forward pass."""
    values = forward(layout.rows([pair.tree for pair in pairs]))
    return values[0::2], values[1::2]


@torch.no_grad()
def measure_pairs(
    pairs: Sequence[EncodedPair], *, forward: Forward, layout: Layout, max_tokens: int
) -> tuple[Tensor, Tensor]:
    """The values of any number of pairs, without gradient, on the CPU; each process computes its share for all."""
    first_P, second_P = torch.zeros(len(pairs)), torch.zeros(len(pairs))
    if not pairs:
        return first_P, second_P
    shared = len(pairs) >= processes.num_processes()
    trees = [pair.tree for pair in pairs]
    passes = layout.plan(trees, max_tokens=max_tokens, num_processes=processes.num_processes() if shared else 1)
    for group in passes[processes.rank() :: processes.num_processes()] if shared else passes:
        of_firsts, of_seconds = pair_values([pairs[position] for position in group], forward=forward, layout=layout)
        first_P[group], second_P[group] = of_firsts.float().cpu(), of_seconds.float().cpu()
    if shared:
        first_P, second_P = processes.sum_over_processes(torch.stack((first_P, second_P)))
    return first_P, second_P


def pair_quality(margins: Sequence[float], probabilities: Sequence[float]) -> dict[str, Any]:
    """How well margins of pairs never trained on predict the judge's labels; null where there is nothing to measure.

    `accuracy` is the share of the pairs without a tie whose better response has the higher reward, `brier` the mean
    squared distance of σ(margin) from the label's probability, `loss` the mean soft Bradley–Terry loss. Every pair
    counts the same.
    """
    if not margins:
        return {"num_pairs": 0, "accuracy": None, "brier": None, "loss": None}
    margin_P = torch.tensor(margins, dtype=torch.float64)
    probability_P = torch.tensor(probabilities, dtype=torch.float64)
    decided_P = (probability_P - 0.5).abs() > TIE_MARGIN
    agrees_P = (margin_P > 0) == (probability_P > 0.5)
    loss = soft_bradley_terry_loss(
        margin_P,
        rewards_second_P=torch.zeros_like(margin_P),
        probability_first_P=probability_P,
        weights_P=torch.ones_like(margin_P),
    )
    return {
        "num_pairs": len(margins),
        "accuracy": float(agrees_P[decided_P].double().mean()) if decided_P.any() else None,
        "brier": float((margin_P.sigmoid() - probability_P).square().mean()),
        "loss": float(loss),
    }
