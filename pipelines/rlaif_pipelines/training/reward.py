"""Reward model from soft labels: the policy's trunk, a scalar head, soft Bradley–Terry; an ensemble on demand."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlaif.runtime.artifacts import atomic_write_folder
from rlaif_pipelines.training import engine as processes
from rlaif_pipelines.training.config.reward import RewardTraining
from rlaif_pipelines.training.data import Labels, read_labels, split_by_prompt
from rlaif_pipelines.training.engine import TrainingEngine
from rlaif_pipelines.training.losses import principle_loss, soft_bradley_terry_loss
from rlaif_pipelines.training.metrics import MetricsLog
from rlaif_pipelines.training.model import (
    Base,
    RewardScores,
    model_card,
    new_reward_model,
    open_base,
    save_reward_model,
)
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
from rlaif_pipelines.training.record import file_sha256, identity_of, write_record
from rlaif_pipelines.training.tokens import ChatEncoder


@dataclass(frozen=True)
class _Data:
    train: list[EncodedPair]
    held_out: list[EncodedPair]
    num_principles: int
    counts: dict[str, int]


def run(settings: RewardTraining) -> dict[str, Any]:
    """Trains the ensemble, writes its folders and training.json, and says how good it is."""
    began = time.perf_counter()
    labels = read_labels(settings.labels)
    base = open_base(settings.policy)
    processes.start_processes(settings.engine)
    data = _prepare(labels, settings=settings, base=base)
    folders = [_member_folder(settings, number) for number in range(settings.num_members)]
    margins = []
    for number, folder in enumerate(folders):
        engine, layout = _train_member(number, data=data, settings=settings, base=base)
        margins.append(_margins(engine, data.held_out, layout=layout, settings=settings))
        _save(engine, folder, number=number, settings=settings, base=base, quality=_quality(margins[-1], data.held_out))
    results = {
        **_quality(torch.stack(margins).mean(dim=0), data.held_out),
        "members": [_quality(margin_P, data.held_out) for margin_P in margins],
        "counts": data.counts,
    }
    if processes.rank() == 0:
        write_record(
            settings.out,
            verb="reward",
            settings=settings,
            base=base,
            models=folders,
            inputs={"labels": settings.labels},
            results=results,
            seconds=time.perf_counter() - began,
        )
    return results


def _prepare(labels: Labels, *, settings: RewardTraining, base: Base) -> _Data:
    train, held_out = split_by_prompt(labels.pairs, held_out_fraction=settings.held_out_fraction, seed=settings.seed)
    encoder = ChatEncoder(base.tokenizer)
    principles = labels.principles if settings.principle_loss_weight else ()
    encoded_train, train_too_long = encode_pairs(
        train, encoder=encoder, context_length=base.context_length, principles=principles
    )
    encoded_held_out, held_out_too_long = encode_pairs(held_out, encoder=encoder, context_length=base.context_length)
    return _Data(
        train=encoded_train,
        held_out=encoded_held_out,
        num_principles=len(principles),
        counts={
            "trained": len(encoded_train),
            "held_out": len(encoded_held_out),
            "abstained": labels.num_abstained,
            "weightless": labels.num_weightless,
            "too_long": train_too_long + held_out_too_long,
        },
    )


def _train_member(number: int, *, data: _Data, settings: RewardTraining, base: Base) -> tuple[TrainingEngine, Layout]:
    seed = settings.seed + number
    schedule = PairSchedule(
        num_pairs=len(data.train), batch_pairs=settings.batch_pairs, num_epochs=settings.num_epochs, seed=seed
    )
    model = new_reward_model(
        base,
        seed=seed,
        precision=settings.engine.precision,
        attention=settings.engine.attention,
        num_side_heads=data.num_principles,
    )
    layout = layout_for(model, pad_id=base.pad_id, share_prefixes=settings.engine.share_prefixes)
    engine = TrainingEngine(
        RewardScores(model, autocast=settings.engine.precision == "bfloat16_autocast"),
        settings=settings.engine,
        optimizer=settings.optimizer,
        num_steps=schedule.num_steps,
    )
    stage = "reward_model" if settings.num_members == 1 else f"reward_model_{number}"

    def pair_loss(pairs: Sequence[EncodedPair]) -> Tensor:
        first_PH, second_PH = pair_values(pairs, forward=lambda rows: engine(*rows.for_rewards), layout=layout)
        targets = targets_of(pairs, device=engine.device)
        loss = soft_bradley_terry_loss(
            first_PH[:, 0],
            rewards_second_P=second_PH[:, 0],
            probability_first_P=targets.probability_first_P,
            weights_P=targets.weights_P,
            centring=settings.centring,
        )
        if not data.num_principles:
            return loss
        return loss + settings.principle_loss_weight * principle_loss(
            first_PH[:, 1:],
            values_second_PK=second_PH[:, 1:],
            votes_PK=targets.votes_PK,
            weights_P=targets.weights_P,
        )

    model.train()
    fit_pairs(
        engine,
        data.train,
        pair_loss=pair_loss,
        schedule=schedule,
        layout=layout,
        settings=settings,
        checkpoints=settings.out / "checkpoints" / f"member-{number}",
        identity=identity_of(settings, base=base, inputs={"labels": settings.labels}),
        metrics=lambda done: MetricsLog(
            settings.metrics_file, stage=stage, num_steps=schedule.num_steps, resume_step=done
        ),
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


def _quality(margin_P: Tensor, pairs: Sequence[EncodedPair]) -> dict[str, Any]:
    return pair_quality(margin_P.tolist(), [pair.probability_first for pair in pairs])


def _member_folder(settings: RewardTraining, number: int) -> Path:
    return settings.out / ("model" if settings.num_members == 1 else f"model-{number}")


def _save(
    engine: TrainingEngine, folder: Path, *, number: int, settings: RewardTraining, base: Base, quality: dict[str, Any]
) -> None:
    card = model_card(
        title="Reward model",
        base=base,
        facts={
            "labels sha256": file_sha256(settings.labels),
            "seed": settings.seed + number,
            "held-out accuracy against the judge": quality["accuracy"],
            "held-out Brier score": quality["brier"],
            "held-out pairs": quality["num_pairs"],
        },
    )
    with engine.whole_weights() as state:
        if processes.rank() == 0:
            atomic_write_folder(
                folder, lambda path: save_reward_model(engine.module.model, path, base=base, card=card, state=state)
            )
    processes.barrier()
