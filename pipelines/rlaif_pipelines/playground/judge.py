"""Training of the playground's judge, from the policy's weights.

On verdicts alone a model this small stays at chance for hundreds of steps. Two side heads, thrown away afterwards,
show it what to look at: the role of every token at layer 2, and every rating at each reply's end at layer 3.

Critiques and revisions are learnt beside the verdicts, in batches of their own, from the tokens to be written alone.

Shapes: B contexts, T tokens, H hidden size, L positions where an answer is foretold, Q questions, R replies,
D dimensions, S scores, C token classes, V vocabulary.
"""

from __future__ import annotations

import copy
import random
from typing import TYPE_CHECKING, Final

from rlaif.playground.answers import ROLES, Role
from rlaif.playground.world import CATEGORIES
from rlaif_pipelines.playground.judge_batches import Batch, BatchSampler
from rlaif_pipelines.playground.judge_examples import NUM_TOKEN_CLASSES, UNLABELLED, JudgePrompts
from rlaif_pipelines.playground.models import learning_rate, optimizer_step
from rlaif_pipelines.playground.principles import DIMENSIONS
from rlaif_pipelines.playground.progress import Progress

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PEAK_LEARNING_RATE: Final = 1.5e-3
WARMUP_STEPS: Final = 50
ROLE_LAYER: Final = 2
RATING_LAYER: Final = 3
ROLE_LOSS_WEIGHT: Final = 1.0
RATING_LOSS_WEIGHT: Final = 2.0
ROLE_WEIGHTS: Final[dict[Role, float]] = {
    "right_fact": 12.0,
    "wrong_fact": 12.0,
    "right_step": 2.0,
    "wrong_step": 2.0,
    "harmful_step": 2.0,
    "wrong_harmful_step": 2.0,
}
"""Roles that only knowledge of the world tells apart; a fact is one token of twenty, and learnt last. Others: 1."""


def train_judge(
    policy: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    num_steps: int,
    progress: Progress,
) -> LlamaForCausalLM:
    """A judge that compares and rates replies by any one of the five principles, and criticises and revises them."""
    import torch
    import torch.nn.functional as functional

    torch.manual_seed(seed)
    model = copy.deepcopy(policy)
    model.train()
    hidden_size = model.config.hidden_size
    role_head = torch.nn.Linear(hidden_size, NUM_TOKEN_CLASSES)
    rating_head = torch.nn.Linear(hidden_size, len(DIMENSIONS))
    parameters = [*model.parameters(), *role_head.parameters(), *rating_head.parameters()]
    class_weights_C = torch.tensor([ROLE_WEIGHTS.get(role, 1.0) for role in ROLES] + [1.0] * len(CATEGORIES))
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    sampler = BatchSampler(JudgePrompts(tokenizer), random.Random(seed))  # noqa: S311 - not for secrets
    means = _RunningMeans()
    for step in range(num_steps):
        batch = sampler.next(progress=step / num_steps)
        packed = batch.packed
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = model.model(
                input_ids=packed.ids_BT,
                position_ids=packed.positions_BT,
                attention_mask=packed.mask_B1TT,
                use_cache=False,
                output_hidden_states=True,
            )
            rows_L, positions_L = batch.asked()
            logits_LV = model.lm_head(states.last_hidden_state[rows_L, positions_L])
            # Of every token, labelled or not: a fixed shape spares the matrix library a new kernel at every step.
            roles_BTC = role_head(states.hidden_states[ROLE_LAYER])
        reply_RH = states.hidden_states[RATING_LAYER][packed.reply_rows_R, packed.reply_positions_R].float()
        reply_RH = reply_RH / (reply_RH.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        answer_loss = _answer_loss(logits_LV.float(), batch)
        role_loss = functional.cross_entropy(
            roles_BTC.float().flatten(0, 1),
            packed.classes_BT.flatten(),
            weight=class_weights_C,
            ignore_index=UNLABELLED,
        )
        rating_loss = functional.smooth_l1_loss(rating_head(reply_RH), batch.ratings_RD)
        loss = answer_loss + ROLE_LOSS_WEIGHT * role_loss + RATING_LOSS_WEIGHT * rating_loss
        peak = learning_rate(step, num_steps=num_steps, peak=PEAK_LEARNING_RATE, warmup_steps=WARMUP_STEPS)
        optimizer_step(optimizer, loss, rate=peak)
        answered = {f"{batch.task}_loss": answer_loss.item()}
        means.add({**answered, "role_loss": role_loss.item(), "rating_loss": rating_loss.item()})
        progress("judge", step + 1, num_steps, means.values)
    return model


def _answer_loss(logits_LV: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Cross-entropy with the labels' probabilities, or with the tokens to be written."""
    import torch.nn.functional as functional

    if batch.task == "write":
        return functional.cross_entropy(logits_LV[: len(batch.packed.written_ids_N)], batch.packed.written_ids_N)
    # Over the whole vocabulary, so that nearly all mass comes to lie on the labels.
    logprobs_QS = functional.log_softmax(logits_LV[: len(batch.targets_QS)], -1)[:, batch.label_ids]
    return -(batch.targets_QS * logprobs_QS).sum(-1).mean()


class _RunningMeans:
    """Exponential means of the figures shown."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def add(self, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self.values[name] = 0.97 * self.values.get(name, value) + 0.03 * value
