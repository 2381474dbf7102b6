"""Batches for the judge: which replies, which principles, and what the right answer is.

Every batch has the same number of tokens, in rows of one of a few lengths: little of it is padding, and the matrix
library, which compiles kernels for every new shape, meets few.

Shapes: L positions where an answer is foretold, filled up; Q questions, R replies, D dimensions, S scores.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from rlaif.core.template import SCORE_LABELS, VERDICT_LABELS
from rlaif.playground.answers import Answer
from rlaif.playground.world import CATEGORIES, Category, prompts_of
from rlaif_pipelines.playground.critiques import Fault, critique_of, faults_of, revised
from rlaif_pipelines.playground.judge_examples import (
    Context,
    Form,
    JudgePrompts,
    Packed,
    pack,
    packed_length,
    sample_answer,
    spread_over_scores,
)
from rlaif_pipelines.playground.models import round_up
from rlaif_pipelines.playground.principles import DIMENSIONS, TRAINED_WORDINGS, Dimension
from rlaif_pipelines.playground.rubric import probability_first, rate

if TYPE_CHECKING:
    import torch

Task = Literal["compare", "score", "write"]

TOKENS_PER_BATCH: Final = 4608
ROW_LENGTHS: Final = (96, 128, 192, 256, 384)
"""Divisors of TOKENS_PER_BATCH."""
ANSWERS_TO: Final[dict[Task, int]] = {"compare": 128, "score": 128, "write": 512}
"""Positions where answers are foretold are filled up to a multiple of this."""
DRAWN_TOGETHER: Final = 32
PRINCIPLES_PER_CONTEXT: Final = 3
REVISIONS_PER_CONTEXT: Final = 2
TIE_DRAW_WEIGHT: Final = 0.25
"""A principle on which the pair is even is drawn this often, against 1 for one that tells the two apart."""
WRITE_SHARE: Final = 0.3
SCORE_SHARE: Final = 0.28
SCORE_SHARE_AT_START: Final = 0.5
"""Single replies are easier: they come first, and fall to SCORE_SHARE over the first fifth."""
REVISE_SHARE: Final = 0.6
"""Of the contexts of a written batch; the others are criticised."""
SEVERAL_PRINCIPLES_SHARE: Final = 0.4
FAULTLESS_SHARE: Final = 0.3
"""Of the questions of a written batch about, those whose right answer is that nothing is to be changed."""
CATEGORY_WEIGHTS: Final[dict[Category, float]] = {"fact": 0.4, "howto": 0.2, "borderline": 0.2, "harmful": 0.2}


@dataclass(frozen=True)
class Batch:
    """Packed prompts with their targets."""

    task: Task
    packed: Packed
    label_ids: list[int]
    targets_QS: torch.Tensor
    """Probability of each label; of no use where text is to be written."""
    ratings_RD: torch.Tensor
    """About -1 to 1."""

    def asked(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and positions, shape L, where answers are foretold; after the true ones come fillers."""
        import torch

        packed = self.packed
        if self.task == "write":
            rows, positions = packed.written_rows_N, packed.written_positions_N
        else:
            rows, positions = packed.verdict_rows_Q, packed.verdict_positions_Q
        missing = round_up(len(rows), to=ANSWERS_TO[self.task]) - len(rows)
        return torch.nn.functional.pad(rows, (0, missing)), torch.nn.functional.pad(positions, (0, missing))


@dataclass(frozen=True)
class _Example:
    """One context's replies, its questions and their answers: probabilities of labels, or what to write."""

    form: Form
    replies: list[Answer]
    questions: list[list[int]]
    targets: list[list[float]]
    written: list[list[int]]
    ratings: list[list[float]]


