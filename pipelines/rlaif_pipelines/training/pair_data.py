"""Labels as pairs of token ids: some to train on, the rest to measure on."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.core.errors import InvalidInputError
from rlaif_pipelines.training.config.pairs import PairTraining
from rlaif_pipelines.training.data import split_by_prompt
from rlaif_pipelines.training.labels import Labels
from rlaif_pipelines.training.model import Base
from rlaif_pipelines.training.pairs import EncodedPair, encode_pairs
from rlaif_pipelines.training.tokens import ChatEncoder


@dataclass(frozen=True)
class PairData:
    """What a training learns from and is measured on."""

    train: list[EncodedPair]
    held_out: list[EncodedPair]
    principles: tuple[str, ...]
    """Principles whose votes the pairs to train on carry, in the order of `EncodedPair.votes`."""
    counts: dict[str, int]
    labels: Labels


def prepare_pairs(
    settings: PairTraining, *, labels: Labels, base: Base, with_principles: bool = False, margin: float = 0.0
) -> PairData:
    """The labels split by prompt and encoded; pairs that do not fit the context are counted and left out."""
    train, held_out = split_by_prompt(labels.pairs, held_out_fraction=settings.held_out_fraction, seed=settings.seed)
    encoder = ChatEncoder(base.tokenizer)
    principles = labels.principles if with_principles else ()
    fitting, num_train_too_long = encode_pairs(
        [pair.smoothed() for pair in train],
        encoder=encoder,
        context_length=base.context_length,
        principles=principles,
        margin=margin,
    )
    if not fitting:
        raise InvalidInputError(
            f"every pair is longer than the model's context of {base.context_length} tokens", field="labels"
        )
    measured, num_held_out_too_long = encode_pairs(held_out, encoder=encoder, context_length=base.context_length)
    return PairData(
        train=fitting,
        held_out=measured,
        principles=principles,
        counts={
            "trained": len(fitting),
            "held_out": len(measured),
            "abstained": labels.total("num_abstained"),
            "weightless": labels.total("num_weightless"),
            "identical": labels.total("num_identical"),
            "merged": labels.total("num_merged"),
            "too_long": num_train_too_long + num_held_out_too_long,
        },
        labels=labels,
    )


def bootstrap(pairs: Sequence[EncodedPair], *, seed: int) -> list[EncodedPair]:
    """The pairs of as many prompts as there are, drawn with replacement (Efron 1979): what one member learns from."""
    by_prompt: dict[str, list[EncodedPair]] = defaultdict(list)
    for pair in pairs:
        by_prompt[pair.prompt_id].append(pair)
    drawn = random.Random(f"bootstrap:{seed}").choices(list(by_prompt), k=len(by_prompt))
    return [pair for prompt in drawn for pair in by_prompt[prompt]]


def label_card(labels: Labels) -> dict[str, Any]:
    """What a model card says of the labels."""
    rows = {}
    for number, each in enumerate(labels.provenance()):
        name = f"labels {number + 1}" if len(labels.files) > 1 else "labels"
        rows[name] = f"{each['num_pairs']} pairs at weight {each['weight']:g}, sha256 {each['sha256']}"
    return rows


def quality_card(quality: dict[str, Any]) -> dict[str, Any]:
    """What a model card says of how well held-out labels are predicted, slices included."""
    card = {
        "held-out pairs": quality["num_pairs"],
        "held-out accuracy against the labels": _with_interval(quality),
        "held-out AUC": _short(quality["auc"]),
        "held-out Brier score": _short(quality["brier"]),
        "held-out calibration error": _short(quality["ece"]),
    }
    for name, each in quality.get("slices", {}).items():
        card[f"… {name}"] = f"{_with_interval(each)}, {each['num_pairs']} pairs"
    return card


def _with_interval(quality: dict[str, Any]) -> str:
    if quality["accuracy"] is None:
        return "not known"
    return f"{quality['accuracy']:.3f} ({quality['accuracy_low']:.3f} to {quality['accuracy_high']:.3f})"


def _short(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4f}"
