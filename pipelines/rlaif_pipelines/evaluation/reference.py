"""Log-probabilities of given completions under a model that no service holds any more: the base policy.

Shapes: N completion tokens, flat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from rlaif_pipelines.training.model import PolicyLogprobs, load_policy, open_base
from rlaif_pipelines.training.packing import Tree, layout_for

_TOKENS_PER_BATCH: Final = 8192

Sequences = Sequence[tuple[Sequence[int], Sequence[int]]]
"""(prompt ids, completion ids), neither empty."""


def completion_logprobs(model_uri: str, sequences: Sequences) -> list[list[float]]:
    """Natural log-probability of each completion token, in float32."""
    base = open_base(model_uri)
    model = load_policy(base, precision="float32", attention="sdpa").eval()
    layout, policy = layout_for(model, pad_id=base.pad_id), PolicyLogprobs(model)
    trees = [Tree(tuple(prompt), (tuple(completion),)) for prompt, completion in sequences]
    found: list[list[float]] = [[] for _ in sequences]
    for batch in layout.plan(trees, max_tokens=_TOKENS_PER_BATCH):
        with torch.inference_mode():
            logprobs_N, _ = policy(*layout.rows([trees[index] for index in batch]).for_logprobs)
        rows = logprobs_N.split([len(sequences[index][1]) for index in batch])
        for index, row in zip(batch, rows, strict=True):
            found[index] = row.tolist()
    return found
