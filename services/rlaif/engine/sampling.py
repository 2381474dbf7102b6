"""Draws next tokens by inverse CDF, each row from its own stream of uniforms.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

_BLOCK = 64


def uniforms(seed: int, *, stream: int, completion: int, count: int) -> npt.NDArray[np.float64]:
    """The first `count` uniforms in [0, 1) of the stream (seed, stream, completion), one a token position.

    Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): the key names prompt and seed, the
    counter's last word the completion, so no two streams meet within 2^192 draws.
    """
    return _philox(seed, stream=stream, completion=completion).random(count)


class UniformStream:
    """The uniforms of one stream, one after the other."""

    def __init__(self, seed: int, *, stream: int, completion: int) -> None:
        self._generator = _philox(seed, stream=stream, completion=completion)
        self._block: Iterator[float] = iter(())

    def draw(self) -> float:
        """The next uniform in [0, 1)."""
        for value in self._block:
            return value
        self._block = iter(self._generator.random(_BLOCK).tolist())
        return next(self._block)


class Sampler:
    """Temperatures and nucleus masses of B rows."""

    def __init__(self, temperatures_B: torch.Tensor, top_ps_B: torch.Tensor) -> None:
        self._temperatures_B, self._top_ps_B = temperatures_B, top_ps_B
        self._greedy_B = temperatures_B == 0
        self._any_greedy, self._all_greedy = bool(self._greedy_B.any()), bool(self._greedy_B.all())
        self._any_nucleus = bool((top_ps_B < 1).any())
        # Greedy rows report log-probabilities at temperature 1.
        self._divisors_B1 = torch.where(self._greedy_B, 1.0, temperatures_B)[:, None]
        self._unit = bool((self._divisors_B1 == 1).all())

    def select(self, rows: torch.Tensor) -> Sampler:
        """The sampler of these rows alone."""
        return Sampler(self._temperatures_B[rows], self._top_ps_B[rows])

    def to(self, device: torch.device) -> Sampler:
        """This sampler with its tensors on `device`."""
        for name in ("_temperatures_B", "_top_ps_B", "_greedy_B", "_divisors_B1"):
            setattr(self, name, getattr(self, name).to(device, non_blocking=True))
        return self

    def draw(self, logits_BV: torch.Tensor, uniforms_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens_B, logprobs_B); log-probabilities at the sampling temperature, before top-p."""
        scaled_BV = logits_BV if self._unit else logits_BV / self._divisors_B1
        logprobs_BV = torch.log_softmax(scaled_BV, dim=-1)
        if self._all_greedy:
            tokens_B = logits_BV.argmax(dim=-1)
        else:
            probabilities_BV = logprobs_BV.exp()
            if self._any_nucleus:
                probabilities_BV = _nucleus(probabilities_BV, self._top_ps_B)
            tokens_B = _inverse_cdf(probabilities_BV, uniforms_B)
            if self._any_greedy:
                tokens_B = torch.where(self._greedy_B, logits_BV.argmax(dim=-1), tokens_B)
        return tokens_B, logprobs_BV.gather(-1, tokens_B[:, None])[:, 0]


def _philox(seed: int, *, stream: int, completion: int) -> np.random.Generator:
    key = np.array([seed, stream], dtype=np.uint64)
    counter = np.array([0, 0, 0, completion], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def _inverse_cdf(probabilities_BV: torch.Tensor, uniforms_B: torch.Tensor) -> torch.Tensor:
    """First token whose cumulative probability exceeds the uniform; one of probability 0 is never drawn."""
    cumulative_BV = probabilities_BV.cumsum(dim=-1, dtype=torch.float64)
    thresholds_B1 = uniforms_B[:, None] * cumulative_BV[:, -1:]
    tokens_B = torch.searchsorted(cumulative_BV, thresholds_B1, right=True)[:, 0]
    # A uniform just below 1 can round up to the total.
    return tokens_B.clamp_(max=probabilities_BV.shape[-1] - 1)


def _nucleus(probabilities_BV: torch.Tensor, top_ps_B: torch.Tensor) -> torch.Tensor:
    """Zero outside the smallest set of most probable tokens whose mass reaches top-p (Holtzman et al. 2020, §3.1)."""
    ordered_BV, order_BV = probabilities_BV.sort(dim=-1, descending=True, stable=True)
    before_BV = ordered_BV.cumsum(dim=-1, dtype=torch.float64) - ordered_BV
    kept_BV = torch.where(before_BV < top_ps_B[:, None], ordered_BV, 0.0)
    kept_BV = torch.where((top_ps_B < 1)[:, None], kept_BV, ordered_BV)
    return torch.zeros_like(probabilities_BV).scatter(-1, order_BV, kept_BV)
