"""Draws each completion's next token inside vLLM, from the same random streams and by the same rule as on transformers.

vLLM's own log-probabilities are those of temperature 1, or those of what top-p has left; a completion's are to be those
of its sampling temperature before top-p. So the token is drawn here, and the row of logits becomes that token at its
log-probability and -inf elsewhere: vLLM's greedy choice then takes the token, and its "processed logits" are the
log-probability. Rows that are only scored become log-probabilities over the whole vocabulary.

Runs in vLLM's own processes. Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates

from rlaif.engine.sampling import Sampler, uniforms

QUALIFIED_NAME = f"{__name__}:RowSampler"
_KEY = "rlaif_row"


@dataclass(frozen=True)
class SampledRow:
    """What one completion draws from; the stream is (seed, stream, completion)."""

    seed: int
    stream: int
    completion: int
    temperature: float
    top_p: float
    max_tokens: int

    def as_arguments(self) -> dict[str, Any]:
        """The row as vLLM's `extra_args`, which travel between processes."""
        return {_KEY: list(astuple(self))}


@dataclass(frozen=True)
class _Row:
    """A sampled row in vLLM's batch; `drawn` is the list to which vLLM appends each of its tokens."""

    temperature: float
    top_p: float
    uniforms_T: npt.NDArray[np.float64]
    drawn: Sequence[int]

    @property
    def uniform(self) -> float:
        """The draw for the next token; chunks of a prompt draw too, and are thrown away."""
        return float(self.uniforms_T[min(len(self.drawn), len(self.uniforms_T) - 1)])


class RowSampler(LogitsProcessor):
    """vLLM's logits processor that decides the tokens of sampled rows and normalises the others."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        del vllm_config, device, is_pin_memory
        self._rows: dict[int, _Row] = {}

    def is_argmax_invariant(self) -> bool:
        """It decides what the greedy choice is."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follows requests as they enter, leave and change places in the batch."""
        process_dict_updates(self._rows, batch_update, _entering_row)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of scored rows; of sampled rows the drawn token's alone."""
        places = sorted(place for place in self._rows if place < len(logits))
        if not places:
            return torch.log_softmax(logits, dim=-1)
        rows = [self._rows[place] for place in places]
        # Built on the CPU, so that looking at their values waits for no GPU.
        sampler = Sampler(
            torch.tensor([row.temperature for row in rows]),
            torch.tensor([row.top_p for row in rows], dtype=torch.float64),
        ).to(logits.device)
        uniforms_B = torch.tensor([row.uniform for row in rows], dtype=torch.float64)
        if len(places) == len(logits):
            return _drawn(logits, sampler, uniforms_B)
        places_B = torch.tensor(places).to(logits.device, non_blocking=True)
        drawn_BV = _drawn(logits[places_B], sampler, uniforms_B)
        logprobs_BV = torch.log_softmax(logits, dim=-1)
        logprobs_BV[places_B] = drawn_BV
        return logprobs_BV


def _entering_row(parameters: Any, prompt: Sequence[int] | None, drawn: Sequence[int]) -> _Row | None:
    """The row of a request that enters the batch; None for one that is only scored."""
    del prompt
    arguments = (parameters.extra_args or {}).get(_KEY)
    if arguments is None:
        return None
    row = SampledRow(*arguments)
    draws = uniforms(row.seed, stream=row.stream, completion=row.completion, count=row.max_tokens)
    return _Row(row.temperature, row.top_p, draws, drawn)


def _drawn(logits_BV: torch.Tensor, sampler: Sampler, uniforms_B: torch.Tensor) -> torch.Tensor:
    tokens_B, logprobs_B = sampler.draw(logits_BV, uniforms_B.to(logits_BV.device, non_blocking=True))
    drawn_BV = torch.full_like(logits_BV, float("-inf"))
    return drawn_BV.scatter_(-1, tokens_B[:, None], logprobs_B[:, None])
