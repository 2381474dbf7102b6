"""What our trainers and TRL's are given in `make bench-train`, and how a contender takes turns with the others."""

# ruff: noqa: N806 - tensors carry shape suffixes

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import Texts

from rlaif.playground.paths import POLICY_DIR

VOCABULARY = 32_000
MEAN_COMPLETION = 48
"""Tokens after which a completion ends, on average: a word is 1.3 tokens in HH-RLHF's harmless replies."""
_MARK = "@@ "


@dataclass(frozen=True)
class Workload:
    """The same for every contender."""

    folder: str
    steps: int
    """Optimiser steps of one repetition."""
    repetitions: int
    """Measured ones; one more goes before them, to warm up."""
    batch_pairs: int = 8
    prompts_per_step: int = 4
    group_size: int = 8
    max_tokens: int = 128
    learning_rate: float = 1e-5
    beta: float = 0.1
    kl_beta: float = 0.04
    micro_batch_tokens: int = 1024
    """Ours: most tokens of one pass."""
    trl_micro_batch: int = 8
    """TRL's: pairs, or completions times eight, of one pass."""
    trl_continuous_batching: bool = False

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return self.steps * (self.repetitions + 1)

    @property
    def policy(self) -> Path:
        """Folder of the model that everything starts from."""
        return Path(self.folder) / "policy"

    @property
    def labels(self) -> Path:
        """The pairs."""
        return Path(self.folder) / "labels.jsonl"

    @property
    def prompts(self) -> Path:
        """What completions are sampled for."""
        return Path(self.folder) / "prompts.jsonl"


class Turns:
    """A contender's side of the interleaving: it runs `steps` optimiser steps when told to, and says how it went."""

    def __init__(self, workload: Workload) -> None:
        self._steps = workload.steps
        self._done = 0
        self._began = 0.0
        self._losses: list[float] = []

    def begin(self) -> None:
        """Call before a step: waits for the turn where one begins."""
        if self._done % self._steps:
            return
        if not sys.stdin.readline():
            # Nobody listens any more.
            os._exit(0)
        self._losses = []
        self._began = time.perf_counter()

    def end(self, loss: float | None) -> None:
        """Call after a step: tells the turn's seconds where one ends."""
        self._done += 1
        self._losses.append(float("nan") if loss is None else loss)
        if self._done % self._steps == 0:
            seconds = time.perf_counter() - self._began
            turn = {"seconds": seconds, "losses": self._losses, "peak_rss_gb": peak_rss_gb()}
            print(_MARK + json.dumps(turn), flush=True)


def parse_turn(line: str) -> dict[str, Any] | None:
    """What `Turns` told; None where the line is something else."""
    return dict(json.loads(line.removeprefix(_MARK))) if line.startswith(_MARK) else None


def peak_rss_gb() -> float:
    """Largest resident memory of this process so far."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1e6


def cheap_reward(text: str) -> float:
    """A reward that costs nothing, and differs between texts."""
    return text.count("1") / (len(text) + 1)


def write_inputs(workload: Workload) -> None:
    """labels.jsonl, which prefers firsts and seconds in turn, for certain, and prompts.jsonl; lengths are HH-RLHF's."""
    texts = Texts(seed=3)
    labels = [
        {
            "label": f"labels/{number}",
            "prompt_id": f"prompt-{number}",
            "messages": [{"role": "user", "content": texts.prompt()}],
            "first": texts.response(),
            "second": texts.response(),
            "probability_first": float(number % 2),
            "weight": 1.0,
        }
        for number in range(workload.total_steps * workload.batch_pairs)
    ]
    prompts = [
        {"prompt_id": f"prompt-{number}", "messages": [{"role": "user", "content": texts.prompt()}], "split": "train"}
        for number in range(workload.total_steps * workload.prompts_per_step)
    ]
    for path, lines in ((workload.labels, labels), (workload.prompts, prompts)):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def make_policy(folder: Path, *, num_layers: int = 10) -> None:
    """A Llama with a vocabulary of 32,000; with ten layers it has 48 M random parameters.

    Its replies end after MEAN_COMPLETION tokens on average. Tokens beyond the playground's are never in a text that is
    read, but are sampled like any other.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(POLICY_DIR)
    tokenizer.model_max_length = 1024
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    known = state["model"]["vocab"]
    state["model"]["vocab"] = known | {f"Ġw{number}": number for number in range(len(tokenizer), VOCABULARY)}
    path.write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=num_layers,
        num_attention_heads=8,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    _end_replies(model, eos_id=tokenizer.eos_token_id, probability=1.0 / MEAN_COMPLETION)
    model.save_pretrained(folder)
    print(f"policy: {sum(weight.numel() for weight in model.parameters()) / 1e6:.1f} M parameters, float32")


def _end_replies(model: Any, *, eos_id: int, probability: float) -> None:
    """Turns the end-of-turn row of the output embedding to what all hidden states share, as far as it takes."""
    import torch

    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(5, VOCABULARY, (16, 96), generator=generator)
    with torch.no_grad():
        hidden_ND = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state[:, 8:].flatten(0, 1)
        weight_VD = model.get_output_embeddings().weight
        others_N = torch.cat([(part @ weight_VD.T).logsumexp(dim=-1) for part in hidden_ND.split(256)])
        shared_D = hidden_ND.mean(dim=0)
        along_N = hidden_ND @ (shared_D / shared_D.norm())
        low, high = 0.0, 50.0
        for _ in range(50):
            middle = (low + high) / 2
            too_often = float((along_N * middle - others_N).sigmoid().mean()) > probability
            low, high = (low, middle) if too_often else (middle, high)
        weight_VD[eos_id] = shared_D / shared_D.norm() * low
