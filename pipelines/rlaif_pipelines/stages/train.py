"""Train the policy: GRPO on the judge's score or the reward model, or DPO on the labels. Publishes its versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from rlaif.runtime.artifacts import PublishedVersion
from rlaif.runtime.store import open_store
from rlaif_pipelines.context import RunContext, StageOutput, StageResult, stage_name
from rlaif_pipelines.stages.constitution import load_constitution
from rlaif_pipelines.stages.judge import training_labels
from rlaif_pipelines.stages.policy import PolicyVersion, starting_policy
from rlaif_pipelines.stages.prompts import PROMPTS_FILE
from rlaif_pipelines.stages.reward_model import reward_model_name
from rlaif_pipelines.stages.served import judge_identity
from rlaif_pipelines.stages.training_job import train_model
from rlaif_pipelines.training.config.verbs import Verb

JUDGE_REWARD: Final = "rewardModels/judge"


def train(context: RunContext, *, round_number: int = 1) -> StageResult:
    """The policy's new version: number of optimiser steps since the base, folder, digest."""
    stage = stage_name("train", round_number)
    start = starting_policy(context, round_number=round_number)
    verb, config = _verb(context, start, round_number=round_number)
    inputs = {"verb": verb, "start": start.digest, "version": start.version, **_inputs(context, round_number)}

    def body(folder: Path) -> StageOutput:
        if context.settings.trains_reward_model:
            _serve_reward_model(context, round_number)
        values = train_model(context, stage, verb=verb, config={**config, "out": folder / "job"})
        published = published_policy(context)
        context.record_event(
            "policy_published",
            subject=context.policy,
            payload={
                "round": round_number,
                "version": published.version,
                "digest": published.digest,
                "from": start.digest,
            },
        )
        return StageOutput(
            values={
                **values,
                "version": published.version,
                "uri": published.uri,
                "digest": published.digest,
                "metrics": str(context.metrics_path(round_number=round_number)),
            }
        )

    return context.run_stage(stage, body, inputs=inputs, resumable=True)


def _verb(context: RunContext, start: PolicyVersion, *, round_number: int) -> tuple[Verb, dict[str, Any]]:
    settings = context.settings
    common: dict[str, Any] = {
        "policy": start.uri,
        "seed": settings.seed,
        "engine": settings.engine.model_dump(),
        "metrics_path": context.metrics_path(round_number=round_number),
        "publish": {"artifact_root": context.artifact_root, "policy": context.policy, "base_version": start.version},
    }
    if settings.algorithm == "dpo":
        labels, _ = training_labels(context, round_number=round_number)
        beta = {} if settings.dpo.beta is None else {"beta": settings.dpo.beta}
        return "dpo", common | beta | {
            "labels": labels,
            "loss": settings.dpo.loss,
            "sft_weight": settings.dpo.sft_weight,
            "target_margin": settings.dpo.target_margin,
            "num_epochs": settings.dpo.epochs,
            "batch_pairs": settings.dpo.batch_size,
            "optimizer": {"learning_rate": settings.dpo.learning_rate, "warmup_steps": 10, "schedule": "linear"},
        }
    judged = {"name": JUDGE_REWARD, "constitution": load_constitution(settings.constitution).name}
    distilled = {"name": reward_model_name(context.policy)}
    by_judge = settings.reward == "judge"
    return "rl", common | {
        "prompts": context.result("prompts").path(PROMPTS_FILE),
        "sampler": context.client_settings("sampler"),
        "rewards": context.client_settings("reward"),
        "reward": judged if by_judge else distilled,
        "watch": (distilled if by_judge else judged) if settings.trains_reward_model else None,
        "gold": "playground" if settings.playground else None,
        "num_steps": settings.rl.steps,
        "prompts_per_step": settings.rl.prompts_per_step,
        "group_size": settings.rl.completions_per_prompt,
        "advantage": settings.rl.advantage,
        "advantage_epsilon": settings.rl.advantage_epsilon,
        "aggregation": settings.rl.aggregation,
        "ratio": settings.rl.ratio,
        "updates_per_batch": settings.rl.updates_per_batch,
        "quorum": max(2, settings.rl.completions_per_prompt // 2),
        "max_tokens": settings.sampling.max_tokens,
        "temperature": settings.sampling.temperature,
        "kl_beta": settings.rl.kl_beta,
        "kl_in": settings.rl.kl_in,
        # In a reward k1 gives the gradient of the KL itself; k3 is for losses.
        "kl_estimator": "k1" if settings.rl.kl_in == "reward" else "k3",
        "kl_target": settings.rl.kl_target,
        "kl_gain": settings.rl.kl_gain,
        "clip_low": settings.rl.clip_low,
        "clip_high": settings.rl.clip_high,
        "watch_every": settings.rl.watch_every,
        "watch_prompts": settings.rl.watch_prompts,
        "guards": settings.rl.guards.model_dump(),
        "staleness": settings.rl.staleness,
        "checkpoint_every": settings.rl.checkpoint_every,
        # A short memory of squared gradients: 40 steps are fewer than the thousand that 0.999 averages over.
        "optimizer": {
            "learning_rate": settings.rl.learning_rate,
            "warmup_steps": 5,
            "schedule": settings.rl.schedule,
            "betas": (0.9, 0.95),
        },
    }


def _inputs(context: RunContext, round_number: int) -> dict[str, Any]:
    """What the trained weights depend on."""
    settings = context.settings
    common = {"seed": settings.seed, "engine": settings.engine.model_dump(), "policy": context.policy}
    if settings.algorithm == "dpo":
        _, labels = training_labels(context, round_number=round_number)
        return common | labels | {"dpo": settings.dpo.model_dump()}
    inputs = common | {
        "prompts": context.result("prompts").values["train_sha256"],
        "rl": settings.rl.model_dump(),
        "reward": settings.reward,
        "max_tokens": settings.sampling.max_tokens,
        "temperature": settings.sampling.temperature,
        "constitution": load_constitution(settings.constitution).sha256,
        "judge": judge_identity(context),
    }
    if settings.trains_reward_model:
        inputs["reward_model"] = context.result(stage_name("reward_model", round_number)).values["members"]
    return inputs


def _serve_reward_model(context: RunContext, round_number: int) -> None:
    """Have the reward service load what was trained; started again, it may have forgotten."""
    from rlaif.client.reward import ModelReference

    members = context.result(stage_name("reward_model", round_number)).values["members"]
    with context.reward() as client:
        client.load_reward_model(
            reward_model_name(context.policy),
            [ModelReference(uri=member["uri"], digest=member["digest"]) for member in members],
        )


def published_policy(context: RunContext) -> PublishedVersion:
    """The version that the run's policy has now."""
    published = open_store(context.artifact_root).read_desired(context.policy)
    assert published is not None, "training publishes what it leaves"
    return published
