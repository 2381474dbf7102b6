"""Preference optimisation from soft labels: DPO and its kin, conservative by each pair's own probability."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from rlaif_pipelines.training import engine as processes
from rlaif_pipelines.training.config.dpo import DpoTraining
from rlaif_pipelines.training.engine import TrainingEngine
from rlaif_pipelines.training.fitting import Schedule, policy_engine
from rlaif_pipelines.training.labels import label_inputs, read_labels
from rlaif_pipelines.training.losses import (
    dpo_loss,
    dpo_margin,
    hinge_loss,
    ipo_loss,
    preferred_nll,
    simpo_loss,
    sum_by_sequence,
)
from rlaif_pipelines.training.metrics import open_metrics
from rlaif_pipelines.training.model import Base, model_card, open_base
from rlaif_pipelines.training.packing import Layout, Rows
from rlaif_pipelines.training.pair_data import PairData, label_card, prepare_pairs, quality_card
from rlaif_pipelines.training.pair_loop import MeasuredLoss, fit_pairs
from rlaif_pipelines.training.pair_quality import pair_quality, quality_by_slice
from rlaif_pipelines.training.pairs import EncodedPair, PairTargets, measure_pairs, pair_values, targets_of
from rlaif_pipelines.training.publishing import publish, write_policy
from rlaif_pipelines.training.record import card_settings, identity_of, judged_by, write_record

STAGE = "dpo"


def run(settings: DpoTraining) -> dict[str, Any]:
    """Trains the policy, writes its folder and training.json, and publishes it if told where."""
    began = time.perf_counter()
    labels = read_labels(settings.labels, allow_one_class=settings.allow_one_class)
    base = open_base(settings.policy)
    processes.start_processes(settings.engine)
    data = prepare_pairs(settings, labels=labels, base=base)
    schedule = Schedule(
        num_examples=len(data.train),
        batch_examples=settings.batch_pairs,
        num_epochs=settings.num_epochs,
        seed=settings.seed,
    )
    engine, layout = policy_engine(settings, base=base, num_steps=schedule.num_steps)
    train = _with_reference(engine, data.train, layout=layout, settings=settings)
    held_out = _with_reference(engine, data.held_out, layout=layout, settings=settings)
    engine.module.train()
    fit_pairs(
        engine,
        train,
        pair_loss=lambda pairs: _loss(engine, pairs, layout=layout, settings=settings),
        schedule=schedule,
        layout=layout,
        settings=settings,
        checkpoints=settings.out / "checkpoints",
        identity=identity_of(settings, base=base, inputs=label_inputs(settings.labels)),
        metrics=lambda done: open_metrics(settings, stage=STAGE, num_steps=schedule.num_steps, resume_step=done),
    )
    engine.module.eval()
    quality = _quality(engine, held_out, layout=layout, settings=settings)
    results = {**quality, "num_steps": schedule.num_steps, "counts": data.counts, "labels": labels.provenance()}
    results |= _save_and_publish(
        engine, data=data, quality=quality, settings=settings, base=base, num_steps=schedule.num_steps
    )
    if processes.rank() == 0:
        write_record(
            settings.out,
            verb="dpo",
            settings=settings,
            base=base,
            models=[settings.out / "model"],
            inputs=label_inputs(settings.labels),
            results=results,
            seconds=time.perf_counter() - began,
        )
    return results


def _loss(
    engine: TrainingEngine, pairs: Sequence[EncodedPair], *, layout: Layout, settings: DpoTraining
) -> MeasuredLoss:
    first_P, second_P = pair_values(pairs, forward=lambda rows: _response_logprobs(engine, rows), layout=layout)
    targets = targets_of(pairs, device=engine.device)
    labels = {"probability_first_P": targets.probability_first_P, "weights_P": targets.weights_P}
    said = _said(first_P, second_P, targets=targets, settings=settings)
    match settings.loss:
        case "sigmoid" | "sigmoid_norm":
            loss = dpo_loss(**said, **labels, beta=settings.beta)
        case "ipo":
            loss = ipo_loss(**said, **labels, beta=settings.beta)
        case "hinge":
            loss = hinge_loss(**said, **labels, beta=settings.beta)
        case "simpo":
            loss = simpo_loss(
                said["logprobs_first_P"],
                logprobs_second_P=said["logprobs_second_P"],
                **labels,
                beta=settings.beta,
                target_margin=settings.target_margin,
            )
    if settings.sft_weight:
        loss = loss + settings.sft_weight * preferred_nll(
            first_P / targets.num_tokens_first_P,
            logprobs_second_P=second_P / targets.num_tokens_second_P,
            **labels,
        )
    return MeasuredLoss(loss, dpo_margin(**said, beta=settings.beta).detach())


def _said(first_P: Tensor, second_P: Tensor, *, targets: PairTargets, settings: DpoTraining) -> dict[str, Tensor]:
    """Log-probabilities as the loss takes them: sums or means over tokens; without a reference, beside 0."""
    said = {
        "logprobs_first_P": first_P,
        "logprobs_second_P": second_P,
        "reference_first_P": targets.reference_first_P,
        "reference_second_P": targets.reference_second_P,
    }
    if not settings.has_reference:
        said |= {"reference_first_P": torch.zeros_like(first_P), "reference_second_P": torch.zeros_like(second_P)}
    if settings.averages_tokens:
        num_tokens = {"first": targets.num_tokens_first_P, "second": targets.num_tokens_second_P}
        said = {name: values_P / num_tokens[name.split("_")[1]] for name, values_P in said.items()}
    return said


def _response_logprobs(engine: TrainingEngine, rows: Rows) -> Tensor:
    """Log-probability of each response, summed over its tokens."""
    logprobs_N, _ = engine(*rows.for_logprobs)
    sequence_N = rows.branches_N.to(engine.device)
    return sum_by_sequence(logprobs_N, sequence_N=sequence_N, num_sequences=rows.num_branches)


def _with_reference(
    engine: TrainingEngine, pairs: Sequence[EncodedPair], *, layout: Layout, settings: DpoTraining
) -> list[EncodedPair]:
    """The pairs with what the policy says of them before it is trained, where the loss compares with that."""
    if not settings.has_reference:
        return list(pairs)
    first_P, second_P = _measure(engine, pairs, layout=layout, settings=settings)
    return [
        replace(pair, reference_first=first, reference_second=second)
        for pair, first, second in zip(pairs, first_P.tolist(), second_P.tolist(), strict=True)
    ]


def _quality(
    engine: TrainingEngine, pairs: Sequence[EncodedPair], *, layout: Layout, settings: DpoTraining
) -> dict[str, Any]:
    """How well implicit rewards predict held-out labels, and how far both sides' log-probabilities moved, nats."""
    first_P, second_P = _measure(engine, pairs, layout=layout, settings=settings)
    targets = targets_of(pairs, device=first_P.device)
    margins = dpo_margin(**_said(first_P, second_P, targets=targets, settings=settings), beta=settings.beta).tolist()
    are_log_odds = settings.loss in ("sigmoid", "sigmoid_norm")
    moved: dict[int, list[float]] = {1: [], -1: []}
    if settings.has_reference:
        changes = (first_P - targets.reference_first_P).tolist(), (second_P - targets.reference_second_P).tolist()
        for pair, of_first, of_second in zip(pairs, *changes, strict=True):
            if pair.preferred:
                moved[pair.preferred].append(of_first)
                moved[-pair.preferred].append(of_second)
    return {
        **pair_quality(margins, pairs, are_log_odds=are_log_odds),
        "slices": quality_by_slice(margins, pairs, are_log_odds=are_log_odds),
        "preferred_logprob_change": fmean(moved[1]) if moved[1] else None,
        "other_logprob_change": fmean(moved[-1]) if moved[-1] else None,
    }


def _measure(
    engine: TrainingEngine, pairs: Sequence[EncodedPair], *, layout: Layout, settings: DpoTraining
) -> tuple[Tensor, Tensor]:
    return measure_pairs(
        pairs,
        forward=lambda rows: _response_logprobs(engine, rows),
        layout=layout,
        max_tokens=settings.engine.micro_batch_tokens,
    )


def _save_and_publish(
    engine: TrainingEngine,
    *,
    data: PairData,
    quality: dict[str, Any],
    settings: DpoTraining,
    base: Base,
    num_steps: int,
) -> dict[str, Any]:
    facts = {
        **label_card(data.labels),
        **judged_by(label_inputs(settings.labels)),
        "loss": settings.loss,
        "β": settings.beta,
        "optimiser steps": num_steps,
        "seed": settings.seed,
        **quality_card(quality),
    }
    card = model_card(title="Policy", base=base, facts=facts, settings=card_settings(settings))
    write_policy(engine, settings.out, base=base, card=card)
    if settings.publish is None:
        return {}
    version = settings.publish.base_version + num_steps
    published = publish(engine, version=version, settings=settings.publish, base=base, facts=facts)
    return {"version": version, "digest": published.digest if published else None}
