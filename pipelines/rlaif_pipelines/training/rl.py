"""Online RL from AI feedback: sample, score, update, guard, publish; again. Readable top to bottom."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from statistics import fmean, stdev
from typing import Any

from rlaif.client.reward import RewardClient
from rlaif.client.sampler import SamplerClient
from rlaif_pipelines.training import engine as processes
from rlaif_pipelines.training.checkpoint import save_checkpoint
from rlaif_pipelines.training.config.rl import RlTraining
from rlaif_pipelines.training.data import read_prompts
from rlaif_pipelines.training.engine import TrainingEngine, learning_rate, resume
from rlaif_pipelines.training.errors import GuardError
from rlaif_pipelines.training.guards import Firing, Guards, HeldOutScore, repeated_share
from rlaif_pipelines.training.losses import adapted_kl_beta
from rlaif_pipelines.training.metrics import open_metrics
from rlaif_pipelines.training.model import Base, PolicyLogprobs, load_policy, model_card, open_base
from rlaif_pipelines.training.packing import layout_for
from rlaif_pipelines.training.policy_update import PolicyUpdater, UpdateReport
from rlaif_pipelines.training.publishing import write_policy, write_version
from rlaif_pipelines.training.record import card_settings, file_sha256, identity_of, write_record
from rlaif_pipelines.training.rollouts import Rewards, RolloutMaker, Rollouts, Sampler
from rlaif_pipelines.training.versions import RolledBack, Versions

STAGE = "rl"

_log = logging.getLogger(__name__)


def run(settings: RlTraining) -> dict[str, Any]:
    """Trains against the services that the settings name."""
    with SamplerClient(settings.sampler) as sampler, RewardClient(settings.rewards) as rewards:
        return train(settings, sampler=sampler, rewards=rewards)


def train(settings: RlTraining, *, sampler: Sampler, rewards: Rewards) -> dict[str, Any]:
    """Trains the policy, or goes on from the last checkpoint; writes its folder and training.json.

    GuardError, after all that is written, when a guard stopped it; the weights left are then those it rolled back to.
    """
    began = time.perf_counter()
    prompts = read_prompts(settings.prompts)
    base = open_base(settings.policy)
    processes.start_processes(settings.engine)
    maker = RolloutMaker(settings, prompts=prompts, sampler=sampler, rewards=rewards)
    if maker.held_out_off:
        _log.warning("the held-out guard is off: %s", maker.held_out_off)
    loop = _Loop(settings, base=base, sampler=sampler, maker=maker)
    stopped = loop.run()
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
        raise GuardError(results["stopped_by"])
    return results


class _Loop:
    """The weights, and where in the schedule they are."""

    def __init__(self, settings: RlTraining, *, base: Base, sampler: Sampler, maker: RolloutMaker) -> None:
        self._settings = settings
        self._base = base
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
        reference = None if settings.engine.lora else self._policy()
        self._updater = PolicyUpdater(self._engine, reference=reference, settings=settings, layout=layout)
        self._step = 0
        self._num_skipped = 0
        self._kl_beta = settings.kl_beta
        self._guards = Guards(settings.guards)
        self._versions = Versions(settings, base=base, sampler=sampler, checkpoints=self._checkpoints)
        self._last_line: Mapping[str, Any] = {}
        self._rolled_back: RolledBack | None = None

    def run(self) -> Firing | None:
        """Every step that is not yet done; the guard that ended it early, after going back to the best version."""
        settings = self._settings
        samples = settings.prompts_per_step * settings.group_size // settings.updates_per_batch
        processes.check_batch(samples, field="prompts_per_step")
        pending = self._resume()
        log = open_metrics(settings, stage=STAGE, num_steps=settings.num_steps, resume_step=self._step)
        self._publish()
        self._engine.module.train()
        began = time.perf_counter()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="rollouts") as ahead:
            while self._step < settings.num_steps:
                rollouts = pending or self._gather(self._start(ahead, self._step))
                # With staleness 1 the next batch is sampled from the weights of before this update, while it is made.
                stale = settings.staleness == 1 and self._step + 1 < settings.num_steps
                next_rollouts = self._start(ahead, self._step + 1) if stale else None
                train_began = time.perf_counter()
                report = self._updater.update(
                    rollouts,
                    first_update=self._step * settings.updates_per_batch,
                    kl_beta=self._kl_beta,
                    rate_factor=self._guards.rate_factor,
                )
                train_ended = time.perf_counter()
                line = self._figures(rollouts, report)
                fired = self._guards.observe(self._step + 1, figures=line, held_out=self._held_out(rollouts))
                line["held_out_fall"] = self._guards.fall
                line["guards_used"] = dict(self._guards.used)
                line["guards"] = [firing.to_json() for firing in fired]
                self._versions.forget_all_but(self._guards.best)
                stopped = next((firing for firing in fired if firing.action == "stop"), None)
                if stopped is not None:
                    back = self._versions.go_back(self._guards.best) if processes.rank() == 0 else None
                    self._rolled_back = processes.broadcast(back)
                    line["rolled_back"] = self._rolled_back.to_json()
                    log.write(self._step + 1, line)
                    return stopped
                if report.loss is None:
                    self._num_skipped += 1
                elif settings.kl_target is not None and report.kl is not None:
                    self._kl_beta = adapted_kl_beta(
                        self._kl_beta, kl=report.kl, target=settings.kl_target, gain=settings.kl_gain
                    )
                pending = self._gather(next_rollouts) if stale else None
                self._step += 1
                publish_began = time.perf_counter()
                self._publish()
                ended = time.perf_counter()
                line["tokens_per_second"] = rollouts.num_tokens / (ended - began)
                line["seconds"] = {
                    "step": ended - began,
                    "sample": rollouts.sample_seconds,
                    "reward": rollouts.reward_seconds,
                    "held_out": rollouts.held_out_seconds,
                    "train": train_ended - train_began,
                    "publish": ended - publish_began,
                    # What the training stood still for, the checkpoint of the step before too.
                    "wait": (train_began - began) + (publish_began - train_ended),
                }
                began = ended
                self._last_line = line
                log.write(self._step, line)
                # After its line: who goes on from it finds every step before it told.
                self._checkpoint(pending)
        return None

    def results(self, stopped: Firing | None) -> dict[str, Any]:
        """What training.json tells."""
        names = ("reward", "gold", "held_out", "kl", "kl_beta", "entropy", "completion_tokens", "repetition")
        published, back, best = self._versions.latest, self._rolled_back, self._guards.best
        sentence = f"{stopped.sentence} (guard {stopped.guard}, step {stopped.step})" if stopped else None
        if back is not None:
            sentence = f"{sentence}; {back.sentence}"
        return {
            "num_steps": self._step,
            "num_skipped_steps": self._num_skipped,
            "version": published.version if published else self._versions.after(self._step),
            "digest": published.digest if published else None,
            "stopped_by": sentence,
            "guard": stopped.to_json() if stopped else None,
            "rolled_back": back.to_json() if back else None,
            "held_out": {"best": best.mean, "best_step": best.num_steps} if best else None,
            "held_out_off": self._maker.held_out_off,
            "last_step": {name: self._last_line.get(name) for name in names},
        }

    def save(self, results: Mapping[str, Any]) -> None:
        """Writes the weights as `out`/model."""
        settings = self._settings
        facts = {
            "policy": settings.publish.policy,
            "prompts sha256": file_sha256(settings.prompts),
            "reward": settings.reward.name,
            "constitution": settings.reward.constitution or None,
            "seed": settings.seed,
            **{key: value for key, value in results.items() if key not in ("guard", "rolled_back")},
        }
        card = model_card(title="Policy", base=self._base, facts=facts, settings=card_settings(settings))
        if self._rolled_back is None:
            write_policy(self._engine, settings.out, base=self._base, card=card)
        elif processes.rank() == 0:
            write_version(
                self._rolled_back.published, settings.out, base=self._base, card=card, settings=settings.publish
            )
        processes.barrier()

    def _policy(self) -> PolicyLogprobs:
        engine = self._settings.engine
        model = load_policy(
            self._base,
            precision=engine.precision,
            attention=engine.attention,
            lora=engine.lora,
            seed=self._settings.seed,
        )
        return PolicyLogprobs(
            model, temperature=self._settings.temperature, autocast=engine.precision == "bfloat16_autocast"
        )

    def _resume(self) -> Rollouts | None:
        """Goes back to the last checkpoint; the batch that was sampled ahead by then, if one was."""
        found = resume(self._engine, self._checkpoints, identity=self._identity)
        if found is None:
            return None
        self._step = found.step
        self._num_skipped = found.state["num_skipped"]
        self._kl_beta = found.state["kl_beta"]
        self._guards.load(found.state["guards"])
        self._versions.load(found.state["versions"])
        self._last_line = found.state["last_line"]
        ahead = found.state["rollouts"]
        return Rollouts.from_json(ahead) if ahead else None

    def _start(self, ahead: ThreadPoolExecutor, step: int) -> Future[Rollouts] | None:
        """Process 0 alone talks to the services."""
        if processes.rank() != 0:
            return None
        return ahead.submit(self._maker.make, step, version=self._versions.after(self._step))

    def _gather(self, future: Future[Rollouts] | None) -> Rollouts:
        rollouts: Rollouts = processes.broadcast(future.result() if future else None)
        return rollouts

    def _publish(self) -> None:
        self._versions.publish(self._engine, step=self._step, best=self._guards.best)

    def _checkpoint(self, pending: Rollouts | None) -> None:
        settings = self._settings
        if not settings.checkpoint_every or self._step % settings.checkpoint_every:
            return
        save_checkpoint(
            self._checkpoints,
            step=self._step,
            write=self._engine.save,
            state={
                "rollouts": pending.to_json() if pending else None,
                "num_skipped": self._num_skipped,
                "kl_beta": self._kl_beta,
                "guards": self._guards.to_json(),
                "versions": self._versions.to_json(step=self._step),
                "last_line": self._last_line,
            },
            identity=self._identity,
            keep=settings.keep_checkpoints,
            is_first_process=processes.rank() == 0,
            barrier=processes.barrier,
        )

    def _held_out(self, rollouts: Rollouts) -> HeldOutScore | None:
        if rollouts.held_out is None:
            return None
        return HeldOutScore(
            num_steps=self._versions.steps_of(rollouts.policy_version),
            version=rollouts.policy_version,
            scores=tuple(rollouts.held_out),
        )

    def _figures(self, rollouts: Rollouts, report: UpdateReport) -> dict[str, Any]:
        """The line of a step in metrics.jsonl, without its times."""
        settings = self._settings
        rate = learning_rate(
            self._step * settings.updates_per_batch,
            settings=settings.optimizer,
            num_steps=settings.num_steps * settings.updates_per_batch,
        )
        held_out = self._held_out(rollouts)
        present = [value for row in rollouts.rewards for value in row if value is not None]
        completions = [tokens for group in rollouts.token_ids for tokens in group]
        return {
            "reward": fmean(present) if present else None,
            "reward_sd": stdev(present) if len(present) > 1 else None,
            "reward_components": rollouts.components,
            "gold": rollouts.gold,
            "held_out": held_out.mean if held_out else None,
            "kl": report.kl,
            "kl_beta": self._kl_beta,
            "entropy": report.entropy,
            "completion_tokens": rollouts.num_tokens / len(completions),
            "repetition": fmean(map(repeated_share, completions)),
            "cut_off_fraction": rollouts.num_cut_off / len(completions),
            "clip_fraction": report.clip_fraction,
            "truncated_fraction": report.truncated_fraction,
            "learning_rate": rate * self._guards.rate_factor,
            "grad_norm": report.grad_norm,
            "loss": report.loss,
            "skipped": report.loss is None,
            "num_sequences": report.num_sequences,
            "dropped": {
                **rollouts.failures,
                "groups_below_quorum": report.advantages.num_groups_below_quorum,
                "groups_without_variance": report.advantages.num_groups_without_variance,
            },
            "policy_version": rollouts.policy_version,
            "staleness": self._step - self._versions.steps_of(rollouts.policy_version),
        }
