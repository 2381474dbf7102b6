"""GRPO from AI feedback: sample, score, update, publish; again. Readable top to bottom."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from rlaif.client.reward import RewardClient
from rlaif.client.sampler import SamplerClient
from rlaif.runtime.artifacts import PublishedVersion, atomic_write_folder
from rlaif_pipelines.training import engine as processes
from rlaif_pipelines.training.checkpoint import checkpointed_steps, save_checkpoint
from rlaif_pipelines.training.config.rl import RlTraining
from rlaif_pipelines.training.data import read_prompts
from rlaif_pipelines.training.engine import TrainingEngine, resume
from rlaif_pipelines.training.errors import GuardError
from rlaif_pipelines.training.metrics import MetricsLog
from rlaif_pipelines.training.model import Base, PolicyLogprobs, load_policy, model_card, open_base, save_model
from rlaif_pipelines.training.packing import layout_for
from rlaif_pipelines.training.policy_update import PolicyUpdater, UpdateReport
from rlaif_pipelines.training.publishing import drop_old_versions, publish, wait_until_served
from rlaif_pipelines.training.record import identity_of, write_record
from rlaif_pipelines.training.rollouts import Rewards, RolloutMaker, Rollouts, Sampler

STAGE = "rl"


def run(settings: RlTraining) -> dict[str, Any]:
    """Trains against the services that the settings name."""
    with SamplerClient(settings.sampler) as sampler, RewardClient(settings.rewards) as rewards:
        return train(settings, sampler=sampler, rewards=rewards)


def train(settings: RlTraining, *, sampler: Sampler, rewards: Rewards) -> dict[str, Any]:
    """Trains the policy, or goes on from the last checkpoint; writes its folder and training.json.

    GuardError, after all that is written, when a guard stopped it.
    """
    began = time.perf_counter()
    prompts = read_prompts(settings.prompts)
    base = open_base(settings.policy)
    processes.start_processes(settings.engine)
    loop = _Loop(
        settings,
        base=base,
        sampler=sampler,
        maker=RolloutMaker(settings, prompts=prompts, sampler=sampler, rewards=rewards),
    )
    stopped: GuardError | None = None
    try:
        loop.run()
    except GuardError as error:
        stopped = error
    results = loop.results(stopped)
    loop.save(results)
    if processes.rank() == 0:
        write_record(
            settings.out,
            verb="rl",
            settings=settings,
            base=base,
            models=[settings.out / "model"],
            inputs={"prompts": settings.prompts},
            results=results,
            seconds=time.perf_counter() - began,
        )
    if stopped is not None:
        raise stopped
    return results


class _Loop:
    """The weights, and where in the schedule they are."""

    def __init__(self, settings: RlTraining, *, base: Base, sampler: Sampler, maker: RolloutMaker) -> None:
        self._settings = settings
        self._base = base
        self._sampler = sampler
        self._maker = maker
        self._checkpoints = settings.out / "checkpoints"
        self._identity = identity_of(settings, base=base, inputs={"prompts": settings.prompts})
        policy = self._policy()
        layout = layout_for(policy.model, pad_id=base.pad_id, share_prefixes=settings.engine.share_prefixes)
        self._engine = TrainingEngine(
            policy,
            settings=settings.engine,
            optimizer=settings.optimizer,
            num_steps=settings.num_steps * settings.updates_per_batch,
        )
        self._updater = PolicyUpdater(self._engine, reference=self._policy(), settings=settings, layout=layout)
        self._step = 0
        self._last_line: dict[str, Any] = {}
        self._published: PublishedVersion | None = None

    def run(self) -> None:
        """Every step that is not yet done."""
        settings = self._settings
        pending = self._resume()
        log = MetricsLog(
            settings.metrics_file if processes.rank() == 0 else None,
            stage=STAGE,
            num_steps=settings.num_steps,
            resume_step=self._step,
        )
        self._publish()
        self._engine.module.train()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="rollouts") as ahead:
            while self._step < settings.num_steps:
                began = time.perf_counter()
                rollouts = pending or self._gather(self._start(ahead, self._step))
                # With staleness 1 the next batch is sampled from the weights of before this update, while it is made.
                stale = settings.staleness == 1 and self._step + 1 < settings.num_steps
                next_rollouts = self._start(ahead, self._step + 1) if stale else None
                train_began = time.perf_counter()
                report = self._updater.update(rollouts, first_update=self._step * settings.updates_per_batch)
                train_seconds = time.perf_counter() - train_began
                pending = self._gather(next_rollouts) if stale else None
                self._step += 1
                publish_began = time.perf_counter()
                self._publish()
                self._checkpoint(pending)
                ended = time.perf_counter()
                self._last_line = _figures(
                    rollouts, report, seconds=ended - began, train=train_seconds, publish=ended - publish_began
                )
                log.write(self._step, self._last_line)

    def results(self, stopped: GuardError | None) -> dict[str, Any]:
        """What training.json tells."""
        figures = {name: self._last_line.get(name) for name in ("reward", "gold", "kl", "entropy", "completion_tokens")}
        published = self._published
        return {
            "num_steps": self._step,
            "version": self._version,
            "digest": published.digest if published else None,
            "stopped_by": stopped.message if stopped else None,
            "last_step": figures,
        }

    def save(self, results: Mapping[str, Any]) -> None:
        """Writes the weights as `out`/model."""
        card = model_card(title="Policy", base=self._base, facts={"policy": self._settings.publish.policy, **results})
        with self._engine.whole_weights() as state:
            if processes.rank() == 0:
                atomic_write_folder(
                    self._settings.out / "model",
                    lambda folder: save_model(
                        self._engine.module.model, folder, base=self._base, card=card, state=state
                    ),
                )
        processes.barrier()

    @property
    def _version(self) -> int:
        return self._settings.publish.base_version + self._step * self._settings.updates_per_batch

    def _policy(self) -> PolicyLogprobs:
        engine = self._settings.engine
        model = load_policy(self._base, precision=engine.precision, attention=engine.attention)
        return PolicyLogprobs(
            model, temperature=self._settings.temperature, autocast=engine.precision == "bfloat16_autocast"
        )

    def _resume(self) -> Rollouts | None:
        """Goes back to the last checkpoint; the batch that was sampled ahead by then, if one was."""
        found = resume(self._engine, self._checkpoints, identity=self._identity)
        if found is None:
            return None
        self._step = found.step
        ahead = found.state["rollouts"]
        return Rollouts.from_json(ahead) if ahead else None

    def _start(self, ahead: ThreadPoolExecutor, step: int) -> Future[Rollouts] | None:
        """Process 0 alone talks to the services."""
        if processes.rank() != 0:
            return None
        return ahead.submit(self._maker.make, step, version=self._version)

    def _gather(self, future: Future[Rollouts] | None) -> Rollouts:
        rollouts: Rollouts = processes.broadcast(future.result() if future else None)
        return rollouts

    def _publish(self) -> None:
        settings = self._settings
        facts = {"optimiser steps": self._step * settings.updates_per_batch, "reward": settings.reward.name}
        self._published = publish(
            self._engine,
            version=self._version,
            settings=settings.publish,
            base=self._base,
            facts=facts,
            failures=settings.failures,
        )
        if self._published is not None:
            wait_until_served(
                self._published, sampler=self._sampler, failures=settings.failures, target=settings.sampler.target
            )
            checkpointed = (step * settings.updates_per_batch for step in checkpointed_steps(self._checkpoints))
            base_version = settings.publish.base_version
            drop_old_versions(
                settings.publish,
                kept={base_version, *(base_version + steps for steps in checkpointed)},
                failures=settings.failures,
            )

    def _checkpoint(self, pending: Rollouts | None) -> None:
        settings = self._settings
        if not settings.checkpoint_every or self._step % settings.checkpoint_every:
            return
        save_checkpoint(
            self._checkpoints,
            step=self._step,
            write=self._engine.save,
            state={"rollouts": pending.to_json() if pending else None},
            identity=self._identity,
            keep=settings.keep_checkpoints,
            is_first_process=processes.rank() == 0,
            barrier=processes.barrier,
        )


def _figures(
    rollouts: Rollouts, report: UpdateReport, *, seconds: float, train: float, publish: float
) -> dict[str, Any]:
    """The line of a step in metrics.jsonl."""
    rewards = torch.tensor(
        [value for row in rollouts.rewards for value in row if value is not None], dtype=torch.float64
    )
    lengths = [len(tokens) for group in rollouts.token_ids for tokens in group]
    figures: dict[str, Any] = {
        "reward": float(rewards.mean()),
        "reward_sd": float(rewards.std()),
        "gold": rollouts.gold,
        "kl": report.kl,
        "entropy": report.entropy,
        "completion_tokens": sum(lengths) / len(lengths),
        "clip_fraction": report.clip_fraction,
        "truncated_fraction": report.truncated_fraction,
        "grad_norm": report.grad_norm,
        "loss": report.loss,
        "tokens_per_second": sum(lengths) / seconds,
        "dropped": {
            **rollouts.failures,
            "groups_below_quorum": report.advantages.num_groups_below_quorum,
            "groups_without_variance": report.advantages.num_groups_without_variance,
        },
        "policy_version": rollouts.policy_version,
        "seconds": {
            "step": seconds,
            "sample": rollouts.sample_seconds,
            "reward": rollouts.reward_seconds,
            "train": train,
            "publish": publish,
        },
    }
    return figures if rollouts.watch is None else {**figures, "reward_model": rollouts.watch}
