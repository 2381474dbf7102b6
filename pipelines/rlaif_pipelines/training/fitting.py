"""The loop over a fixed set of examples that reward models, DPO and supervised fine-tuning share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from rlaif_pipelines.training import engine as processes
from rlaif_pipelines.training.checkpoint import save_checkpoint
from rlaif_pipelines.training.config.common import TrainingSettings
from rlaif_pipelines.training.data import epoch_order
from rlaif_pipelines.training.engine import TrainingEngine, resume
from rlaif_pipelines.training.errors import DivergedError
from rlaif_pipelines.training.metrics import MetricsLog
from rlaif_pipelines.training.model import Base, PolicyLogprobs, load_policy
from rlaif_pipelines.training.packing import Layout, Tree, layout_for


class Example(Protocol):
    """What the loop must know of a pair, a conversation or whatever is trained on."""

    @property
    def tree(self) -> Tree:
        """Its sequences."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all its sequences."""

    @property
    def weight(self) -> float:
        """Its share in the denominator of a batch's mean loss."""


ExampleT = TypeVar("ExampleT", bound=Example)


@dataclass(frozen=True)
class Measured:
    """What a model says of some examples: their mean loss by weight, and sums that go into the step's figures."""

    loss: Tensor
    sums_F: Tensor


@dataclass(frozen=True)
class Schedule:
    """How often and in which portions the examples are shown."""

    num_examples: int
    batch_examples: int
    num_epochs: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass; the last may be smaller."""
        return -(-self.num_examples // self.batch_examples)

    @property
    def num_steps(self) -> int:
        """Optimiser steps altogether."""
        return self.steps_per_epoch * self.num_epochs

    def batch(self, step: int) -> list[int]:
        """Positions of a step's examples: seed and step alone decide, so resuming needs no more than the step."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order = epoch_order(self.num_examples, seed=self.seed, epoch=epoch)
        return order[index * self.batch_examples : (index + 1) * self.batch_examples]


def fit(
    engine: TrainingEngine,
    examples: Sequence[ExampleT],
    *,
    measure: Callable[[Sequence[ExampleT]], Measured],
    figures: Callable[[Sequence[float]], Mapping[str, float | None]],
    schedule: Schedule,
    layout: Layout,
    settings: TrainingSettings,
    checkpoints: Path,
    identity: str,
    metrics: Callable[[int], MetricsLog],
) -> None:
    """Minimises the mean loss of the examples; goes on from the last checkpoint, if there is one.

    `figures` turns the sums of a whole batch, over its micro-batches and all processes, into what the log shows beside
    the loss. `identity` says which training this is; `metrics` opens the log, given the step that is already done.
    """
    batch_field = "batch_conversations" if hasattr(settings, "batch_conversations") else "batch_pairs"
    processes.check_batch(schedule.batch_examples, field=batch_field)
    found = resume(engine, checkpoints, identity=identity)
    start = found.step if found else 0
    log = metrics(start) if processes.rank() == 0 else None
    for step in range(start, schedule.num_steps):
        began = time.perf_counter()
        batch = [examples[position] for position in schedule.batch(step)]
        loss, sums = _backward(engine, batch, measure=measure, layout=layout, settings=settings)
        grad_norm = engine.step(step)
        if log is not None:
            seconds = time.perf_counter() - began
            num_tokens = sum(example.num_tokens for example in batch)
            rates = {"grad_norm": grad_norm, "tokens_per_second": num_tokens / seconds, "seconds": seconds}
            log.write(step + 1, {"loss": loss, **figures(sums), **rates})
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
    batch: Sequence[ExampleT],
    *,
    measure: Callable[[Sequence[ExampleT]], Measured],
    layout: Layout,
    settings: TrainingSettings,
) -> tuple[float, list[float]]:
    """(loss of the batch, its sums), the gradient being in the engine.

    The mean of each micro-batch times its share of the batch's weight: so they add up to the batch's mean.
    """
    batch_weight = sum(example.weight for example in batch)
    # An epoch's last batch may hold fewer than there are processes: those without one run another's, for nothing.
    num_real = len(batch)
    shown = [*batch, *[batch[0]] * (processes.num_processes() - num_real)]
    groups = layout.plan(
        [example.tree for example in shown],
        max_tokens=settings.engine.micro_batch_tokens,
        num_processes=processes.num_processes(),
    )
    mine = groups[processes.rank() :: processes.num_processes()]
    totals = torch.zeros(1, dtype=torch.float64, device=engine.device)
    for number, group in enumerate(mine, start=1):
        real = [position for position in group if position < num_real]
        share = sum(shown[position].weight for position in real) / batch_weight
        found = measure([shown[position] for position in group])
        loss = found.loss * share
        engine.backward(loss, last=number == len(mine))
        sums_F = found.sums_F.double() * bool(real)
        totals = totals + torch.cat([loss.detach().double()[None], sums_F])
    loss_value, *sums = processes.sum_over_processes(totals).tolist()
    if not math.isfinite(loss_value):
        raise DivergedError("the loss is not finite; lower the learning rate")
    return loss_value, sums


def policy_engine(settings: TrainingSettings, *, base: Base, num_steps: int) -> tuple[TrainingEngine, Layout]:
    """The base policy under DeepSpeed, and how its rows are laid out."""
    precision = settings.engine.precision
    model = load_policy(
        base, precision=precision, attention=settings.engine.attention, lora=settings.engine.lora, seed=settings.seed
    ).eval()
    layout = layout_for(model, pad_id=base.pad_id, share_prefixes=settings.engine.share_prefixes)
    engine = TrainingEngine(
        PolicyLogprobs(model, autocast=precision == "bfloat16_autocast"),
        settings=settings.engine,
        optimizer=settings.optimizer,
        num_steps=num_steps,
    )
    return engine, layout
