"""How far the trained policy went from the base: KL of a sequence, from its own samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any


def sequence_kl(logprobs: Sequence[Sequence[float]], reference_logprobs: Sequence[Sequence[float]]) -> float:
    """Mean over samples of Σ_t log π(t) - log π_ref(t), in nats: the plain Monte Carlo estimate of KL(π ‖ π_ref).

    Unbiased and not clipped at zero: near the reference it may be slightly negative (estimator k1 of
    http://joschu.net/blog/kl-approx.html).
    """
    return fmean(sum(own) - sum(reference) for own, reference in zip(logprobs, reference_logprobs, strict=True))


def kl_to_base(rows: Sequence[Mapping[str, Any]], *, base: str | Path) -> float:
    """KL of a sequence between the policy that sampled the rows at temperature 1 and the base model, in nats."""
    from rlaif_pipelines.evaluation.reference import completion_logprobs

    sampled = [(row["prompt_token_ids"], row["completions"][0]) for row in rows if row["completions"][0]["token_ids"]]
    reference = completion_logprobs(str(base), [(prompt, completion["token_ids"]) for prompt, completion in sampled])
    return sequence_kl([completion["logprobs"] for _, completion in sampled], reference)
