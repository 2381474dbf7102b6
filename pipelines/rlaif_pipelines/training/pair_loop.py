"""The loop over labelled pairs that reward and DPO training share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlaif_pipelines.training import engine as processes
from rlaif_pipelines.training.checkpoint import save_checkpoint
from rlaif_pipelines.training.config.common import TrainingSettings
from rlaif_pipelines.training.data import epoch_order
from rlaif_pipelines.training.engine import TrainingEngine, resume
from rlaif_pipelines.training.errors import DivergedError
from rlaif_pipelines.training.metrics import MetricsLog
from rlaif_pipelines.training.packing import Layout
from rlaif_pipelines.training.pairs import EncodedPair


@dataclass(frozen=True)
class MeasuredLoss:
    """What a model says of some pairs; `margins_P`, its lead of the first responses, carries no gradient."""

    loss: Tensor
    """Weighted mean over the pairs."""
    margins_P: Tensor


PairLoss = Callable[[Sequence[EncodedPair]], MeasuredLoss]


@dataclass(frozen=True)
class PairSchedule:
    """How often and in which portions the pairs are shown."""

    num_pairs: int
    batch_pairs: int
    num_epochs: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass; the last may be smaller."""
        return -(-self.num_pairs // self.batch_pairs)

    @property
    def num_steps(self) -> int:
        """Optimiser steps altogether."""
        return self.steps_per_epoch * self.num_epochs

    def batch(self, step: int) -> list[int]:
        """Positions of a step's pairs: a function of seed and step alone, so resuming needs no more than the step."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order = epoch_order(self.num_pairs, seed=self.seed, epoch=epoch)
        return order[index * self.batch_pairs : (index + 1) * self.batch_pairs]


def fit_pairs(
    engine: TrainingEngine,
    pairs: Sequence[EncodedPair],
    *,
    pair_loss: PairLoss,
    schedule: PairSchedule,
    layout: Layout,
    settings: TrainingSettings,
    checkpoints: Path,
    identity: str,
    metrics: Callable[[int], MetricsLog],
) -> None:
    """Minimises the weighted mean of `pair_loss` over the pairs; goes on from the last checkpoint, if there is one.

    `identity` says which training this is; `metrics` opens the log, given the step that is already done.
    """
    found = resume(engine, checkpoints, identity=identity)
    start = found.step if found else 0
    log = metrics(start) if processes.rank() == 0 else None
    for step in range(start, schedule.num_steps):
        began = time.perf_counter()
        batch = [pairs[position] for position in schedule.batch(step)]
        figures = _backward(engine, batch, pair_loss=pair_loss, layout=layout, settings=settings)
        grad_norm = engine.step(step)
        if log is not None:
            seconds = time.perf_counter() - began
            num_tokens = sum(pair.num_tokens for pair in batch)
            log.write(
                step + 1,
                {**figures, "grad_norm": grad_norm, "tokens_per_second": num_tokens / seconds, "seconds": seconds},
            )
        done = step + 1
        if settings.checkpoint_every and done % settings.checkpoint_every == 0 and done < schedule.num_steps:
            save_checkpoint(
                checkpoints,
                step=done,
                write=engine.save,
                state={},
                identity=identity,
                keep=settings.keep_checkpoints,
                is_first_process=processes.rank() == 0,
                barrier=processes.barrier,
            )


def _backward(
    engine: TrainingEngine,
    batch: Sequence[EncodedPair],
    *,
    pair_loss: PairLoss,
    layout: Layout,
    settings: TrainingSettings,
) -> dict[str, float | None]:
    """The batch's loss, accuracy and mean lead of what its labels prefer, the gradient being in the engine."""
    batch_weight = sum(pair.weight for pair in batch)
    groups = layout.plan(
        [pair.tree for pair in batch],
        max_tokens=settings.engine.micro_batch_tokens,
        num_processes=processes.num_processes(),
    )
    mine = groups[processes.rank() :: processes.num_processes()]
    totals = torch.zeros(4, dtype=torch.float64, device=engine.device)
    for number, group in enumerate(mine, start=1):
        members = [batch[position] for position in group]
        share = sum(pair.weight for pair in members) / batch_weight
        found = pair_loss(members)
        loss = found.loss * share
        engine.backward(loss, last=number == len(mine))
        sides_P = torch.tensor([pair.preferred for pair in members], dtype=torch.float64, device=engine.device)
        leads_P = sides_P * found.margins_P
        totals += torch.stack([loss.detach().double(), (leads_P > 0).sum(), leads_P.sum(), (sides_P != 0).sum()])
    loss_value, num_right, lead, num_decided = processes.sum_over_processes(totals).tolist()
    if not math.isfinite(loss_value):
        raise DivergedError("the loss is not finite; lower the learning rate")
    return {
        "loss": loss_value,
        "accuracy": num_right / num_decided if num_decided else None,
        "margin": lead / num_decided if num_decided else None,
    }
