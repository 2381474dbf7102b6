"""Which engine a service runs its model on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlaif.engine.openai.settings import OpenAiSettings
from rlaif.engine.vllm.settings import VllmSettings
from rlaif.runtime.settings import SettingsModel

EngineKind = Literal["hf", "vllm", "openai"]
Dtype = Literal["auto", "float32", "bfloat16", "bfloat16_autocast"]
Attention = Literal["auto", "sdpa", "eager"]


class EngineSettings(SettingsModel):
    """How a causal language model is run; the model itself is named beside it."""

    kind: EngineKind = "hf"
    """What runs the model: hf is transformers, vllm is vLLM in this process, openai a server with that protocol."""
    device: str = "cpu"
    """Torch device of hf, for example "cpu" or "cuda:0"; vLLM's is its build's."""
    dtype: Dtype = "float32"
    """Precision: float32, bfloat16 weights, or float32 weights whose matrix products are bfloat16 (autocast).

    auto is bfloat16 on GPUs, on CPUs that multiply bfloat16 natively autocast (hf), else float32. vLLM has no autocast.
    """
    attention: Attention = "auto"
    """Attention kernel of hf. auto is eager for small models on CPUs, where it is the faster one, else sdpa."""
    num_threads: int = Field(default=0, ge=0, le=1024)
    """Threads of one matrix product; 0 leaves it to the library."""
    max_batch_tokens: int = Field(default=2048, ge=1)
    """hf: most tokens, padding included, in one forward pass over prompts; a longer prompt runs alone, in pieces."""
    max_cache_tokens: int = Field(default=65536, ge=1)
    """hf: most tokens, padding included, whose keys and values are held while decoding; a longer row runs alone."""
    continuous_batching: bool = False
    """hf: let calls join the running batch between tokens: faster, but floats then vary in their last bits."""
    context_length: int | None = Field(default=None, ge=2)
    """Longest prompt plus completion, tokens, where it should be shorter than the model's own."""
    vllm: VllmSettings = VllmSettings()
    """Options of vLLM alone."""
    openai: OpenAiSettings = OpenAiSettings()
    """The server, for kind openai; the model is then the name by which the server knows it."""

    @property
    def shares_batches(self) -> bool:
        """Whether calls that overlap share the engine's batches; else each is to be a batch of its own."""
        return self.kind != "hf" or self.continuous_batching
