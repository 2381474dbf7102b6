"""Training examples of the judge: a pair or a single reply, some principles, what to say of each, and side targets.

Prompts are built with the product's own `compact` template and tokenised by its rule: context and question apart, so
that all principles share one prefix. A batch packs each prefix once, with its questions as branches of a tree.

Shapes: B contexts, T tokens (prefix and branches), Q questions of the batch, R replies, D dimensions.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rlaif.core.conversation import Message
from rlaif.core.template import COMPACT
from rlaif.playground.answers import (
    CORRUPTIONS,
    KIND_WEIGHTS,
    ROLES,
    Answer,
    Kind,
    compose,
    corrupt,
    sample_kind,
)
from rlaif.playground.world import CATEGORIES, Prompt
from rlaif_pipelines.playground.models import round_up
from rlaif_pipelines.playground.rubric import HIGHEST, LOWEST
from rlaif_pipelines.playground.tokenizer import ASSISTANT, END, USER

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

SCRAMBLED_RATE: Final = 0.08
UNIFORM_KIND_RATE: Final = 0.45
CORRUPTED_RATE: Final = 0.2
UNLABELLED: Final = -100

NUM_TOKEN_CLASSES: Final = len(ROLES) + len(CATEGORIES)
"""Side target of every reply token: its role. Of the token that ends the user's line: the prompt's category."""

_FIRST, _SECOND = "\x00", "\x01"


@dataclass(frozen=True)
class Context:
    """A tokenised judge context: ids, a class for each (or UNLABELLED), and the position after each reply."""

    ids: list[int]
    token_classes: list[int]
    reply_ends: list[int]


@dataclass(frozen=True)
class Packed:
    """Contexts with their questions as branches: every question sees its context and itself alone."""

    ids_BT: torch.Tensor
    positions_BT: torch.Tensor
    mask_B1TT: torch.Tensor
    """Additive: 0 where attended, a large negative number elsewhere."""
    classes_BT: torch.Tensor
    verdict_rows_Q: torch.Tensor
    verdict_positions_Q: torch.Tensor
    reply_rows_R: torch.Tensor
    reply_positions_R: torch.Tensor


class JudgePrompts:
    """Builds and tokenises judge prompts; questions are cached, for they are few."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._questions: dict[str, list[int]] = {}
        self._head = tokenizer.convert_tokens_to_ids([USER])
        self._tail = tokenizer.convert_tokens_to_ids([END, ASSISTANT])

    def label_ids(self, labels: Sequence[str]) -> list[int]:
        """The token of each label."""
        ids: list[int] = self._tokenizer.convert_tokens_to_ids(list(labels))
        return ids

    def question(self, wording: str, *, compare: bool) -> list[int]:
        """Question and chat tail of one principle."""
        text = COMPACT.comparison_question(wording) if compare else COMPACT.rating_question(wording)
        if text not in self._questions:
            ids = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            self._questions[text] = [*ids, *self._tail]
        return self._questions[text]

    def contexts(self, items: Sequence[tuple[Prompt, Sequence[str]]]) -> list[list[int]]:
        """Chat head and context of each (prompt, one or two replies)."""
        texts = [_context_text(prompt, replies) for prompt, replies in items]
        encoded = self._tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [[*self._head, *ids] for ids in encoded]

    def labelled_contexts(self, items: Sequence[Sequence[Answer]]) -> list[Context]:
        """Contexts of composed answers, with the side targets that their making gives."""
        texts = [_context_text(answers[0].prompt, [answer.text for answer in answers]) for answers in items]
        encoded = self._tokenizer(
            texts, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        contexts = []
        for answers, ids, offsets in zip(items, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            classes, ends = _side_targets(answers, offsets)
            contexts.append(Context([*self._head, *ids], [UNLABELLED, *classes], [end + 1 for end in ends]))
        return contexts


def sample_answer(rng: random.Random, prompt: Prompt) -> Answer:
    """An answer the judge may meet: any kind, now and then scrambled or corrupted."""
    draw = rng.random()
    kind: Kind
    if draw < SCRAMBLED_RATE:
        kind = "scrambled"
    elif draw < SCRAMBLED_RATE + UNIFORM_KIND_RATE:
        kind = rng.choice(list(KIND_WEIGHTS[prompt.category]))
    else:
        kind = sample_kind(rng, prompt.category)
    answer = compose(rng, prompt, kind)
    return corrupt(rng, answer, rng.choice(CORRUPTIONS)) if rng.random() < CORRUPTED_RATE else answer


def pack(contexts: Sequence[Context | list[int]], questions: Sequence[Sequence[list[int]]]) -> Packed:
    """One batch; `questions[i]` are the branches of `contexts[i]`."""
    import torch

    bare = [context.ids if isinstance(context, Context) else context for context in contexts]
    longest = max(len(ids) + sum(map(len, branches)) for ids, branches in zip(bare, questions, strict=True))
    longest = round_up(longest, to=8)
    batch = len(bare)
    ids_BT = torch.zeros(batch, longest, dtype=torch.long)
    positions_BT = torch.zeros(batch, longest, dtype=torch.long)
    seen_BTT = torch.zeros(batch, longest, longest, dtype=torch.bool)
    classes_BT = torch.full((batch, longest), UNLABELLED)
    causal_TT = torch.ones(longest, longest, dtype=torch.bool).tril()
    verdicts, replies = [], []
    for row, (ids, branches) in enumerate(zip(bare, questions, strict=True)):
        size = len(ids)
        ids_BT[row, :size] = torch.tensor(ids)
        positions_BT[row, :size] = torch.arange(size)
        seen_BTT[row, :size, :size] = causal_TT[:size, :size]
        context = contexts[row]
        if isinstance(context, Context):
            classes_BT[row, :size] = torch.tensor(context.token_classes)
            replies += [(row, end) for end in context.reply_ends]
        start = size
        for branch in branches:
            end = start + len(branch)
            ids_BT[row, start:end] = torch.tensor(branch)
            positions_BT[row, start:end] = torch.arange(size, size + len(branch))
            seen_BTT[row, start:end, :size] = True
            seen_BTT[row, start:end, start:end] = causal_TT[: len(branch), : len(branch)]
            verdicts.append((row, end - 1))
            start = end
        seen_BTT[row, start:, 0] = True
    mask_B1TT = torch.zeros(batch, 1, longest, longest).masked_fill_(~seen_BTT[:, None], -1e4)
    verdict_index = torch.tensor(verdicts).reshape(-1, 2)
    reply_index = torch.tensor(replies, dtype=torch.long).reshape(-1, 2)
    return Packed(
        ids_BT=ids_BT,
        positions_BT=positions_BT,
        mask_B1TT=mask_B1TT,
        classes_BT=classes_BT,
        verdict_rows_Q=verdict_index[:, 0],
        verdict_positions_Q=verdict_index[:, 1],
        reply_rows_R=reply_index[:, 0],
        reply_positions_R=reply_index[:, 1],
    )


def spread_over_scores(rating: float) -> list[float]:
    """Ten probabilities on the two scores next to the rating; their expected score is the rating."""
    rating = min(HIGHEST, max(LOWEST, rating))
    below = min(int(rating), 9)
    share = rating - below
    spread = [0.0] * 10
    spread[below - 1] = 1.0 - share
    spread[below] = share
    return spread


def _context_text(prompt: Prompt, replies: Sequence[str]) -> str:
    conversation = (Message(role="user", content=prompt.text),)
    if len(replies) == 1:
        return COMPACT.rating(conversation, response=replies[0])
    return COMPACT.comparison(conversation, first=replies[0], second=replies[1])


def _side_targets(answers: Sequence[Answer], offsets: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """A class for each token, and for each reply the token just after it."""
    prompt = answers[0].prompt
    frame = _context_text(prompt, [_FIRST, _SECOND][: len(answers)])
    starts = [frame.index(mark) for mark in (_FIRST, _SECOND)[: len(answers)]]
    if len(starts) == 2:
        starts[1] += len(answers[0].text) - 1
    prompt_end = frame.index(prompt.text) + len(prompt.text)
    class_at: dict[int, int] = {prompt_end: len(ROLES) + CATEGORIES.index(prompt.category)}
    for start, answer in zip(starts, answers, strict=True):
        position = start
        for word in answer.words:
            role = ROLES.index(answer.role_of(word))
            class_at.update(dict.fromkeys(range(position, position + len(word.text)), role))
            position += len(word.text) + 1
    ends = [start + len(answer.text) for start, answer in zip(starts, answers, strict=True)]
    classes = [class_at.get(stop - 1, UNLABELLED) for _, stop in offsets]
    return classes, [next(index for index, (_, stop) in enumerate(offsets) if stop > end) for end in ends]
