"""The shape of the playground's models, and how they are saved: Llama of about one million parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

HIDDEN_SIZE: Final = 128
NUM_LAYERS: Final = 4
NUM_HEADS: Final = 4
FEED_FORWARD_SIZE: Final = 384
MAX_POSITIONS: Final = 512


def new_model(tokenizer: PreTrainedTokenizerFast, *, seed: int) -> LlamaForCausalLM:
    """An untrained model, fp32. Eager attention: faster than SDPA at this size, and it takes our tree masks."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN_SIZE,
        intermediate_size=FEED_FORWARD_SIZE,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=NUM_HEADS,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.02,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")
    return model


def load_model(folder: Path) -> LlamaForCausalLM:
    """A saved model in fp32, ready to be trained further."""
    import torch
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(
        str(folder), dtype=torch.float32, attn_implementation="eager", local_files_only=True, use_safetensors=True
    )


def save_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """A plain Hugging Face folder: bf16 safetensors, configuration, tokenizer with chat template."""
    import copy

    import torch

    half = copy.deepcopy(model).to(torch.bfloat16)
    half.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def learning_rate(step: int, *, num_steps: int, peak: float, warmup_steps: int) -> float:
    """Linear warm-up, then a cosine down to 2 % of the peak."""
    warmth = min(1.0, (step + 1) / warmup_steps)
    return peak * warmth * (0.5 * (1.0 + math.cos(math.pi * step / num_steps)) + 0.02)


@contextmanager
def deterministic(*, seed: int, threads: int) -> Iterator[None]:
    """Inside, torch runs on `threads` threads with deterministic kernels; what was set before is put back."""
    import torch

    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


def optimizer_step(optimizer: torch.optim.Optimizer, loss: torch.Tensor, *, rate: float) -> None:
    """One AdamW update at that rate, gradients clipped to norm 1."""
    import torch

    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = rate
        torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
    optimizer.step()
    optimizer.zero_grad()


def round_up(number: int, *, to: int) -> int:
    """The next multiple."""
    return -(-number // to) * to
