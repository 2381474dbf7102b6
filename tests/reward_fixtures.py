"""Tiny random reward models, what transformers itself says of them, and a client beside the server's loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model_fixtures import make_tokenizer
from rlaif.client.reward import RewardClient
from rlaif.runtime.settings import ClientSettings


def write_reward_model(folder: Path, *, seed: int, num_labels: int = 1, **config: Any) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = make_tokenizer()
    values: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 3,
    }
    torch.manual_seed(seed)
    model_config = LlamaConfig(vocab_size=len(tokenizer), num_labels=num_labels, **(values | config))
    LlamaForSequenceClassification(model_config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


async def ask(settings: ClientSettings, use: Callable[[RewardClient], Any]) -> Any:
    """Runs blocking client code beside the server's loop."""

    def run() -> Any:
        with RewardClient(settings) as client:
            return use(client)

    return await asyncio.to_thread(run)


def reference_value(folder: Path, conversation: Any, response: str) -> float:
    """The classifier's own answer to the chat template's text, alone in its batch."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    turns = [{"role": message.role, "content": message.content} for message in conversation]
    text = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": response}], tokenize=False)
    with torch.no_grad():
        return float(model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits[0, 0])
