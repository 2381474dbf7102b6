"""Which engine a service runs its model on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlaif.runtime.settings import SettingsModel

Dtype = Literal["auto", "float32", "bfloat16", "bfloat16_autocast"]
Attention = Literal["auto", "sdpa", "eager"]


class EngineSettings(SettingsModel):
    """How a causal language model is run; the model itself is named beside it."""

    kind: Literal["hf"] = "hf"
    """Library that runs the model: hf is transformers."""
    device: str = "cpu"
    """Torch device, for example "cpu" or "cuda:0"."""
    dtype: Dtype = "float32"
    """Precision: float32, bfloat16 weights, or float32 weights whose matrix products are bfloat16 (autocast).

    auto is bfloat16 on GPUs, autocast on CPUs that multiply bfloat16 natively, float32 on others.
    """
    attention: Attention = "auto"
    """Attention kernel. auto is eager for small models on CPUs, where it is the faster one, else sdpa."""
    num_threads: int = Field(default=0, ge=0, le=1024)
    """Threads of one matrix product; 0 leaves it to the library."""
    max_batch_tokens: int = Field(default=2048, ge=1)
    """Most tokens, padding included, in one forward pass over prompts; a longer prompt runs alone."""
    max_cache_tokens: int = Field(default=65536, ge=1)
    """Most tokens, padding included, whose keys and values are held while decoding."""
    context_length: int | None = Field(default=None, ge=2)
    """Longest prompt plus completion, tokens, where it should be shorter than the model's own."""
