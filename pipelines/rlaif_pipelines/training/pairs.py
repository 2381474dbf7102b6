"""Labelled pairs as token ids, what a model says of them, and how well that agrees with the labels.

Shape legend: B sequences; T tokens; P pairs; K principles. P pairs are 2P sequences, all firsts before all seconds.
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
from rlaif_pipelines.training.config.common import EngineSettings
from rlaif_pipelines.training.data import LabelledPair, pad, plan_micro_batches
from rlaif_pipelines.training.losses import soft_bradley_terry_loss
from rlaif_pipelines.training.tokens import ChatEncoder

_BUCKETS = 4

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]
"""One value or row of values a sequence, from (ids_BT, mask_BT, response_BT); the last marks the responses' tokens."""


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


def pair_values(
    pairs: Sequence[EncodedPair], *, forward: Forward, settings: EngineSettings, pad_id: int
) -> tuple[Tensor, Tensor]:
    """(values of the firsts, of the seconds). The sequences run sorted by length, whichever pair they are of.

    Padding a pair to its longer side, and a batch to its longest pair, would double the work.
    """
    sequences = [(pair.prompt_ids, pair.first_ids) for pair in pairs] + [
        (pair.prompt_ids, pair.second_ids) for pair in pairs
    ]
    lengths = [len(prompt) + len(response) for prompt, response in sequences]
    # ZeRO-3 gathers weights at every pass, so all processes must make the same number of passes.
    max_tokens = (
        max(lengths) * 2 * len(lengths) if settings.zero_stage == 3 else settings.micro_batch_tokens // _BUCKETS
    )
    buckets = plan_micro_batches(lengths, max_tokens=max(1, max_tokens))
    values = []
    for bucket in buckets:
        ids_BT, mask_BT = pad([sum(sequences[position], ()) for position in bucket], pad_id=pad_id)
        prompt_lengths_B = torch.tensor([len(sequences[position][0]) for position in bucket])
        response_BT = mask_BT & (torch.arange(ids_BT.shape[1]) >= prompt_lengths_B[:, None])
        values.append(forward(ids_BT, mask_BT, response_BT))
    order = torch.tensor([position for bucket in buckets for position in bucket])
    first_P, second_P = torch.cat(values)[order.argsort().to(values[0].device)].chunk(2)
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
