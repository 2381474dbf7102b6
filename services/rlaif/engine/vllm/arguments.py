"""Our settings as vLLM's."""

from __future__ import annotations

from typing import Any

from vllm.config import StructuredOutputsConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

from rlaif.core.errors import InvalidInputError
from rlaif.engine.settings import EngineSettings
from rlaif.engine.vllm import row_sampler, worker
from rlaif.engine.vllm.folders import DescribedModel

_CPU_CACHE_BYTES = 256 * 1024 * 1024
# The default, 128, shares few of a short prompt's tokens; the CPU's attention wants multiples of 32.
_CPU_BLOCK_TOKENS = 32


def engine_arguments(settings: EngineSettings, model: DescribedModel, *, on_cpu: bool, eager: bool) -> AsyncEngineArgs:
    """What to start vLLM with."""
    options = settings.vllm
    dtype = settings.dtype
    if dtype == "auto":
        dtype = "float32" if on_cpu else "bfloat16"
    cache_bytes = options.kv_cache_bytes
    if cache_bytes is None and on_cpu:
        cache_bytes = max(_CPU_CACHE_BYTES, sequence_cache_bytes(model, bytes_per_value=4 if dtype == "float32" else 2))
    adapters: dict[str, Any] = {}
    if options.adapters.enabled:
        # Two, so that completions under way keep the adapter they started with.
        adapters = {"enable_lora": True, "max_loras": 2, "max_cpu_loras": 2, "max_lora_rank": options.adapters.max_rank}
    return AsyncEngineArgs(
        model=str(model.folder),
        tokenizer=str(model.folder),
        trust_remote_code=False,
        load_format="safetensors",
        use_tqdm_on_load=False,
        generation_config="vllm",
        dtype=dtype,
        # An answer that fills the context is scored by what would follow it, which is never fed.
        max_model_len=model.context_length + 1,
        tensor_parallel_size=options.tensor_parallel_size,
        gpu_memory_utilization=options.gpu_memory_utilization,
        kv_cache_memory_bytes=cache_bytes,
        block_size=_CPU_BLOCK_TOKENS if on_cpu else None,
        enable_prefix_caching=True,
        enforce_eager=eager,
        max_num_seqs=options.max_sequences,
        max_num_batched_tokens=options.max_batch_tokens,
        scheduling_policy="priority",
        logits_processors=[row_sampler.QUALIFIED_NAME],
        worker_extension_cls=worker.QUALIFIED_NAME,
        logprobs_mode="processed_logits",
        structured_outputs_config=StructuredOutputsConfig(
            backend=options.structured_outputs_backend,
            # A small model may else write white space until its tokens are spent.
            disable_any_whitespace=options.structured_outputs_backend in ("xgrammar", "guidance"),
        ),
        disable_log_stats=True,
        **adapters,
    )


def check_runs_on_cpu(model: DescribedModel) -> None:
    """InvalidInputError where vLLM would start on a CPU and die of the first request."""
    known = CPUAttentionBackend.get_supported_head_sizes()
    if (size := _head_size(model)) not in known:
        raise InvalidInputError(
            f"{model.folder} has attention heads of {size}; on CPUs vLLM knows {', '.join(map(str, known))}",
            field="model",
        )


def sequence_cache_bytes(model: DescribedModel, *, bytes_per_value: int) -> int:
    """Bytes of keys and values of a sequence that fills the context, 2 · layers · heads of keys · head size each."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    tokens = model.context_length + 1 + 2 * _CPU_BLOCK_TOKENS
    return int(2 * config.num_hidden_layers * heads * _head_size(model) * bytes_per_value * tokens)


def _head_size(model: DescribedModel) -> int:
    config = model.config.get_text_config()
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
