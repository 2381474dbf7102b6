"""Prompts of the playground's world: what is asked, of which kind it is, and what training never sees."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from rlaif.playground import lexicon

Category = Literal["fact", "howto", "borderline", "harmful"]
CATEGORIES: Final[tuple[Category, ...]] = get_args(Category)
"""fact: a closed question. howto: a harmless task. borderline: one that only sounds harmful. harmful: to refuse."""

Split = Literal["train", "held_out"]

HELD_OUT_ONE_IN: Final = 8


@dataclass(frozen=True)
class Prompt:
    """One question of the world. `key` names the fact ("capital of France") or task ("burn a candle") behind it."""

    prompt_id: str
    text: str
    category: Category
    key: str
    split: Split


@dataclass(frozen=True)
class Fact:
    """A closed-world fact; `others` are the wrong values of the same relation."""

    question: str
    value: str
    others: tuple[str, ...]


@functools.cache
def facts() -> dict[str, Fact]:
    """Every fact by key, e.g. "capital France"."""
    found = {}
    for relation, (question, values) in lexicon.FACTS.items():
        for entity, value in values.items():
            others = tuple(other for other in values.values() if other != value)
            found[f"{relation} {entity}"] = Fact(question.format(entity=entity), value, others)
    return found


@functools.cache
def tasks() -> dict[str, tuple[Category, tuple[str, str, str]]]:
    """Every task by key, with its category and its three steps."""
    found: dict[str, tuple[Category, tuple[str, str, str]]] = {}
    for task, steps in lexicon.HOWTO_TASKS.items():
        found[task] = ("howto", steps)
    for task, steps in lexicon.BORDERLINE_TASKS.items():
        found[task] = ("borderline", steps)
    for verb, (objects, steps) in lexicon.HARMFUL_VERBS.items():
        for thing in objects:
            found[f"{verb} {thing}"] = ("harmful", steps)
    return found


@functools.cache
def prompts() -> tuple[Prompt, ...]:
    """Every prompt, both splits, in a fixed order. SFT, judge and RL see only `train`."""
    return tuple(_prompts())


@functools.cache
def prompts_by_text() -> dict[str, Prompt]:
    """Every prompt by its exact text."""
    return {prompt.text: prompt for prompt in prompts()}


def prompts_of(split: Split, *, category: Category | None = None) -> tuple[Prompt, ...]:
    """The prompts of one split, of one category if given."""
    return tuple(p for p in prompts() if p.split == split and (category is None or p.category == category))


def evaluation_prompts(*, num_harmful: int = 240, num_other: int = 80) -> tuple[Prompt, ...]:
    """Distinct held-out prompts: `num_harmful` harmful ones, `num_other` of each other category, in a fixed order.

    Categories differ in number: average within each first, then over categories. Fewer come back where the world has
    fewer; the choice is by hash of the prompt's id, so a smaller evaluation is a subset of a larger one.
    """
    chosen: list[Prompt] = []
    for category in CATEGORIES:
        pool = sorted(prompts_of("held_out", category=category), key=lambda prompt: _crc32(f"eval {prompt.prompt_id}"))
        chosen += pool[: num_harmful if category == "harmful" else num_other]
    return tuple(chosen)


def prompt_rows(split: Split | None = None) -> Iterator[dict[str, Any]]:
    """Rows of prompts.jsonl, of both splits if none is named."""
    for prompt in prompts():
        if split is None or prompt.split == split:
            yield prompt_row(prompt)


def prompt_row(prompt: Prompt) -> dict[str, Any]:
    """The prompt as a row of prompts.jsonl."""
    return {
        "prompt_id": prompt.prompt_id,
        "messages": [{"role": "user", "content": prompt.text}],
        "category": prompt.category,
        "split": prompt.split,
    }


def _prompts() -> Iterator[Prompt]:
    for key, fact in facts().items():
        for index, (template, held) in enumerate(_with_split(lexicon.FACT_TEMPLATES, lexicon.HELD_OUT_FACT_TEMPLATES)):
            yield _prompt(template.format(question=fact.question), "fact", key, index, held_out=held)
    for key, (category, _) in tasks().items():
        key_held = key in lexicon.HELD_OUT_HARMFUL_TASKS
        for index, (template, held) in enumerate(_with_split(lexicon.TASK_TEMPLATES, lexicon.HELD_OUT_TASK_TEMPLATES)):
            yield _prompt(template.format(task=key), category, key, index, held_out=held or key_held)


def _with_split(train: tuple[str, ...], held_out: tuple[str, ...]) -> list[tuple[str, bool]]:
    return [(template, False) for template in train] + [(template, True) for template in held_out]


def _prompt(text: str, category: Category, key: str, template_index: int, *, held_out: bool) -> Prompt:
    held_out = held_out or _crc32(text) % HELD_OUT_ONE_IN == 0
    slug = key.lower().replace(" ", "-")
    return Prompt(
        prompt_id=f"{category}-{slug}-{template_index:02d}",
        text=text,
        category=category,
        key=key,
        split="held_out" if held_out else "train",
    )


def _crc32(text: str) -> int:
    """Python's own hash() differs between processes; this never does."""
    return zlib.crc32(text.encode())
