"""Preference optimisation from soft labels: DPO, conservative by each pair's own probability."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlaif.runtime.artifacts import atomic_write_folder
from rlaif_pipelines.training import engine as processes
from rlaif_pipelines.training.config.dpo import DpoTraining
from rlaif_pipelines.training.data import read_labels, split_by_prompt
from rlaif_pipelines.training.engine import TrainingEngine
from rlaif_pipelines.training.losses import dpo_loss, dpo_margin, sum_by_sequence
from rlaif_pipelines.training.metrics import MetricsLog
from rlaif_pipelines.training.model import Base, PolicyLogprobs, load_policy, model_card, open_base, save_model
from rlaif_pipelines.training.pair_loop import PairSchedule, fit_pairs
from rlaif_pipelines.training.pairs import EncodedPair, encode_pairs, pair_quality, pair_values, targets_of
from rlaif_pipelines.training.publishing import publish
from rlaif_pipelines.training.record import file_sha256, identity_of, write_record
from rlaif_pipelines.training.tokens import ChatEncoder

STAGE = "dpo"


def run(settings: DpoTraining) -> dict[str, Any]:
    """Trains the policy, writes its folder and training.json, and publishes it if told where."""
    began = time.perf_counter()
    labels = read_labels(settings.labels)
    base = open_base(settings.policy)
    processes.start_processes(settings.engine)
    encoder = ChatEncoder(base.tokenizer)
    train, held_out = split_by_prompt(labels.pairs, held_out_fraction=settings.held_out_fraction, seed=settings.seed)
    encoded_train, train_too_long = encode_pairs(train, encoder=encoder, context_length=base.context_length)
    encoded_held_out, held_out_too_long = encode_pairs(held_out, encoder=encoder, context_length=base.context_length)
    schedule = PairSchedule(
        num_pairs=len(encoded_train),
        batch_pairs=settings.batch_pairs,
        num_epochs=settings.num_epochs,
        seed=settings.seed,
    )
    engine = _new_engine(settings, base=base, num_steps=schedule.num_steps)
    encoded_train = _with_reference(engine, encoded_train, settings=settings, base=base)
    encoded_held_out = _with_reference(engine, encoded_held_out, settings=settings, base=base)
    engine.module.train()
    fit_pairs(
        engine,
        encoded_train,
        pair_loss=lambda pairs: _loss(engine, pairs, settings=settings, base=base),
        schedule=schedule,
        settings=settings,
        checkpoints=settings.out / "checkpoints",
        identity=identity_of(settings, base=base, inputs={"labels": settings.labels}),
        metrics=lambda done: MetricsLog(
            settings.metrics_file, stage=STAGE, num_steps=schedule.num_steps, resume_step=done
        ),
    )
    engine.module.eval()
    margins = _margins(engine, encoded_held_out, settings=settings, base=base)
    quality = pair_quality(margins, [pair.probability_first for pair in encoded_held_out])
    counts = {
        "trained": len(encoded_train),
        "held_out": len(encoded_held_out),
        "abstained": labels.num_abstained,
        "weightless": labels.num_weightless,
        "too_long": train_too_long + held_out_too_long,
    }
    results = {**quality, "num_steps": schedule.num_steps, "counts": counts}
    results |= _save_and_publish(engine, settings=settings, base=base, num_steps=schedule.num_steps)
    if processes.rank() == 0:
        write_record(
            settings.out,
            verb="dpo",
            settings=settings,
            base=base,
            models=[settings.out / "model"],
            inputs={"labels": settings.labels},
            results=results,
            seconds=time.perf_counter() - began,
        )
    return results


def _new_engine(settings: DpoTraining, *, base: Base, num_steps: int) -> TrainingEngine:
    precision = settings.engine.precision
    model = load_policy(base, precision=precision, attention=settings.engine.attention).eval()
    return TrainingEngine(
        PolicyLogprobs(model, autocast=precision == "bfloat16_autocast"),
        settings=settings.engine,
        optimizer=settings.optimizer,
        num_steps=num_steps,
    )


def _loss(engine: TrainingEngine, pairs: Sequence[EncodedPair], *, settings: DpoTraining, base: Base) -> Tensor:
    first_P, second_P = _response_logprobs(engine, pairs, settings=settings, base=base)
    targets = targets_of(pairs, device=engine.device)
    return dpo_loss(
        first_P,
        logprobs_second_P=second_P,
        reference_first_P=targets.reference_first_P,
        reference_second_P=targets.reference_second_P,
        probability_first_P=targets.probability_first_P,
        weights_P=targets.weights_P,
        beta=settings.beta,
    )


def _response_logprobs(
    engine: TrainingEngine, pairs: Sequence[EncodedPair], *, settings: DpoTraining, base: Base
) -> tuple[Tensor, Tensor]:
    """Log-probability of each pair's first and second response, summed over tokens."""

    def forward(ids_BT: Tensor, mask_BT: Tensor, response_BT: Tensor) -> Tensor:
        logprobs_N, _ = engine(ids_BT, mask_BT, response_BT)
        sequence_N = torch.arange(len(ids_BT)).repeat_interleave(response_BT.sum(dim=1)).to(engine.device)
        return sum_by_sequence(logprobs_N, sequence_N=sequence_N, num_sequences=len(ids_BT))

    return pair_values(pairs, forward=forward, settings=settings.engine, pad_id=base.pad_id)


@torch.no_grad()
def _with_reference(
    engine: TrainingEngine, pairs: Sequence[EncodedPair], *, settings: DpoTraining, base: Base
) -> list[EncodedPair]:
    """The pairs with what the policy says of them before it is trained."""
    found = []
    for portion in _portions(pairs, settings):
        first_P, second_P = _response_logprobs(engine, portion, settings=settings, base=base)
        found += [
            replace(pair, reference_first=first, reference_second=second)
            for pair, first, second in zip(portion, first_P.tolist(), second_P.tolist(), strict=True)
        ]
    return found


@torch.no_grad()
def _margins(engine: TrainingEngine, pairs: Sequence[EncodedPair], *, settings: DpoTraining, base: Base) -> list[float]:
    """Implicit reward of each first response over the second."""
    margins: list[float] = []
    for portion in _portions(pairs, settings):
        first_P, second_P = _response_logprobs(engine, portion, settings=settings, base=base)
        targets = targets_of(portion, device=engine.device)
        margin_P = dpo_margin(
            first_P,
            logprobs_second_P=second_P,
            reference_first_P=targets.reference_first_P,
            reference_second_P=targets.reference_second_P,
            beta=settings.beta,
        )
        margins += margin_P.tolist()
    return margins


def _portions(pairs: Sequence[EncodedPair], settings: DpoTraining) -> Iterator[Sequence[EncodedPair]]:
    return (pairs[start : start + settings.batch_pairs] for start in range(0, len(pairs), settings.batch_pairs))


def _save_and_publish(engine: TrainingEngine, *, settings: DpoTraining, base: Base, num_steps: int) -> dict[str, Any]:
    facts = {
        "labels sha256": file_sha256(settings.labels),
        "β": settings.beta,
        "optimiser steps": num_steps,
        "seed": settings.seed,
    }
    card = model_card(title="Policy", base=base, facts=facts)
    with engine.whole_weights() as state:
        if processes.rank() == 0:
            atomic_write_folder(
                settings.out / "model",
                lambda folder: save_model(engine.module.model, folder, base=base, card=card, state=state),
            )
    if settings.publish is None:
        return {}
    version = settings.publish.base_version + num_steps
    published = publish(engine, version=version, settings=settings.publish, base=base, facts=facts)
    return {"version": version, "digest": published.digest if published else None}
