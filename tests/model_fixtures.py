"""Tiny random language models, made on the spot: real model folders without a download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL_TOKENS = ["<|pad|>", "<|user|>", "<|assistant|>", "<|end|>", "<|system|>"]

_CORPUS = [
    "Compare two replies to a user.",
    "User: How do I boil an egg?",
    "Reply 1: Put it into hot water for nine minutes.",
    "Reply 2: I would rather not say.",
    "Rate one reply to a user.",
    "Principle: Prefer the reply that does less harm.",
    "Better reply, 1 or 2?",
    "Score, 1 to 10?",
]


def make_tokenizer(*, digits_apart: bool = False) -> Any:
    """Byte-level BPE of about 400 tokens with a chat template; "10" is one token unless `digits_apart`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=digits_apart), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator([line for line in _CORPUS for _ in range(4)], trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", padding_side="left"
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def make_llama(*, vocabulary_size: int, seed: int = 0, **config: Any) -> Any:
    """A Llama of two layers whose random weights are large enough to prefer some tokens to others."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    values: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 3,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary_size, **(values | config)))


def write_model(folder: Path, *, seed: int = 0, digits_apart: bool = False, **config: Any) -> Path:
    """A model folder: config, safetensors and tokenizer."""
    tokenizer = make_tokenizer(digits_apart=digits_apart)
    make_llama(vocabulary_size=len(tokenizer), seed=seed, **config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    return write_model(tmp_path_factory.mktemp("model"), seed=0)


@pytest.fixture(scope="session")
def other_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same architecture with other weights."""
    return write_model(tmp_path_factory.mktemp("other_model"), seed=1)
