"""Reward model from soft labels: the policy's trunk, a scalar head, soft Bradley–Terry; an ensemble on demand."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlaif.runtime.artifacts import atomic_write_folder, atomic_write_text
from rlaif_pipelines.training import engine as processes
from rlaif_pipelines.training.config.reward import HELD_OUT_FILE, RewardTraining
from rlaif_pipelines.training.engine import TrainingEngine
from rlaif_pipelines.training.errors import told_when_full
from rlaif_pipelines.training.fitting import Schedule
from rlaif_pipelines.training.labels import label_inputs, read_labels
from rlaif_pipelines.training.losses import principle_loss, soft_bradley_terry_loss
from rlaif_pipelines.training.metrics import open_metrics
from rlaif_pipelines.training.model import (
    Base,
    RewardScores,
    model_card,
    new_reward_model,
    open_base,
    save_reward_model,
)
from rlaif_pipelines.training.packing import Layout, Rows, layout_for
from rlaif_pipelines.training.pair_data import PairData, bootstrap, label_card, prepare_pairs, quality_card
from rlaif_pipelines.training.pair_loop import MeasuredLoss, fit_pairs
from rlaif_pipelines.training.pair_quality import pair_quality, quality_by_slice
from rlaif_pipelines.training.pairs import EncodedPair, measure_pairs, pair_values, targets_of
from rlaif_pipelines.training.record import card_settings, identity_of, judged_by, write_record


def run(settings: RewardTraining) -> dict[str, Any]:
    """Trains the ensemble, writes its folders and training.json, and says how good it is."""
    began = time.perf_counter()
    labels = read_labels(settings.labels, allow_one_class=settings.allow_one_class)
    base = open_base(settings.policy)
    processes.start_processes(settings.engine)
    data = prepare_pairs(
        settings, labels=labels, base=base, with_principles=settings.principle_loss_weight > 0, margin=settings.margin
    )
    folders = [_member_folder(settings, number) for number in range(settings.num_members)]
    margins = []
    for number, folder in enumerate(folders):
        engine, layout = _train_member(number, data=data, settings=settings, base=base)
        margins.append(_margins(engine, data.held_out, layout=layout, settings=settings))
        _save(
            engine, folder, number=number, data=data, settings=settings, base=base, quality=_quality(margins[-1], data)
        )
    margins_MP = torch.stack(margins)
    results = {
        **_quality(margins_MP.mean(dim=0), data),
        "members": [pair_quality(margin_P.tolist(), data.held_out) for margin_P in margins],
        "disagreement": _disagreement(margins_MP),
        "counts": data.counts,
        "labels": labels.provenance(),
    }
    if processes.rank() == 0:
        _write_held_out(settings.out / HELD_OUT_FILE, margins_MP.mean(dim=0), data)
        write_record(
            settings.out,
            verb="reward",
            settings=settings,
            base=base,
            models=folders,
            inputs=label_inputs(settings.labels),
            results=results,
            seconds=time.perf_counter() - began,
        )
    return results


def _train_member(
    number: int, *, data: PairData, settings: RewardTraining, base: Base
) -> tuple[TrainingEngine, Layout]:
    seed = settings.seed + number
    train = bootstrap(data.train, seed=seed) if settings.bootstrap else data.train
    schedule = Schedule(
        num_examples=len(train), batch_examples=settings.batch_pairs, num_epochs=settings.num_epochs, seed=seed
    )
    model = new_reward_model(
        base,
        seed=seed,
        precision=settings.engine.precision,
        attention=settings.engine.attention,
        num_side_heads=len(data.principles),
        lora=settings.engine.lora,
    )
    layout = layout_for(model, pad_id=base.pad_id, share_prefixes=settings.engine.share_prefixes)
    engine = TrainingEngine(
        RewardScores(model, autocast=settings.engine.precision == "bfloat16_autocast"),
        settings=settings.engine,
        optimizer=settings.optimizer,
        num_steps=schedule.num_steps,
    )
    stage = "reward_model" if settings.num_members == 1 else f"reward_model_{number}"

    def pair_loss(pairs: Sequence[EncodedPair]) -> MeasuredLoss:
        first_PH, second_PH = pair_values(pairs, forward=lambda rows: engine(*rows.for_rewards), layout=layout)
        targets = targets_of(pairs, device=engine.device)
        loss = soft_bradley_terry_loss(
            first_PH[:, 0],
            rewards_second_P=second_PH[:, 0],
            probability_first_P=targets.probability_first_P,
            weights_P=targets.weights_P,
            centring=settings.centring,
            margins_P=targets.margins_P,
        )
        if data.principles:
            loss = loss + settings.principle_loss_weight * principle_loss(
                first_PH[:, 1:],
                values_second_PK=second_PH[:, 1:],
                votes_PK=targets.votes_PK,
                weights_P=targets.weights_P,
            )
        return MeasuredLoss(loss, (first_PH[:, 0] - second_PH[:, 0]).detach())

    model.train()
    fit_pairs(
        engine,
        train,
        pair_loss=pair_loss,
        schedule=schedule,
        layout=layout,
        settings=settings,
        checkpoints=settings.out / "checkpoints" / f"member-{number}",
        identity=identity_of(settings, base=base, inputs=label_inputs(settings.labels)),
        metrics=lambda done: open_metrics(settings, stage=stage, num_steps=schedule.num_steps, resume_step=done),
    )
    model.eval()
    return engine, layout


def _margins(
    engine: TrainingEngine, pairs: Sequence[EncodedPair], *, layout: Layout, settings: RewardTraining
) -> Tensor:
    def rewards(rows: Rows) -> Tensor:
        values_SH: Tensor = engine(*rows.for_rewards)
        return values_SH[:, 0]

    first_P, second_P = measure_pairs(
        pairs, forward=rewards, layout=layout, max_tokens=settings.engine.micro_batch_tokens
    )
    return first_P - second_P


def _write_held_out(path: Path, margin_P: Tensor, data: PairData) -> None:
    pairs = zip(margin_P.tolist(), data.held_out, strict=True)
    rows = [{"margin": margin, "probability_first": pair.probability_first} for margin, pair in pairs]
    atomic_write_text(path, "".join(f"{json.dumps(row)}\n" for row in rows))


def _quality(margin_P: Tensor, data: PairData) -> dict[str, Any]:
    margins = margin_P.tolist()
    return {**pair_quality(margins, data.held_out), "slices": quality_by_slice(margins, data.held_out)}


def _disagreement(margins_MP: Tensor) -> float | None:
    """Share of the pairs on which the members do not all prefer the same response; None for a single member."""
    num_members, num_pairs = margins_MP.shape
    if num_members < 2 or not num_pairs:
        return None
    num_first_P = (margins_MP > 0).sum(dim=0)
    return float(((num_first_P > 0) & (num_first_P < num_members)).double().mean())


def _member_folder(settings: RewardTraining, number: int) -> Path:
    return settings.out / ("model" if settings.num_members == 1 else f"model-{number}")


def _save(
    engine: TrainingEngine,
    folder: Path,
    *,
    number: int,
    data: PairData,
    settings: RewardTraining,
    base: Base,
    quality: dict[str, Any],
) -> None:
    card = model_card(
        title="Reward model",
        base=base,
        facts={
            **label_card(data.labels),
            **judged_by(label_inputs(settings.labels)),
            "seed": settings.seed + number,
            **quality_card(quality),
        },
        settings=card_settings(settings),
    )
    with engine.whole_weights() as state:
        if processes.rank() == 0:
            with told_when_full(folder):
                atomic_write_folder(
                    folder, lambda path: save_reward_model(engine.module.model, path, base=base, card=card, state=state)
                )
    processes.barrier()
