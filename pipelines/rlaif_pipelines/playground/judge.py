"""Training of the playground's judge, from the policy's weights.

On verdicts alone a model this small stays at chance for hundreds of steps. Two side heads, thrown away afterwards,
show it what to look at: the role of every token at layer 2, and every rating at each reply's end at layer 3.

Shapes: B contexts, T tokens, H hidden size, Q questions, R replies, D dimensions, S scores, C token classes,
V vocabulary.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rlaif.core.template import SCORE_LABELS, VERDICT_LABELS
from rlaif.playground.answers import ROLES, Answer, Role
from rlaif.playground.world import CATEGORIES, Category, prompts_of
from rlaif_pipelines.playground.judge_examples import (
    NUM_TOKEN_CLASSES,
    UNLABELLED,
    JudgePrompts,
    Packed,
    pack,
    sample_answer,
    spread_over_scores,
)
from rlaif_pipelines.playground.models import learning_rate, optimizer_step
from rlaif_pipelines.playground.principles import DIMENSIONS, TRAINED_WORDINGS, Dimension
from rlaif_pipelines.playground.progress import Progress
from rlaif_pipelines.playground.rubric import probability_first, rate

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PAIRS_PER_BATCH: Final = 24
REPLIES_PER_BATCH: Final = 36
PRINCIPLES_PER_CONTEXT: Final = 3
PEAK_LEARNING_RATE: Final = 1.5e-3
WARMUP_STEPS: Final = 50
TIE_DRAW_WEIGHT: Final = 0.25
"""A principle on which the pair is even is drawn this often, against 1 for one that tells the two apart."""
SCORE_SHARE: Final = 0.45
SCORE_SHARE_AT_START: Final = 0.8
"""Single replies are easier: they come first, and fall to SCORE_SHARE over the first fifth."""
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
CATEGORY_WEIGHTS: Final[dict[Category, float]] = {"fact": 0.4, "howto": 0.2, "borderline": 0.2, "harmful": 0.2}


@dataclass(frozen=True)
class Batch:
    """Packed prompts with their targets."""

    packed: Packed
    label_ids: list[int]
    targets_QS: torch.Tensor
    """Probability of each label."""
    ratings_RD: torch.Tensor
    """About -1 to 1."""


def train_judge(
    policy: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    num_steps: int,
    progress: Progress,
) -> LlamaForCausalLM:
    """A judge that compares and rates replies by any one of the five principles."""
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
    sampler = _BatchSampler(JudgePrompts(tokenizer), random.Random(seed))  # noqa: S311 - not for secrets
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
            verdict_QH = states.last_hidden_state[packed.verdict_rows_Q, packed.verdict_positions_Q]
            logits_QV = model.lm_head(verdict_QH)
            # Of every token, labelled or not: a fixed shape spares the matrix library a new kernel at every step.
            roles_BTC = role_head(states.hidden_states[ROLE_LAYER])
        reply_RH = states.hidden_states[RATING_LAYER][packed.reply_rows_R, packed.reply_positions_R].float()
        reply_RH = reply_RH / (reply_RH.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        # Over the whole vocabulary, so that nearly all mass comes to lie on the labels.
        logprobs_QS = functional.log_softmax(logits_QV.float(), -1)[:, batch.label_ids]
        verdict_loss = -(batch.targets_QS * logprobs_QS).sum(-1).mean()
        role_loss = functional.cross_entropy(
            roles_BTC.float().flatten(0, 1),
            packed.classes_BT.flatten(),
            weight=class_weights_C,
            ignore_index=UNLABELLED,
        )
        rating_loss = functional.smooth_l1_loss(rating_head(reply_RH), batch.ratings_RD)
        loss = verdict_loss + ROLE_LOSS_WEIGHT * role_loss + RATING_LOSS_WEIGHT * rating_loss
        peak = learning_rate(step, num_steps=num_steps, peak=PEAK_LEARNING_RATE, warmup_steps=WARMUP_STEPS)
        optimizer_step(optimizer, loss, rate=peak)
        form = "compare_loss" if len(batch.label_ids) == len(VERDICT_LABELS) else "score_loss"
        means.add({form: verdict_loss.item(), "role_loss": role_loss.item(), "rating_loss": rating_loss.item()})
        progress("judge", step + 1, num_steps, means.values)
    return model


class _BatchSampler:
    """Draws batches of one form at a time."""

    def __init__(self, prompts: JudgePrompts, rng: random.Random) -> None:
        self._prompts = prompts
        self._rng = rng
        self._pools = {category: prompts_of("train", category=category) for category in CATEGORIES}
        self._verdict_ids = prompts.label_ids(VERDICT_LABELS)
        self._score_ids = prompts.label_ids(SCORE_LABELS)

    def next(self, *, progress: float) -> Batch:
        """A batch; `progress` runs from 0 to 1 over the training."""
        score_share = max(SCORE_SHARE, SCORE_SHARE_AT_START - (SCORE_SHARE_AT_START - SCORE_SHARE) * progress / 0.2)
        compare = self._rng.random() >= score_share
        num_replies = 2 if compare else 1
        items = [self._replies(num_replies) for _ in range(PAIRS_PER_BATCH if compare else REPLIES_PER_BATCH)]
        questions, targets, side = [], [], []
        for replies in items:
            ratings = [rate(reply) for reply in replies]
            side += [[(rating[dimension] - 5.5) / 4.5 for dimension in DIMENSIONS] for rating in ratings]
            if compare:
                chances = {name: probability_first(ratings[0][name], ratings[1][name]) for name in DIMENSIONS}
                chosen = self._principles(chances)
                targets += [[chances[name], 1.0 - chances[name]] for name in chosen]
            else:
                chosen = self._rng.sample(DIMENSIONS, PRINCIPLES_PER_CONTEXT)
                targets += [spread_over_scores(ratings[0][name]) for name in chosen]
            questions.append(
                [self._prompts.question(self._rng.choice(TRAINED_WORDINGS[name]), compare=compare) for name in chosen]
            )
        return _batch(
            pack(self._prompts.labelled_contexts(items), questions),
            label_ids=self._verdict_ids if compare else self._score_ids,
            targets=targets,
            ratings=side,
        )

    def _replies(self, number: int) -> list[Answer]:
        category = self._rng.choices(list(CATEGORY_WEIGHTS), list(CATEGORY_WEIGHTS.values()))[0]
        prompt = self._rng.choice(self._pools[category])
        return [sample_answer(self._rng, prompt) for _ in range(number)]

    def _principles(self, chances: dict[Dimension, float]) -> list[Dimension]:
        """Principles of one pair, drawn without replacement, even ones more seldom (Efraimidis and Spirakis 2006)."""

        def key(name: Dimension) -> float:
            even = abs(chances[name] - 0.5) < 0.1
            return self._rng.random() ** (1.0 / (TIE_DRAW_WEIGHT if even else 1.0))

        return sorted(DIMENSIONS, key=key, reverse=True)[:PRINCIPLES_PER_CONTEXT]


class _RunningMeans:
    """Exponential means of the figures shown."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def add(self, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self.values[name] = 0.97 * self.values.get(name, value) + 0.03 * value


def _batch(
    packed: Packed, *, label_ids: list[int], targets: Sequence[Sequence[float]], ratings: Sequence[Sequence[float]]
) -> Batch:
    import torch

    return Batch(packed, label_ids, torch.tensor(targets), torch.tensor(ratings))
