"""Draws each completion's next token inside vLLM, from the same random streams and by the same rule as on transformers.

vLLM's own log-probabilities are those of temperature 1, or those of what top-p has left; a completion's are to be those
of its sampling temperature before top-p. So the token is drawn here, and the row of logits becomes that token at its
log-probability and -inf elsewhere: vLLM's greedy choice then takes the token, and its "processed logits" are the
log-probability. Rows that are only scored become log-probabilities over the whole vocabulary.

Runs in vLLM's own processes. Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor

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
    prompt_length: int
    max_tokens: int

    def as_arguments(self) -> dict[str, Any]:
        """The row as vLLM's `extra_args`, which travel between processes."""
        return {_KEY: list(astuple(self))}


@dataclass(frozen=True)
class _Row:
    temperature: float
    top_p: float
    prompt_length: int
    uniforms_T: npt.NDArray[np.float64]

    def uniform(self, sequence_length: int) -> float:
        """The draw for the token after `sequence_length` tokens; chunks of a prompt draw too, and are thrown away."""
        step = min(max(sequence_length - self.prompt_length, 0), len(self.uniforms_T) - 1)
        return float(self.uniforms_T[step])


class RowSampler(LogitsProcessor):
    """vLLM's logits processor that decides the tokens of sampled rows and normalises the others."""

    def __init__(self, vllm_config: Any, req_states: Any) -> None:
        del vllm_config, req_states
        self._rows: dict[int, _Row | None] = {}

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Takes a request into the slot `req_idx`, whatever was there before."""
        arguments = (sampling_params.extra_args or {}).get(_KEY)
        self._rows[req_idx] = None if arguments is None else _row(SampledRow(*arguments))
        return True

    def apply(self, logits: torch.Tensor, ctx: Any) -> torch.Tensor:
        """Log-probabilities of scored rows; of sampled rows the drawn token's alone."""
        rows = [self._rows.get(slot) for slot in ctx.idx_mapping_np.tolist()]
        sampled = [(index, row) for index, row in enumerate(rows) if row is not None]
        if not sampled:
            return torch.log_softmax(logits, dim=-1)
        lengths = ctx.seq_lens_upper_bound_np.tolist()
        # Built on the CPU, so that looking at their values waits for no GPU.
        sampler = Sampler(
            torch.tensor([row.temperature for _, row in sampled]),
            torch.tensor([row.top_p for _, row in sampled], dtype=torch.float64),
        ).to(logits.device)
        uniforms_B = torch.tensor([row.uniform(lengths[index]) for index, row in sampled], dtype=torch.float64)
        if len(sampled) == len(rows):
            return _drawn(logits, sampler, uniforms_B)
        places_B = torch.tensor([index for index, _ in sampled]).to(logits.device, non_blocking=True)
        drawn_BV = _drawn(logits[places_B], sampler, uniforms_B)
        logprobs_BV = torch.log_softmax(logits, dim=-1)
        logprobs_BV[places_B] = drawn_BV
        return logprobs_BV


def _row(row: SampledRow) -> _Row:
    draws = uniforms(row.seed, stream=row.stream, completion=row.completion, count=row.max_tokens)
    return _Row(row.temperature, row.top_p, row.prompt_length, draws)


def _drawn(logits_BV: torch.Tensor, sampler: Sampler, uniforms_B: torch.Tensor) -> torch.Tensor:
    tokens_B, logprobs_B = sampler.draw(logits_BV, uniforms_B.to(logits_BV.device, non_blocking=True))
    drawn_BV = torch.full_like(logits_BV, float("-inf"))
    return drawn_BV.scatter_(-1, tokens_B[:, None], logprobs_B[:, None])
