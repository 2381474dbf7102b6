"""Labelled pairs as token ids, and what a model says of them.

Shape legend: P pairs; K principles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlaif_pipelines.training import engine as processes
from rlaif_pipelines.training.labels import LabelledPair, preferred_side
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
    margin: float = 0.0
    """Lead asked of the first response, negative where the second should lead; reward models only."""
    prompt_id: str = ""
    slices: Mapping[str, str] = field(default_factory=dict)
    """The slice of each dimension that it is measured in."""

    @property
    def tree(self) -> Tree:
        """The prompt with both responses."""
        return Tree(self.prompt_ids, (self.first_ids, self.second_ids))

    @property
    def num_tokens(self) -> int:
        """Tokens of its two sequences."""
        return 2 * len(self.prompt_ids) + len(self.first_ids) + len(self.second_ids)

    @property
    def preferred(self) -> int:
        """1 for the first response, -1 for the second, 0 for a tie."""
        return preferred_side(self.probability_first)

    def fits(self, context_length: int) -> bool:
        """Whether the longer of its two sequences fits."""
        return len(self.prompt_ids) + max(len(self.first_ids), len(self.second_ids)) <= context_length


def encode_pairs(
    pairs: Sequence[LabelledPair],
    *,
    encoder: ChatEncoder,
    context_length: int,
    principles: Sequence[str] = (),
    margin: float = 0.0,
) -> tuple[list[EncodedPair], int]:
    """(pairs that fit the context, number of those that do not). `margin` is what a sure label asks for."""
    encoded = [
        EncodedPair(
            prompt_ids=encoder.prompt(pair.conversation),
            first_ids=encoder.response(pair.first),
            second_ids=encoder.response(pair.second),
            probability_first=pair.probability_first,
            weight=pair.weight,
            votes=tuple(pair.votes.get(principle, math.nan) for principle in principles),
            margin=_margin(pair, of_sure_labels=margin),
            prompt_id=pair.prompt_id,
            slices=pair.slices,
        )
        for pair in pairs
    ]
    fitting = [pair for pair in encoded if pair.fits(context_length)]
    return fitting, len(encoded) - len(fitting)


def _margin(pair: LabelledPair, *, of_sure_labels: float) -> float:
    if pair.margin is not None:
        return pair.margin * pair.preferred
    return of_sure_labels * (2.0 * pair.probability_first - 1.0)


@dataclass(frozen=True)
class PairTargets:
    """What a loss compares a model's values with."""

    probability_first_P: Tensor
    weights_P: Tensor
    votes_PK: Tensor
    margins_P: Tensor
    reference_first_P: Tensor
    reference_second_P: Tensor
    num_tokens_first_P: Tensor
    num_tokens_second_P: Tensor


def targets_of(pairs: Sequence[EncodedPair], *, device: torch.device) -> PairTargets:
    """The pairs' labels as tensors."""

    def column(values: Iterable[Any]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.float32, device=device)

    return PairTargets(
        probability_first_P=column(pair.probability_first for pair in pairs),
        weights_P=column(pair.weight for pair in pairs),
        votes_PK=column(pair.votes for pair in pairs),
        margins_P=column(pair.margin for pair in pairs),
        reference_first_P=column(pair.reference_first for pair in pairs),
        reference_second_P=column(pair.reference_second for pair in pairs),
        num_tokens_first_P=column(len(pair.first_ids) for pair in pairs),
        num_tokens_second_P=column(len(pair.second_ids) for pair in pairs),
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
