"""One batch of rollouts into one or more optimiser steps.

Shape legend: N completion tokens, flat; B completions; Q prompts; G completions of one prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlaif_pipelines.training import engine as processes
from rlaif_pipelines.training.config.rl import RlTraining
from rlaif_pipelines.training.engine import TrainingEngine
from rlaif_pipelines.training.errors import DivergedError
from rlaif_pipelines.training.lora import adapter_off
from rlaif_pipelines.training.losses import (
    GroupAdvantages,
    group_advantages,
    kl_penalty,
    policy_loss,
    sum_by_sequence,
    token_weights,
)
from rlaif_pipelines.training.packing import Layout, Rows, Tree
from rlaif_pipelines.training.rollouts import Rollouts


@dataclass(frozen=True)
class UpdateReport:
    """What one batch did; figures are None when no sample was left to train on."""

    advantages: GroupAdvantages
    num_sequences: int
    num_tokens: int
    """Completion tokens trained on."""
    loss: float | None = None
    kl: float | None = None
    """Mean over completions of Σ over tokens of log π/π_ref, nats: k1, unbiased for rollouts of the same weights."""
    entropy: float | None = None
    """Mean over tokens, nats."""
    clip_fraction: float | None = None
    truncated_fraction: float | None = None
    """Share of tokens whose importance weight was cut."""
    grad_norm: float | None = None


@dataclass(frozen=True)
class _Sample:
    prompt_ids: list[int]
    token_ids: list[int]
    logprobs: list[float]
    advantage: float


@dataclass(frozen=True)
class _Tensors:
    rows: Rows
    sampler_logprobs_N: Tensor
    advantages_N: Tensor
    lengths_B: Tensor


class PolicyUpdater:
    """Takes the optimiser steps; holds the frozen reference, or None where it is the policy without its adapter."""

    def __init__(
        self, engine: TrainingEngine, *, reference: torch.nn.Module | None, settings: RlTraining, layout: Layout
    ) -> None:
        self._engine = engine
        self._reference = None if reference is None else reference.requires_grad_(False).eval().to(engine.device)
        self._settings = settings
        self._layout = layout

    def update(
        self, rollouts: Rollouts, *, first_update: int, kl_beta: float | None = None, rate_factor: float = 1.0
    ) -> UpdateReport:
        """Takes `updates_per_batch` steps, the first numbered `first_update`, counted from 0.

        None, and no weight moves, where too few samples are left. `kl_beta` None is that of the settings; the learning
        rate is multiplied by `rate_factor`. DivergedError, before any weight moves, when a loss is not finite.
        """
        settings = self._settings
        kl_beta = settings.kl_beta if kl_beta is None else kl_beta
        nan = float("nan")
        rewards_QG = torch.tensor([[nan if value is None else value for value in row] for row in rollouts.rewards])
        if settings.kl_in == "reward" and kl_beta:
            rewards_QG = rewards_QG - kl_beta * self._kl_of(rollouts)
        advantages = group_advantages(
            rewards_QG, quorum=settings.quorum, kind=settings.advantage, epsilon=settings.advantage_epsilon
        )
        groups = _samples(rollouts, advantages)
        samples = [sample for group in groups for sample in group]
        report = UpdateReport(
            advantages=advantages,
            num_sequences=len(samples),
            num_tokens=sum(len(sample.token_ids) for sample in samples),
        )
        if len(samples) < processes.num_processes() * settings.updates_per_batch:
            return report
        parts = _split(groups, settings.updates_per_batch)
        if min(map(len, parts)) < processes.num_processes():
            return report
        old = [self._old_logprobs(part) for part in parts] if len(parts) > 1 else [None]
        sums, norms = torch.zeros(5, dtype=torch.float64), []
        for number, (part, old_of_part) in enumerate(zip(parts, old, strict=True)):
            loss_beta = kl_beta if settings.kl_in == "loss" else 0.0
            part_sums = processes.sum_over_processes(self._backward(part, old_logprobs=old_of_part, kl_beta=loss_beta))
            if not bool(torch.isfinite(part_sums).all()):
                raise DivergedError("the loss is not finite; lower the learning rate")
            norms.append(self._engine.step(first_update + number, rate_factor=rate_factor))
            sums += part_sums
        loss, kl, entropy, clipped, truncated = sums.tolist()
        return UpdateReport(
            advantages=advantages,
            num_sequences=report.num_sequences,
            num_tokens=report.num_tokens,
            loss=loss / len(parts),
            kl=kl / report.num_sequences,
            entropy=entropy / report.num_tokens,
            clip_fraction=clipped / report.num_tokens,
            truncated_fraction=truncated / report.num_tokens,
            grad_norm=max(norms),
        )

    def _backward(self, samples: Sequence[_Sample], *, old_logprobs: list[Tensor] | None, kl_beta: float) -> Tensor:
        """Sums over this process's share: loss, k1, entropy, clipped tokens, truncated tokens."""
        settings = self._settings
        num_tokens = sum(len(sample.token_ids) for sample in samples)
        sums = torch.zeros(5, dtype=torch.float64)
        mine = self._share(samples)
        for number, group in enumerate(mine, start=1):
            tensors = self._tensors([samples[position] for position in group])
            reference_logprobs_N = self._reference_logprobs(tensors)
            logprobs_N, entropy_N = self._engine(*tensors.rows.for_logprobs)
            current_N = logprobs_N.detach()
            loss = policy_loss(
                logprobs_N,
                # One step a batch: the policy before the step is this one.
                old_logprobs_N=current_N if old_logprobs is None else _pick(old_logprobs, group),
                sampler_logprobs_N=tensors.sampler_logprobs_N,
                reference_logprobs_N=reference_logprobs_N,
                advantages_N=tensors.advantages_N,
                weights_N=token_weights(
                    tensors.lengths_B,
                    aggregation=settings.aggregation,
                    num_sequences=len(samples),
                    num_tokens=num_tokens,
                    constant_length=settings.max_tokens,
                ),
                sequence_N=tensors.rows.branches_N if settings.ratio == "sequence" else None,
                clip_low=settings.clip_low,
                clip_high=settings.clip_high,
                max_importance_weight=settings.max_importance_weight,
                kl_beta=kl_beta,
                kl_estimator=settings.kl_estimator,
            )
            self._engine.backward(loss.loss, last=number == len(mine))
            kl_N = kl_penalty(current_N, reference_logprobs_N=reference_logprobs_N, estimator="k1")
            figures = [loss.loss.detach(), kl_N.sum(), entropy_N.sum(), loss.num_clipped, loss.num_truncated]
            sums += torch.stack([figure.double().cpu() for figure in figures])
        return sums

    @torch.no_grad()
    def _kl_of(self, rollouts: Rollouts) -> Tensor:
        """kl_QG: each completion's KL to the reference, estimated from the sampler's own log-probabilities."""
        groups = _samples(rollouts, None)
        samples = [sample for group in groups for sample in group]
        found = torch.zeros(len(samples))
        for group in self._plan(samples):
            tensors = self._tensors([samples[position] for position in group])
            reference_N = self._reference_logprobs(tensors)
            kl_N = kl_penalty(
                tensors.sampler_logprobs_N, reference_logprobs_N=reference_N, estimator=self._settings.kl_estimator
            )
            found[group] = sum_by_sequence(kl_N, sequence_N=tensors.rows.branches_N, num_sequences=len(group)).cpu()
        return found.view(len(groups), -1)

    @torch.no_grad()
    def _reference_logprobs(self, tensors: _Tensors) -> Tensor:
        inputs = tensors.rows.for_logprobs
        if self._reference is not None:
            logprobs_N: Tensor = self._reference(*inputs)[0]
            return logprobs_N
        with adapter_off(self._engine.module):
            logprobs_N, _ = self._engine(*inputs)
        return logprobs_N

    @torch.no_grad()
    def _old_logprobs(self, samples: Sequence[_Sample]) -> list[Tensor]:
        """Log-probabilities of every sample under the weights before the first step, whole on every process."""
        found: dict[int, Tensor] = {}
        for group in self._plan(samples):
            members = [samples[position] for position in group]
            tensors = self._tensors(members)
            logprobs_N, _ = self._engine(*tensors.rows.for_logprobs)
            rows = logprobs_N.split([len(sample.token_ids) for sample in members])
            found.update(zip(group, rows, strict=True))
        return [found[position] for position in range(len(samples))]

    def _share(self, samples: Sequence[_Sample]) -> list[list[int]]:
        passes = self._plan(samples, num_processes=processes.num_processes())
        return passes[processes.rank() :: processes.num_processes()]

    def _plan(self, samples: Sequence[_Sample], *, num_processes: int = 1) -> list[list[int]]:
        """Positions of the samples of each pass; completions of one prompt share it."""
        max_tokens = self._settings.engine.micro_batch_tokens
        runs = _runs(samples, max_tokens=max_tokens, at_least=num_processes)
        trees = _trees([[samples[position] for position in run] for run in runs])
        passes = self._layout.plan(trees, max_tokens=max_tokens, num_processes=num_processes)
        return [[position for run in group for position in runs[run]] for group in passes]

    def _tensors(self, samples: Sequence[_Sample]) -> _Tensors:
        runs = _runs(samples, max_tokens=self._settings.engine.micro_batch_tokens)
        rows = self._layout.rows(_trees([[samples[position] for position in run] for run in runs]))
        lengths_B = torch.tensor([len(sample.token_ids) for sample in samples])
        device = self._engine.device
        return _Tensors(
            rows=rows.to(device),
            sampler_logprobs_N=torch.tensor([logprob for sample in samples for logprob in sample.logprobs]).to(device),
            advantages_N=torch.tensor([sample.advantage for sample in samples]).repeat_interleave(lengths_B).to(device),
            lengths_B=lengths_B.to(device),
        )


