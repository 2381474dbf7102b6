"""Log-probabilities of given completions under a model that no service holds any more: the base policy.

Shapes: B sequences, T tokens, N completion tokens, flat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from rlaif_pipelines.training.model import PolicyLogprobs, load_policy, open_base

_TOKENS_PER_BATCH: Final = 8192

Sequences = Sequence[tuple[Sequence[int], Sequence[int]]]
"""(prompt ids, completion ids), neither empty."""


def completion_logprobs(model_uri: str, sequences: Sequences) -> list[list[float]]:
    """Natural log-probability of each completion token, in float32."""
    base = open_base(model_uri)
    policy = PolicyLogprobs(load_policy(base, precision="float32", attention="sdpa").eval())
    found: list[list[float]] = [[] for _ in sequences]
    for batch in _batches(sequences):
        ids_BT, mask_BT, completion_BT = _pad([sequences[index] for index in batch], pad_id=base.pad_id)
        with torch.inference_mode():
            logprobs_N, _ = policy(ids_BT, mask_BT, completion_BT)
        rows = logprobs_N.split([len(sequences[index][1]) for index in batch])
        for index, row in zip(batch, rows, strict=True):
            found[index] = row.tolist()
    return found


def _batches(sequences: Sequences) -> list[list[int]]:
    """Indices, similar lengths together, each batch holding about that many padded tokens."""
    lengths = [len(prompt) + len(completion) for prompt, completion in sequences]
    batches: list[list[int]] = [[]]
    for index in sorted(range(len(sequences)), key=lambda index: lengths[index]):
        if batches[-1] and lengths[index] * (len(batches[-1]) + 1) > _TOKENS_PER_BATCH:
            batches.append([])
        batches[-1].append(index)
    return [batch for batch in batches if batch]


def _pad(sequences: Sequences, *, pad_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, which of them are real, and which are completion tokens."""
    longest = max(len(prompt) + len(completion) for prompt, completion in sequences)
    ids_BT = torch.full((len(sequences), longest), pad_id, dtype=torch.long)
    mask_BT = torch.zeros(len(sequences), longest, dtype=torch.bool)
    completion_BT = torch.zeros(len(sequences), longest, dtype=torch.bool)
    for row, (prompt, completion) in enumerate(sequences):
        end = len(prompt) + len(completion)
        ids_BT[row, :end] = torch.tensor([*prompt, *completion])
        mask_BT[row, :end] = True
        completion_BT[row, len(prompt) : end] = True
    return ids_BT, mask_BT, completion_BT