class BatchSampler:
    """Draws batches of one task at a time."""

    def __init__(self, prompts: JudgePrompts, rng: random.Random) -> None:
        self._prompts = prompts
        self._rng = rng
        self._pools = {category: prompts_of("train", category=category) for category in CATEGORIES}
        self._label_ids: dict[Task, list[int]] = {
            "compare": prompts.label_ids(VERDICT_LABELS),
            "score": prompts.label_ids(SCORE_LABELS),
            "write": [],
        }
        self._waiting: dict[tuple[Task, int], list[tuple[_Example, Context]]] = defaultdict(list)

    def next(self, *, progress: float) -> Batch:
        """A batch; `progress` runs from 0 to 1 over the training."""
        score_share = max(SCORE_SHARE, SCORE_SHARE_AT_START - (SCORE_SHARE_AT_START - SCORE_SHARE) * progress / 0.2)
        draw = self._rng.random()
        task: Task = "write" if draw < WRITE_SHARE else "score" if draw < WRITE_SHARE + score_share else "compare"
        while True:
            for length in ROW_LENGTHS:
                rows = self._waiting[task, length]
                size = TOKENS_PER_BATCH // length
                if len(rows) >= size:
                    self._waiting[task, length] = rows[size:]
                    return self._batch(task, rows[:size], length)
            self._draw(task)

    def _draw(self, task: Task) -> None:
        """More examples, each to those of its length."""
        make = {"compare": self._compared, "score": self._scored, "write": self._written}[task]
        examples = [make() for _ in range(DRAWN_TOGETHER)]
        contexts = self._prompts.labelled_contexts([(example.form, example.replies) for example in examples])
        for example, context in zip(examples, contexts, strict=True):
            needed = packed_length(context.ids, example.questions, example.written)
            fitting = [length for length in ROW_LENGTHS if length >= needed]
            if fitting:  # else too many long principles at once: rare
                self._waiting[task, fitting[0]].append((example, context))

    def _batch(self, task: Task, rows: Sequence[tuple[_Example, Context]], length: int) -> Batch:
        import torch

        examples = [example for example, _ in rows]
        packed = pack(
            [context for _, context in rows],
            [example.questions for example in examples],
            [example.written for example in examples] if task == "write" else None,
            length=length,
        )
        return Batch(
            task,
            packed,
            self._label_ids[task],
            torch.tensor([target for example in examples for target in example.targets]),
            torch.tensor([rating for example in examples for rating in example.ratings]),
        )

    def _compared(self) -> _Example:
        replies = self._replies(2)
        ratings = [rate(reply) for reply in replies]
        chances = {name: probability_first(ratings[0][name], ratings[1][name]) for name in DIMENSIONS}
        chosen = self._principles(chances)
        return _Example(
            form="compare",
            replies=replies,
            questions=[self._prompts.question(self._wording(name), compare=True) for name in chosen],
            targets=[[chances[name], 1.0 - chances[name]] for name in chosen],
            written=[],
            ratings=[_side_ratings(reply) for reply in replies],
        )

    def _scored(self) -> _Example:
        replies = self._replies(1)
        ratings = rate(replies[0])
        chosen = self._rng.sample(DIMENSIONS, PRINCIPLES_PER_CONTEXT)
        return _Example(
            form="score",
            replies=replies,
            questions=[self._prompts.question(self._wording(name), compare=False) for name in chosen],
            targets=[spread_over_scores(ratings[name]) for name in chosen],
            written=[],
            ratings=[_side_ratings(replies[0])],
        )

    def _written(self) -> _Example:
        revise = self._rng.random() < REVISE_SHARE
        reply = self._replies(1)[0]
        while not reply.words:
            reply = self._replies(1)[0]
        asked: list[tuple[str, str | None]] = []
        texts = []
        for _ in range(REVISIONS_PER_CONTEXT if revise else PRINCIPLES_PER_CONTEXT):
            principle, faults = self._principle_and_faults(reply)
            critique = critique_of(faults)
            asked.append((principle, critique if revise else None))
            texts.append(revised(self._rng, reply, faults) if revise else critique)
        return _Example(
            form="revise" if revise else "critique",
            replies=[reply],
            questions=self._prompts.writing_questions(asked),
            targets=[],
            written=self._prompts.written(texts),
            ratings=[_side_ratings(reply)],
        )

    def _principle_and_faults(self, reply: Answer) -> tuple[str, tuple[Fault, ...]]:
        """One principle or several, and what the reply has against them."""
        several = self._rng.random() < SEVERAL_PRINCIPLES_SHARE
        chosen = self._rng.sample(DIMENSIONS, self._rng.choice((2, 3, 4, 5, 5)) if several else 1)
        faults = faults_of(reply, chosen)
        if not faults and self._rng.random() > FAULTLESS_SHARE:
            broken = [name for name in DIMENSIONS if faults_of(reply, [name])]
            if broken:
                chosen = [self._rng.choice(broken)]
                faults = faults_of(reply, chosen)
        return " ".join(self._wording(name) for name in chosen), faults

    def _wording(self, name: Dimension) -> str:
        return self._rng.choice(TRAINED_WORDINGS[name])

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


def _side_ratings(reply: Answer) -> list[float]:
    ratings = rate(reply)
    return [(ratings[dimension] - 5.5) / 4.5 for dimension in DIMENSIONS]
