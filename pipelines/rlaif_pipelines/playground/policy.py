"""Supervised fine-tuning of the playground's policy: it imitates the world's answers, good and bad alike.

Shapes: B sequences, T tokens, H hidden size, N answer tokens of the batch, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from rlaif.playground.answers import compose, sample_kind
from rlaif.playground.world import CATEGORIES, prompts_of
from rlaif_pipelines.playground.models import learning_rate, new_model, optimizer_step, round_up
from rlaif_pipelines.playground.progress import Progress
from rlaif_pipelines.playground.tokenizer import ASSISTANT, END, USER

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

BATCH_SIZE: Final = 64
PEAK_LEARNING_RATE: Final = 2e-3
WARMUP_STEPS: Final = 40
MEAN_ANSWER_TOKENS: Final = 20
IGNORED: Final = -100


def train_policy(
    tokenizer: PreTrainedTokenizerFast, *, seed: int, num_steps: int, progress: Progress
) -> LlamaForCausalLM:
    """A policy that answers the world's questions the way its composer does: often well, often harmfully."""
    import torch
    import torch.nn.functional as functional

    model = new_model(tokenizer, seed=seed)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    batches = _batches(tokenizer, random.Random(seed))  # noqa: S311 - not for secrets
    running = 0.0
    for step in range(num_steps):
        ids_BT, labels_BT = next(batches)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden_BTH = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state[:, :-1]
            wanted_N = answer_positions(labels_BT[:, 1:])
            logits_NV = model.lm_head(hidden_BTH.flatten(0, 1)[wanted_N])
        # Every answer token weighs the same: a mean over each batch of like lengths would favour short answers.
        loss = functional.cross_entropy(logits_NV.float(), labels_BT[:, 1:].flatten()[wanted_N], reduction="sum")
        loss = loss / (BATCH_SIZE * MEAN_ANSWER_TOKENS)
        rate = learning_rate(step, num_steps=num_steps, peak=PEAK_LEARNING_RATE, warmup_steps=WARMUP_STEPS)
        optimizer_step(optimizer, loss, rate=rate)
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        progress("policy", step + 1, num_steps, {"loss": running})
    return model


def answer_positions(labels_BT: torch.Tensor) -> torch.Tensor:
    """Flat indices of the labelled tokens, filled up with unlabelled ones to a multiple of 128.

    The matrix library compiles a kernel for every new shape; few shapes keep it from doing so at every step.
    """
    import torch

    flat = labels_BT.flatten()
    order = torch.argsort((flat == IGNORED).int(), stable=True)
    return order[: round_up(int((flat != IGNORED).sum()), to=128)]


def _batches(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of like lengths (right-padded): token ids, and labels on the answers alone."""
    import torch

    pools = {category: prompts_of("train", category=category) for category in CATEGORIES}
    while True:
        questions, replies = [], []
        for _ in range(BATCH_SIZE * 4):
            category = rng.choice(CATEGORIES)
            prompt = rng.choice(pools[category])
            questions.append(f"{USER}{prompt.text}{END}{ASSISTANT}")
            replies.append(compose(rng, prompt, sample_kind(rng, category)).text + END)
        question_ids = tokenizer(questions, add_special_tokens=False)["input_ids"]
        reply_ids = tokenizer(replies, add_special_tokens=False)["input_ids"]
        pairs = sorted(zip(question_ids, reply_ids, strict=True), key=lambda pair: len(pair[0]) + len(pair[1]))
        chunks = [pairs[start : start + BATCH_SIZE] for start in range(0, len(pairs), BATCH_SIZE)]
        rng.shuffle(chunks)
        for chunk in chunks:
            longest = round_up(max(len(question) + len(reply) for question, reply in chunk), to=8)
            ids_BT = torch.full((len(chunk), longest), tokenizer.pad_token_id)
            labels_BT = torch.full((len(chunk), longest), IGNORED)
            for row, (question, reply) in enumerate(chunk):
                end = len(question) + len(reply)
                ids_BT[row, :end] = torch.tensor(question + reply)
                labels_BT[row, len(question) : end] = torch.tensor(reply)
            yield ids_BT, labels_BT
