"""Preference optimisation from soft labels: DPO, conservative by each pair's own probability."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from rlaif.runtime.artifacts import atomic_write_folder
from rlaif_pipelines.training import engine as processes
from rlaif_pipelines.training.config.dpo import DpoTraining
from rlaif_pipelines.training.data import read_labels, split_by_prompt
from rlaif_pipelines.training.engine import TrainingEngine
from rlaif_pipelines.training.losses import dpo_loss, dpo_margin, sum_by_sequence
from rlaif_pipelines.training.metrics import MetricsLog
from rlaif_pipelines.training.model import Base, PolicyLogprobs, load_policy, model_card, open_base, save_model
from rlaif_pipelines.training.packing import Layout, Rows, layout_for
from rlaif_pipelines.training.pair_loop import PairSchedule, fit_pairs
from rlaif_pipelines.training.pairs import (
    EncodedPair,
    encode_pairs,
    measure_pairs,
    pair_quality,
    pair_values,
    targets_of,
)
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
    engine, layout = _new_engine(settings, base=base, num_steps=schedule.num_steps)
    encoded_train = _with_reference(engine, encoded_train, layout=layout, settings=settings)
    encoded_held_out = _with_reference(engine, encoded_held_out, layout=layout, settings=settings)
    engine.module.train()
    fit_pairs(
        engine,
        encoded_train,
        pair_loss=lambda pairs: _loss(engine, pairs, layout=layout, settings=settings),
        schedule=schedule,
        layout=layout,
        settings=settings,
        checkpoints=settings.out / "checkpoints",
        identity=identity_of(settings, base=base, inputs={"labels": settings.labels}),
        metrics=lambda done: MetricsLog(
            settings.metrics_file, stage=STAGE, num_steps=schedule.num_steps, resume_step=done
        ),
    )
    engine.module.eval()
    margins = _margins(engine, encoded_held_out, layout=layout, settings=settings)
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


def _new_engine(settings: DpoTraining, *, base: Base, num_steps: int) -> tuple[TrainingEngine, Layout]:
    precision = settings.engine.precision
    model = load_policy(base, precision=precision, attention=settings.engine.attention).eval()
    layout = layout_for(model, pad_id=base.pad_id, share_prefixes=settings.engine.share_prefixes)
    engine = TrainingEngine(
        PolicyLogprobs(model, autocast=precision == "bfloat16_autocast"),
        settings=settings.engine,
        optimizer=settings.optimizer,
        num_steps=num_steps,
    )
    return engine, layout


def _loss(engine: TrainingEngine, pairs: Sequence[EncodedPair], *, layout: Layout, settings: DpoTraining) -> Tensor:
    first_P, second_P = pair_values(pairs, forward=lambda rows: _response_logprobs(engine, rows), layout=layout)
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


def _response_logprobs(engine: TrainingEngine, rows: Rows) -> Tensor:
    """Log-probability of each response, summed over its tokens."""
    logprobs_N, _ = engine(*rows.for_logprobs)
    sequence_N = rows.branches_N.to(engine.device)
    return sum_by_sequence(logprobs_N, sequence_N=sequence_N, num_sequences=rows.num_branches)


def _with_reference(
    engine: TrainingEngine, pairs: Sequence[EncodedPair], *, layout: Layout, settings: DpoTraining
) -> list[EncodedPair]:
    """The pairs with what the policy says of them before it is trained."""
    first_P, second_P = _measure(engine, pairs, layout=layout, settings=settings)
    return [
        replace(pair, reference_first=first, reference_second=second)
        for pair, first, second in zip(pairs, first_P.tolist(), second_P.tolist(), strict=True)
    ]


def _margins(
    engine: TrainingEngine, pairs: Sequence[EncodedPair], *, layout: Layout, settings: DpoTraining
) -> list[float]:
    """Implicit reward of each first response over the second."""
    first_P, second_P = _measure(engine, pairs, layout=layout, settings=settings)
    targets = targets_of(pairs, device=first_P.device)
    margin_P = dpo_margin(
        first_P,
        logprobs_second_P=second_P,
        reference_first_P=targets.reference_first_P,
        reference_second_P=targets.reference_second_P,
        beta=settings.beta,
    )
    return [float(margin) for margin in margin_P]


def _measure(
    engine: TrainingEngine, pairs: Sequence[EncodedPair], *, layout: Layout, settings: DpoTraining
) -> tuple[Tensor, Tensor]:
    return measure_pairs(
        pairs,
        forward=lambda rows: _response_logprobs(engine, rows),
        layout=layout,
        max_tokens=settings.engine.micro_batch_tokens,
    )


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
