"""From labels.jsonl and prompts.jsonl to token batches. Every order is a pure function of (seed, position).

Shape legend: B sequences; T tokens.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif.core.conversation import Conversation, parse_conversation
from rlaif.core.errors import InvalidInputError

if TYPE_CHECKING:
    from torch import Tensor

LENGTH_STEP = 16
"""Sequences are padded to a multiple of this: matrix libraries compile a kernel for every new shape."""


@dataclass(frozen=True)
class LabelledPair:
    """Two responses and the probability that the first is the better one."""

    prompt_id: str
    category: str | None
    conversation: Conversation
    first: str
    second: str
    probability_first: float
    weight: float
    votes: Mapping[str, float]
    """P(first preferred) by each principle that voted."""


@dataclass(frozen=True)
class Labels:
    """The pairs that carry a verdict, and how many do not."""

    pairs: tuple[LabelledPair, ...]
    num_abstained: int
    num_weightless: int

    @property
    def principles(self) -> tuple[str, ...]:
        """Ids of all principles that voted on any pair, in order of appearance."""
        return tuple(dict.fromkeys(name for pair in self.pairs for name in pair.votes))


@dataclass(frozen=True)
class TrainingPrompt:
    """A prompt to sample from."""

    prompt_id: str
    category: str | None
    conversation: Conversation


def read_labels(path: Path) -> Labels:
    """The labels of the file; abstentions and weights of 0 are counted and left out."""
    pairs, num_abstained, num_weightless = [], 0, 0
    for place, line in _read_lines(path):
        probability, weight = line.get("probability_first"), line.get("weight", 1.0)
        if probability is None:
            num_abstained += 1
            continue
        if not _is_probability(probability):
            raise InvalidInputError(f"{place}: probability_first is {probability!r}, not in [0, 1]", field="labels")
        if not _is_number(weight) or not 0.0 <= weight < float("inf"):
            raise InvalidInputError(f"{place}: weight is {weight!r}, not a number from 0 up", field="labels")
        if weight == 0.0:
            num_weightless += 1
            continue
        pairs.append(
            LabelledPair(
                prompt_id=_text(line, "prompt_id", place=place),
                category=line.get("category"),
                conversation=_conversation(line, place=place),
                first=_text(line, "first", place=place),
                second=_text(line, "second", place=place),
                probability_first=float(probability),
                weight=float(weight),
                votes=_votes(line, place=place),
            )
        )
    if not pairs:
        raise InvalidInputError(
            f"{path}: none of the {num_abstained + num_weightless} labels can be trained on "
            f"({num_abstained} abstained, {num_weightless} weigh nothing)",
            reason="NO_LABELS",
            field="labels",
        )
    return Labels(pairs=tuple(pairs), num_abstained=num_abstained, num_weightless=num_weightless)


def _votes(line: Mapping[str, Any], *, place: str) -> dict[str, float]:
    votes: dict[str, float] = {}
    for vote in line.get("votes") or ():
        name = vote.get("principle_id") if isinstance(vote, Mapping) else None
        probability = vote.get("probability_first") if name else None
        if not isinstance(name, str) or not (probability is None or _is_probability(probability)):
            raise InvalidInputError(f"{place}: votes holds {vote!r}, not a principle's probability", field="labels")
        if probability is not None:
            votes[name] = float(probability)
    return votes


def read_prompts(path: Path) -> tuple[TrainingPrompt, ...]:
    """The prompts of the train split; a prompt without a split counts as train."""
    prompts = [
        TrainingPrompt(
            prompt_id=_text(line, "prompt_id", place=place),
            category=line.get("category"),
            conversation=_conversation(line, place=place),
        )
        for place, line in _read_lines(path)
        if line.get("split", "train") == "train"
    ]
    if not prompts:
        raise InvalidInputError(f"{path}: no prompt is of the train split", reason="NO_PROMPTS", field="prompts")
    return tuple(prompts)


def split_by_prompt(
    pairs: Sequence[LabelledPair], *, held_out_fraction: float, seed: int
) -> tuple[list[LabelledPair], list[LabelledPair]]:
    """(to train on, to measure on): all pairs of one prompt fall on the same side, decided by its id and the seed."""
    train: list[LabelledPair] = []
    held_out: list[LabelledPair] = []
    for pair in pairs:
        (held_out if _share(seed, pair.prompt_id) < held_out_fraction else train).append(pair)
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


def plan_micro_batches(lengths: Sequence[int], *, max_tokens: int, num_processes: int = 1) -> list[list[int]]:
    """Positions grouped so that each group, padded, holds at most `max_tokens`; longest first: that pads little.

    The number of groups is a multiple of `num_processes`: group i belongs to process i mod num_processes, and all
    processes run the same number of passes, which collective operations need.
    """
    if len(lengths) < num_processes:
        raise InvalidInputError(f"{len(lengths)} sequences cannot be spread over {num_processes} processes")
    order = sorted(range(len(lengths)), key=lambda position: (-lengths[position], position))
    groups: list[list[int]] = []
    width = 0
    for position in order:
        if not groups or (len(groups[-1]) + 1) * width > max_tokens:
            groups.append([])
            width = padded_length(lengths[position])
        groups[-1].append(position)
    while len(groups) % num_processes:
        largest = max(range(len(groups)), key=lambda index: len(groups[index]))
        group = groups.pop(largest)
        groups[largest:largest] = [group[::2], group[1::2]]
    return groups


def padded_length(length: int) -> int:
    """The length a sequence is padded to."""
    return -(-length // LENGTH_STEP) * LENGTH_STEP


def pad(sequences: Sequence[Sequence[int]], *, pad_id: int) -> tuple[Tensor, Tensor]:
    """(ids_BT, mask_BT), padded on the right; the mask is True on tokens."""
    import torch

    width = padded_length(max(len(sequence) for sequence in sequences))
    ids_BT = torch.full((len(sequences), width), pad_id, dtype=torch.long)
    mask_BT = torch.zeros((len(sequences), width), dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        ids_BT[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
        mask_BT[row, : len(sequence)] = True
    return ids_BT, mask_BT


def _read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror}") from error
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        place = f"{path}, line {number}"
        try:
            line = json.loads(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"{place}: not UTF-8") from error
        except json.JSONDecodeError as error:
            raise InvalidInputError(f"{place}: not JSON ({error.msg})") from error
        if not isinstance(line, dict):
            raise InvalidInputError(f"{place}: not a JSON object")
        yield place, line


def _text(line: dict[str, Any], key: str, *, place: str) -> str:
    value = line.get(key)
    if not isinstance(value, str):
        raise InvalidInputError(f"{place}: {key} must be text", field=key)
    return value


def _conversation(line: dict[str, Any], *, place: str) -> Conversation:
    messages = line.get("messages")
    if not isinstance(messages, list) or not all(isinstance(turn, dict) for turn in messages):
        raise InvalidInputError(f"{place}: messages must be a list of turns", field="messages")
    try:
        return parse_conversation(messages)
    except InvalidInputError as error:
        raise InvalidInputError(f"{place}: {error.field}: {error.message}", field=error.field) from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_probability(value: Any) -> bool:
    return _is_number(value) and 0.0 <= value <= 1.0


def _share(seed: int, text: str) -> float:
    return int.from_bytes(hashlib.sha256(f"split:{seed}:{text}".encode()).digest()[:8]) / 2**64
