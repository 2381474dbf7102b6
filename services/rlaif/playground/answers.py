"""Answers composed from parts, good and bad, that remember how they were made.

Whoever reads only the text (the gold evaluator) and whoever knows the making (the judge's training rubric) can so rate
the same answer by independent means. Everything is drawn from the `random.Random` passed in: same seed, same answers.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from rlaif.playground import lexicon
from rlaif.playground.world import Category, Fact, Prompt, facts, prompts, tasks

Kind = Literal[
    "good", "partial", "wrong", "mixed", "evasive", "refuse", "refuse_kindly", "refuse_then_comply", "scrambled"
]
"""scrambled: statements drawn one by one from anywhere, as by a policy that lost its way; no policy is taught it."""

Role = Literal[
    "opener",
    "connective",
    "right_step",
    "wrong_step",
    "right_fact",
    "wrong_fact",
    "harmful_step",
    "wrong_harmful_step",
    "refusal",
    "reason",
    "alternative",
    "evasion",
    "insult",
    "sermon",
    "warning",
    "closer",
    "noise",
]
ROLES: Final[tuple[Role, ...]] = get_args(Role)

Corruption = Literal[
    "truncated", "repeated_span", "dropped_words", "repeated_sentence", "replaced_words", "shuffled_words"
]
CORRUPTIONS: Final[tuple[Corruption, ...]] = get_args(Corruption)

# How a model that has only imitated answers: mostly willing, often wrong, wordy, sometimes rude.
KIND_WEIGHTS: Final[dict[Category, dict[Kind, float]]] = {
    "fact": {"good": 0.45, "wrong": 0.28, "evasive": 0.14, "refuse": 0.08, "refuse_then_comply": 0.05},
    "howto": {"good": 0.32, "partial": 0.20, "wrong": 0.14, "mixed": 0.12, "evasive": 0.12, "refuse": 0.10},
    "borderline": {
        "good": 0.31, "partial": 0.17, "wrong": 0.10, "mixed": 0.08, "evasive": 0.12, "refuse": 0.14,
        "refuse_kindly": 0.08,
    },
    "harmful": {
        "good": 0.33, "partial": 0.09, "wrong": 0.06, "evasive": 0.13, "refuse": 0.18, "refuse_kindly": 0.17,
        "refuse_then_comply": 0.04,
    },
}  # fmt: skip

OPENER_RATE: Final = 0.3
CLOSER_RATE: Final = 0.2
INSULT_RATE: Final = 0.15
SERMON_RATE: Final = 0.25
WARNING_RATE: Final = 0.25


@dataclass(frozen=True)
class Part:
    """A stretch of an answer and the role it was written for."""

    role: Role
    text: str


@dataclass(frozen=True)
class Word:
    """One word of an answer and the index of the part it came from; -1 for a word that came from nowhere."""

    text: str
    part: int


@dataclass(frozen=True)
class Answer:
    """An answer with its making. `words` is the text; `parts` is what it was before it was corrupted, if it was."""

    prompt: Prompt
    kind: Kind
    parts: tuple[Part, ...]
    words: tuple[Word, ...]
    corruption: Corruption | None = None

    @property
    def text(self) -> str:
        """The answer as the user sees it."""
        return " ".join(word.text for word in self.words)

    def role_of(self, word: Word) -> Role:
        """What the word is there for."""
        return "noise" if word.part < 0 else self.parts[word.part].role


def sample_kind(rng: random.Random, category: Category) -> Kind:
    """A kind as an untrained-for-safety model would choose it."""
    weights = KIND_WEIGHTS[category]
    return rng.choices(list(weights), list(weights.values()))[0]


def compose(rng: random.Random, prompt: Prompt, kind: Kind) -> Answer:
    """An answer of that kind, with opener, closer, insult and sermons at their rates."""
    parts: list[Part] = []
    if kind not in ("refuse", "refuse_kindly") and rng.random() < OPENER_RATE:
        parts.append(Part("opener", rng.choice(lexicon.OPENERS)))
    parts += _fact_body(rng, prompt, kind) if prompt.category == "fact" else _task_body(rng, prompt, kind)
    if rng.random() < CLOSER_RATE:
        parts.append(Part("closer", rng.choice(lexicon.CLOSERS)))
    if rng.random() < INSULT_RATE:
        parts.insert(rng.choice((0, len(parts))), Part("insult", rng.choice(lexicon.INSULTS)))
    if rng.random() < SERMON_RATE:
        for sermon in rng.sample(lexicon.SERMONS, rng.choice((1, 2, 3, 4))):
            parts.insert(rng.choice((0, len(parts), len(parts))), Part("sermon", sermon))
    return assemble(prompt, kind, parts)


def assemble(prompt: Prompt, kind: Kind, parts: Sequence[Part]) -> Answer:
    """The uncorrupted answer these parts make."""
    words = [Word(text, index) for index, part in enumerate(parts) for text in part.text.split()]
    return Answer(prompt=prompt, kind=kind, parts=tuple(parts), words=tuple(words))


def corrupt(rng: random.Random, answer: Answer, corruption: Corruption) -> Answer:
    """The answer damaged the way weak or over-optimised policies damage theirs."""
    words = list(answer.words)
    if not words:
        return answer
    if corruption == "truncated":
        words = words[: rng.randrange(0, len(words))]
    elif corruption == "repeated_span":
        start, length = rng.randrange(len(words)), rng.randint(1, 6)
        span = words[start : start + length]
        words[start + length : start + length] = span * rng.choice((1, 1, 2, 3))
    elif corruption == "dropped_words":
        rate = rng.choice((0.1, 0.25, 0.5))
        words = [word for word in words if rng.random() > rate]
    elif corruption == "repeated_sentence":
        index = rng.choice(words).part
        words += [word for word in words if word.part == index] * rng.choice((1, 2, 3))
    elif corruption == "replaced_words":
        rate = rng.choice((0.1, 0.3, 0.8))
        words = [_stray_word(rng) if rng.random() < rate else word for word in words]
    else:
        start, length = rng.randrange(len(words)), rng.randint(3, 10)
        span = words[start : start + length]
        rng.shuffle(span)
        words[start : start + length] = span
    return Answer(answer.prompt, answer.kind, answer.parts, tuple(words), corruption)


def _fact_body(rng: random.Random, prompt: Prompt, kind: Kind) -> list[Part]:
    fact = facts()[prompt.key]
    if kind in ("good", "partial"):
        return _fact_sentence(rng, fact, fact.value)
    if kind in ("wrong", "mixed"):
        return _fact_sentence(rng, fact, rng.choice(fact.others))
    if kind == "refuse_then_comply":
        return [Part("refusal", rng.choice(lexicon.REFUSALS)), *_fact_sentence(rng, fact, fact.value)]
    if kind == "scrambled":
        key = rng.choice([key for key in facts() if key != prompt.key])
        return _fact_sentence(rng, facts()[key], fact.value if rng.random() < 0.3 else facts()[key].value, wrong=True)
    return _declining(rng, kind)


def _task_body(rng: random.Random, prompt: Prompt, kind: Kind) -> list[Part]:
    category, steps = tasks()[prompt.key]
    role: Role = "harmful_step" if category == "harmful" else "right_step"
    right = [Part(role, step) for step in steps]
    if kind == "good":
        return _body(rng, right) + _warning(rng, category)
    if kind == "partial":
        kept = sorted(rng.sample(range(3), rng.choice((1, 2))))
        return _body(rng, [right[index] for index in kept]) + _warning(rng, category)
    if kind == "wrong":
        others = _harmless_steps_of_another_task(rng, prompt.key)
        return _body(rng, [Part("wrong_step", step) for step in others[: rng.choice((1, 2, 3, 3))]])
    if kind == "mixed":
        others = _harmless_steps_of_another_task(rng, prompt.key)
        index = rng.randrange(3)
        right[index] = Part("wrong_step", others[rng.randrange(3)])
        return _body(rng, right)
    if kind == "refuse_then_comply":
        return [Part("refusal", rng.choice(lexicon.REFUSALS)), *_body(rng, right)]
    if kind == "scrambled":
        drawn = [
            rng.choice(right) if rng.random() < 0.4 else _any_step(rng, steps) for _ in range(rng.choice((1, 2, 3)))
        ]
        return _body(rng, drawn) + _warning(rng, category)
    return _declining(rng, kind)


def _declining(rng: random.Random, kind: Kind) -> list[Part]:
    if kind == "evasive":
        return [Part("evasion", text) for text in rng.sample(lexicon.EVASIONS, rng.choice((1, 1, 2)))]
    parts = [Part("refusal", rng.choice(lexicon.REFUSALS))]
    if kind == "refuse_kindly":
        if rng.random() < 0.8:
            parts.append(Part("reason", rng.choice(lexicon.REASONS)))
        if rng.random() < 0.8:
            parts.append(Part("alternative", rng.choice(lexicon.ALTERNATIVES)))
    return parts


def _fact_sentence(rng: random.Random, fact: Fact, value: str, *, wrong: bool = False) -> list[Part]:
    """The fact with that value, `wrong` if it is not what was asked."""
    role: Role = "wrong_fact" if wrong or value != fact.value else "right_fact"
    spelled_out = f"{_capitalised(fact.question)} is"
    start = spelled_out if wrong else rng.choice((spelled_out, "It is", "The answer is"))
    return [Part("connective", start), Part(role, f"{value}.")]


def _body(rng: random.Random, steps: Sequence[Part]) -> list[Part]:
    """The steps as sentences ("First, … Then … Last, …") or as one list ("…, …, and …")."""
    if len(steps) == 1:
        return [Part("connective", "Just"), _ending(steps[0], ".")]
    if rng.random() < 0.6:
        starts = ("First,", "Then", "Last,")
        spoken = [(Part("connective", start), _ending(step, ".")) for start, step in zip(starts, steps, strict=False)]
        return [part for pair in spoken for part in pair]
    first = Part(steps[0].role, _capitalised(steps[0].text))
    if len(steps) == 2:
        return [first, Part("connective", "and"), _ending(steps[1], ".")]
    return [_ending(first, ","), _ending(steps[1], ","), Part("connective", "and"), _ending(steps[2], ".")]


def _warning(rng: random.Random, category: Category) -> list[Part]:
    if category == "harmful" and rng.random() < WARNING_RATE:
        return [Part("warning", rng.choice(lexicon.WARNINGS))]
    return []


def _stray_word(rng: random.Random) -> Word:
    """A word of the world, or a piece of one."""
    text = rng.choice(_all_words())
    return Word(text[: rng.randint(1, len(text))] if rng.random() < 0.3 else text, -1)


def _any_step(rng: random.Random, right: Sequence[str]) -> Part:
    """A step of any other task, harmful ones included."""
    category, steps = tasks()[rng.choice([name for name, (_, steps) in tasks().items() if steps[0] not in right])]
    return Part("wrong_harmful_step" if category == "harmful" else "wrong_step", rng.choice(steps))


def _harmless_steps_of_another_task(rng: random.Random, key: str) -> tuple[str, str, str]:
    names = [*lexicon.HOWTO_TASKS, *lexicon.BORDERLINE_TASKS]
    return tasks()[rng.choice([name for name in names if name != key])][1]


def _ending(part: Part, mark: str) -> Part:
    return Part(part.role, part.text + mark)


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


@functools.cache
def _all_words() -> tuple[str, ...]:
    """Every word that prompts and answers are made of, sorted."""
    texts = [prompt.text for prompt in prompts()]
    texts += [step for _, steps in tasks().values() for step in steps]
    texts += [fact.value for fact in facts().values()]
    texts += [*lexicon.REFUSALS, *lexicon.REASONS, *lexicon.ALTERNATIVES, *lexicon.EVASIONS, *lexicon.SERMONS]
    texts += [*lexicon.OPENERS, *lexicon.CLOSERS, *lexicon.INSULTS, *lexicon.WARNINGS]
    return tuple(sorted({word for text in texts for word in text.split()}))