def _runs(samples: Sequence[_Sample], *, max_tokens: int, at_least: int = 1) -> list[list[int]]:
    """Positions of neighbours with one prompt, as many together as `max_tokens` allow; at least that many runs."""
    runs: list[list[int]] = []
    size = 0
    for position, sample in enumerate(samples):
        size += len(sample.token_ids)
        if not runs or sample.prompt_ids != samples[runs[-1][0]].prompt_ids or size > max_tokens:
            runs.append([])
            size = len(sample.prompt_ids) + len(sample.token_ids)
        runs[-1].append(position)
    while len(runs) < min(at_least, len(samples)):
        longest = max(range(len(runs)), key=lambda index: len(runs[index]))
        run = runs.pop(longest)
        runs[longest:longest] = [run[: len(run) // 2], run[len(run) // 2 :]]
    return runs


def _trees(runs: Sequence[Sequence[_Sample]]) -> list[Tree]:
    return [Tree(run[0].prompt_ids, [sample.token_ids for sample in run]) for run in runs]


def _samples(rollouts: Rollouts, advantages: GroupAdvantages | None) -> list[list[_Sample]]:
    """The samples that are trained on, by prompt; without advantages all there are."""
    used = advantages.used_QG.tolist() if advantages else None
    values = advantages.advantages_QG.tolist() if advantages else None
    return [
        [
            _Sample(
                prompt_ids=prompt_ids,
                token_ids=rollouts.token_ids[q][g],
                logprobs=rollouts.logprobs[q][g],
                advantage=values[q][g] if values else 0.0,
            )
            for g in range(len(rollouts.token_ids[q]))
            if used is None or used[q][g]
        ]
        for q, prompt_ids in enumerate(rollouts.prompt_ids)
    ]


def _split(groups: Sequence[list[_Sample]], num_parts: int) -> list[list[_Sample]]:
    """The samples in that many parts, whole groups in each; the order of the prompts keeps categories mixed."""
    filled = [group for group in groups if group]
    size = -(-len(filled) // num_parts)
    return [
        [sample for group in filled[start : start + size] for sample in group] for start in range(0, len(filled), size)
    ]


def _pick(rows: Sequence[Tensor], positions: Sequence[int]) -> Tensor:
    return torch.cat([rows[position] for position in positions])
