"""From files of JSON lines to what a step trains on. Every order is a pure function of (seed, position)."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rlaif.core.conversation import Conversation, parse_conversation
from rlaif.core.errors import InvalidInputError


@dataclass(frozen=True)
class TrainingPrompt:
    """A prompt to sample from."""

    prompt_id: str
    category: str | None
    conversation: Conversation


def read_prompts(path: Path) -> tuple[TrainingPrompt, ...]:
    """The prompts of the train split; a prompt without a split counts as train."""
    prompts = [
        TrainingPrompt(
            prompt_id=text_of(line, "prompt_id", place=place),
            category=line.get("category"),
            conversation=conversation_of(line, place=place),
        )
        for place, line in read_lines(path, field="prompts")
        if line.get("split", "train") == "train"
    ]
    if not prompts:
        raise InvalidInputError(f"{path}: no prompt is of the train split", reason="NO_PROMPTS", field="prompts")
    return tuple(prompts)


def split_dev_prompts(
    prompts: Sequence[TrainingPrompt], *, num_dev: int, seed: int
) -> tuple[list[TrainingPrompt], list[TrainingPrompt]]:
    """(to train on, set apart): `num_dev` prompts, evenly over the categories, decided by their ids and the seed."""
    by_category: dict[str, list[TrainingPrompt]] = {}
    for prompt in sorted(prompts, key=lambda each: hashlib.sha256(f"dev:{seed}:{each.prompt_id}".encode()).digest()):
        by_category.setdefault(prompt.category or "", []).append(prompt)
    turns = itertools.zip_longest(*(by_category[category] for category in sorted(by_category)))
    order = [prompt for turn in turns for prompt in turn if prompt is not None]
    dev = {prompt.prompt_id for prompt in order[:num_dev]}
    return [prompt for prompt in prompts if prompt.prompt_id not in dev], order[:num_dev]


class Prompted(Protocol):
    """What belongs to a prompt."""

    @property
    def prompt_id(self) -> str:
        """Which prompt."""


PromptedT = TypeVar("PromptedT", bound=Prompted)


def split_by_prompt(
    examples: Sequence[PromptedT], *, held_out_fraction: float, seed: int
) -> tuple[list[PromptedT], list[PromptedT]]:
    """(to train on, to measure on): all examples of a prompt fall on the same side, decided by its id and the seed."""
    train: list[PromptedT] = []
    held_out: list[PromptedT] = []
    for example in examples:
        (held_out if share_of(f"split:{seed}:{example.prompt_id}") < held_out_fraction else train).append(example)
    # With very few prompts one side can be left empty: then there is nothing to measure.
    return (train, held_out) if train else (held_out, [])


def epoch_order(num_items: int, *, seed: int, epoch: int) -> list[int]:
    """The items in that epoch's order."""
    order = list(range(num_items))
    random.Random(f"epoch:{seed}:{epoch}").shuffle(order)
    return order


class StratifiedPrompts:
    """Which prompts a step draws: the categories in turn, each through a fresh order of its own in every round."""

    def __init__(self, prompts: Sequence[TrainingPrompt], *, seed: int) -> None:
        self._seed = seed
        self._by_category: dict[str, list[TrainingPrompt]] = {}
        for prompt in prompts:
            self._by_category.setdefault(prompt.category or "", []).append(prompt)
        self._categories = sorted(self._by_category)
        self._orders: dict[str, tuple[int, list[int]]] = {}

    def draw(self, step: int, *, num_prompts: int) -> list[TrainingPrompt]:
        """The prompts of that step: nothing but the seed and the step decide, so resuming needs no state."""
        return [self._at(position) for position in range(step * num_prompts, (step + 1) * num_prompts)]

    def _at(self, position: int) -> TrainingPrompt:
        turn, index = divmod(position, len(self._categories))
        category = self._categories[index]
        prompts = self._by_category[category]
        round_number, place = divmod(turn, len(prompts))
        return prompts[self._order(category, round_number)[place]]

    def _order(self, category: str, round_number: int) -> list[int]:
        known_round, order = self._orders.get(category, (-1, []))
        if known_round != round_number:
            order = list(range(len(self._by_category[category])))
            random.Random(f"prompts:{self._seed}:{category}:{round_number}").shuffle(order)
            self._orders[category] = round_number, order
        return order


def sampling_seed(seed: int, *, step: int) -> int:
    """Seed of a step's rollouts, 63 bits."""
    return int.from_bytes(hashlib.sha256(f"sample:{seed}:{step}".encode()).digest()[:8]) >> 1


def read_lines(path: Path, *, field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, object) of each line of a file of JSON objects, plain or .gz; InvalidInputError for others."""
    for number, raw in enumerate(_content(path, field=field).split(b"\n"), start=1):
        if not raw.strip():
            continue
        place = f"{path}, line {number}"
        try:
            line = json.loads(raw.decode("utf-8"))
            if b"\\u" in raw:
                json.dumps(line, ensure_ascii=False).encode()
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"{place}: not UTF-8", field=field) from error
        except UnicodeEncodeError as error:
            raise InvalidInputError(f"{place}: holds half a character (a lone surrogate)", field=field) from error
        except json.JSONDecodeError as error:
            raise InvalidInputError(f"{place}: not JSON ({error.msg})", field=field) from error
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"{place}: too deep or too long for JSON", field=field) from error
        if not isinstance(line, dict):
            raise InvalidInputError(f"{place}: not a JSON object", field=field)
        yield place, line


def text_of(line: Mapping[str, Any], key: str, *, place: str) -> str:
    """The text under that key."""
    value = line.get(key)
    if not isinstance(value, str):
        raise InvalidInputError(f"{place}: {key} must be text", field=key)
    return value


def conversation_of(line: Mapping[str, Any], *, place: str) -> Conversation:
    """The conversation under `messages`."""
    messages = line.get("messages")
    if not isinstance(messages, list) or not all(isinstance(turn, dict) for turn in messages):
        raise InvalidInputError(f"{place}: messages must be a list of turns", field="messages")
    try:
        return parse_conversation(messages)
    except InvalidInputError as error:
        raise InvalidInputError(f"{place}: {error.field}: {error.message}", field=error.field) from error


def number_of(value: Any) -> float | None:
    """The value as a float, NaN and infinities included; None for what is no number, or too large for one."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def share_of(text: str) -> float:
    """A number in [0, 1) that the text decides, evenly spread."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def _content(path: Path, *, field: str) -> bytes:
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InvalidInputError(f"{path} is no whole .gz file", field=field) from error
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror}", field=field) from error
    if content.startswith(b"PAR1"):
        raise InvalidInputError(f"{path} is Parquet; write it as JSON lines (`--format jsonl`)", field=field)
    return content
