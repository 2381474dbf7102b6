"""Fine-tune the policy on its own revised replies; what comes out is where the first round starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlaif_pipelines.context import RunContext, StageOutput, StageResult
from rlaif_pipelines.stages.policy import base_policy
from rlaif_pipelines.stages.revision_gate import CONVERSATIONS_FILE
from rlaif_pipelines.stages.train import published_policy
from rlaif_pipelines.stages.training_job import train_model


def sft(context: RunContext) -> StageResult:
    """The policy's first version: number of optimiser steps, folder, digest."""
    conversations = context.result("revision_gate")
    start, sizes = base_policy(context), context.settings.constitutional
    learning = {"epochs": sizes.epochs, "learning_rate": sizes.learning_rate, "batch_size": sizes.batch_size}
    engine = context.settings.engine.model_dump()
    inputs = {
        "start": start.digest,
        "policy": context.policy,
        "conversations": conversations.outputs[CONVERSATIONS_FILE],
        "learning": learning,
        "engine": engine,
        "seed": context.settings.seed,
    }

    def body(folder: Path) -> StageOutput:
        config: dict[str, Any] = {
            "out": folder / "job",
            "policy": start.uri,
            "conversations": conversations.path(CONVERSATIONS_FILE),
            "seed": context.settings.seed,
            "num_epochs": sizes.epochs,
            "batch_conversations": sizes.batch_size,
            "optimizer": {"learning_rate": sizes.learning_rate, "warmup_steps": 5, "schedule": "linear"},
            "engine": engine,
            "metrics_path": context.metrics_path(),
            "publish": {"artifact_root": context.artifact_root, "policy": context.policy},
        }
        values = train_model(context, "sft", verb="sft", config=config)
        published = published_policy(context)
        context.record_event(
            "policy_published",
            subject=context.policy,
            payload={
                "stage": "sft",
                "version": published.version,
                "digest": published.digest,
                "from": start.digest,
                "conversations_sha256": conversations.outputs[CONVERSATIONS_FILE],
            },
        )
        return StageOutput(
            values={**values, "version": published.version, "uri": published.uri, "digest": published.digest}
        )

    return context.run_stage("sft", body, inputs=inputs, resumable=True)
