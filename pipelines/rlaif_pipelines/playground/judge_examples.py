"""Prompts of the judge's four forms, tokenised and packed, with the side targets that an answer's making gives.

Prompts are built with the product's own `compact` template and tokenised by its rule: context and question apart, so
that all principles share one prefix. A batch packs each prefix once, with its questions as branches of a tree.

Shapes: B contexts, T tokens (prefix and branches), Q questions of the batch, N tokens to be written, R replies,
D dimensions.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

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

Form = Literal["compare", "score", "critique", "revise"]

_FIRST, _SECOND = "\x00", "\x01"


@dataclass(frozen=True)
class Context:
    """A tokenised judge context: ids, a class for each (or UNLABELLED), and the position after each reply."""

    ids: list[int]
    token_classes: list[int]
    reply_ends: list[int]


@dataclass(frozen=True)
class Packed:
    """Contexts with their questions as branches: every question sees its context and itself alone.

    What is to be written after a question stands in its branch. `written_ids_N` are those tokens, `written_rows_N` and
    `written_positions_N` where each is to be foretold.
    """

    ids_BT: torch.Tensor
    positions_BT: torch.Tensor
    mask_B1TT: torch.Tensor
    """Additive: 0 where attended, a large negative number elsewhere."""
    classes_BT: torch.Tensor
    verdict_rows_Q: torch.Tensor
    verdict_positions_Q: torch.Tensor
    written_rows_N: torch.Tensor
    written_positions_N: torch.Tensor
    written_ids_N: torch.Tensor
    reply_rows_R: torch.Tensor
    reply_positions_R: torch.Tensor


class JudgePrompts:
    """Builds and tokenises judge prompts; questions of verdicts are cached, for they are few."""

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
            self._questions[text] = [*self._encode([text])[0], *self._tail]
        return self._questions[text]

    def writing_questions(self, principles_and_critiques: Sequence[tuple[str, str | None]]) -> list[list[int]]:
        """Question and chat tail of each: what to criticise by a principle, or, given the critique, to revise."""
        texts = [
            COMPACT.criticism_question(principle)
            if critique is None
            else COMPACT.revision_question(principle, critique=critique)
            for principle, critique in principles_and_critiques
        ]
        return [[*ids, *self._tail] for ids in self._encode(texts)]

    def written(self, texts: Sequence[str]) -> list[list[int]]:
        """What the judge is to write, end of turn included."""
        return [[*ids, self._tail[0]] for ids in self._encode(texts)]

    def contexts(self, items: Sequence[tuple[Prompt, Sequence[str]]], *, form: Form) -> list[list[int]]:
        """Chat head and context of each (prompt, replies): two to be compared, else one."""
        texts = [_context_text(form, prompt, replies) for prompt, replies in items]
        return [[*self._head, *ids] for ids in self._encode(texts)]

    def labelled_contexts(self, items: Sequence[tuple[Form, Sequence[Answer]]]) -> list[Context]:
        """Contexts of composed answers, with the side targets that their making gives."""
        texts = [_context_text(form, answers[0].prompt, [answer.text for answer in answers]) for form, answers in items]
        encoded = self._tokenizer(
            texts, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        contexts = []
        for (form, answers), ids, offsets in zip(items, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            classes, ends = _side_targets(form, answers, offsets)
            contexts.append(Context([*self._head, *ids], [UNLABELLED, *classes], [end + 1 for end in ends]))
        return contexts

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return ids


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


def pack(
    contexts: Sequence[Context | list[int]],
    questions: Sequence[Sequence[list[int]]],
    written: Sequence[Sequence[list[int]]] | None = None,
    *,
    length: int | None = None,
) -> Packed:
    """One batch; `questions[i]` are the branches of `contexts[i]`, `written[i]` what is to be written after each.

    `length` is that of every row, at least the longest's; without it as short as can be.
    """
    import numpy as np
    import torch

    answers = written or [[[]] * len(branches) for branches in questions]
    bare = [context.ids if isinstance(context, Context) else context for context in contexts]
    longest = max(packed_length(*parts) for parts in zip(bare, questions, answers, strict=True))
    longest = round_up(longest, to=8) if length is None else length
    shape = (len(bare), longest)
    ids_BT, positions_BT = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    branch_BT = np.full(shape, -1, dtype=np.int16)  # 0 is the context, -1 the padding, which sees the context
    classes_BT = np.full(shape, UNLABELLED, dtype=np.int64)
    verdicts, replies, targets = [], [], []
    for row, (ids, branches, texts) in enumerate(zip(bare, questions, answers, strict=True)):
        size = len(ids)
        ids_BT[row, :size] = ids
        positions_BT[row, :size] = np.arange(size)
        branch_BT[row, :size] = 0
        context = contexts[row]
        if isinstance(context, Context):
            classes_BT[row, :size] = context.token_classes
            replies += [(row, end) for end in context.reply_ends]
        start = size
        for index, (branch, text) in enumerate(zip(branches, texts, strict=True), 1):
            verdict = start + len(branch) - 1
            verdicts.append((row, verdict))
            targets += [(row, verdict + offset, token) for offset, token in enumerate(text)]
            end = verdict + 1 + len(text[:-1])
            ids_BT[row, start:end] = branch + text[:-1]
            positions_BT[row, start:end] = np.arange(size, size + end - start)
            branch_BT[row, start:end] = index
            start = end
    branches_BT = torch.from_numpy(branch_BT)
    seen_BTT = (branches_BT[:, None, :] == 0) | (branches_BT[:, None, :] == branches_BT[:, :, None])
    seen_BTT &= torch.ones(longest, longest, dtype=torch.bool).tril()
    mask_B1TT = torch.zeros(len(bare), 1, longest, longest).masked_fill_(~seen_BTT[:, None], -1e4)
    verdict_index = torch.tensor(verdicts).reshape(-1, 2)
    reply_index = torch.tensor(replies, dtype=torch.long).reshape(-1, 2)
    written_index = torch.tensor(targets, dtype=torch.long).reshape(-1, 3)
    return Packed(
        ids_BT=torch.from_numpy(ids_BT),
        positions_BT=torch.from_numpy(positions_BT),
        mask_B1TT=mask_B1TT,
        classes_BT=torch.from_numpy(classes_BT),
        verdict_rows_Q=verdict_index[:, 0],
        verdict_positions_Q=verdict_index[:, 1],
        written_rows_N=written_index[:, 0],
        written_positions_N=written_index[:, 1],
        written_ids_N=written_index[:, 2],
        reply_rows_R=reply_index[:, 0],
        reply_positions_R=reply_index[:, 1],
    )


def packed_length(context: Sequence[int], questions: Sequence[list[int]], written: Sequence[list[int]]) -> int:
    """Tokens of one context with its branches; the last token written is foretold, never read."""
    return len(context) + sum(map(len, questions)) + sum(len(text[:-1]) for text in written)


def spread_over_scores(rating: float) -> list[float]:
    """Ten probabilities on the two scores next to the rating; their expected score is the rating."""
    rating = min(HIGHEST, max(LOWEST, rating))
    below = min(int(rating), 9)
    share = rating - below
    spread = [0.0] * 10
    spread[below - 1] = 1.0 - share
    spread[below] = share
    return spread


def _context_text(form: Form, prompt: Prompt, replies: Sequence[str]) -> str:
    conversation = (Message(role="user", content=prompt.text),)
    if form == "compare":
        return COMPACT.comparison(conversation, first=replies[0], second=replies[1])
    context = {"score": COMPACT.rating, "critique": COMPACT.criticism, "revise": COMPACT.revision}[form]
    return context(conversation, response=replies[0])


def _side_targets(
    form: Form, answers: Sequence[Answer], offsets: Sequence[tuple[int, int]]
) -> tuple[list[int], list[int]]:
    """A class for each token, and for each reply the token just after it."""
    prompt = answers[0].prompt
    frame = _context_text(form, prompt, [_FIRST, _SECOND][: len(answers)])
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
