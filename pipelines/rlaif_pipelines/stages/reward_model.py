"""Train the reward model on the soft labels: the reward itself, or a second opinion that watches it."""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rlaif.core.canonical import sha256_hex
from rlaif.runtime.store import open_store
from rlaif_pipelines.context import RunContext, StageOutput, StageResult, read_rows, stage_name, write_json
from rlaif_pipelines.evaluation.classification import Scored, classify
from rlaif_pipelines.stages.judge import training_labels
from rlaif_pipelines.stages.policy import starting_policy
from rlaif_pipelines.stages.training_job import train_model
from rlaif_pipelines.training.config.reward import HELD_OUT_FILE

CLASSIFICATION_FILE: Final = "classification.json"
_MAX_ID: Final = 128


def reward_model_name(policy: str) -> str:
    """Under which the reward service serves it: of the policy, so that trainings of two policies share a service."""
    name = f"{policy.removeprefix('policies/')}.distilled"
    return f"rewardModels/{name if len(name) <= _MAX_ID else sha256_hex(name.encode())}"


def reward_model(context: RunContext, *, round_number: int = 1) -> StageResult:
    """models/reward-model of the run, with its ensemble members."""
    labels, labels_identity = training_labels(context, round_number=round_number)
    start = starting_policy(context, round_number=round_number)
    sizes = context.settings.reward_model
    stage = stage_name("reward_model", round_number)
    inputs = {
        **labels_identity,
        "policy": start.digest,
        "settings": sizes.model_dump(),
        "engine": context.settings.engine.model_dump(),
        "seed": context.settings.seed,
    }

    out = context.root / "models" / stage_name("reward-model", round_number)

    def body(folder: Path) -> StageOutput:
        config: dict[str, Any] = {
            "out": out,
            "policy": start.uri,
            "labels": labels,
            "seed": context.settings.seed,
            "num_members": sizes.num_members,
            "bootstrap": sizes.bootstrap,
            "num_epochs": sizes.epochs,
            "batch_pairs": sizes.batch_size,
            "principle_loss_weight": sizes.principle_loss_weight,
            "margin": sizes.margin,
            "centring": sizes.centring,
            "optimizer": {"learning_rate": sizes.learning_rate, "warmup_steps": 10, "schedule": "linear"},
            "engine": context.settings.engine.model_dump(),
            "metrics_path": context.metrics_path(round_number=round_number),
        }
        values = train_model(context, stage, verb="reward", config=config)
        if context.settings.artifact_root is not None:
            values["members"] = _published(context, stage, values["members"])
        write_json(folder / CLASSIFICATION_FILE, _classification(out / HELD_OUT_FILE))
        first = values["members"][0]
        return StageOutput((CLASSIFICATION_FILE,), {**values, "uri": first["uri"], "digest": first["digest"]})

    return context.run_stage(stage, body, inputs=inputs, resumable=True)


def _classification(path: Path) -> dict[str, Any]:
    """How the rewards of held-out pairs tell their labels apart."""
    # σ(margin), in the form that never overflows.
    scored = [Scored((1.0 + math.tanh(row["margin"] / 2.0)) / 2.0, row["probability_first"]) for row in read_rows(path)]
    return classify(scored).to_json()


def _published(context: RunContext, stage: str, members: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The members where other machines find them."""
    store = open_store(context.artifact_root)
    published = []
    for number, member in enumerate(members):
        write = functools.partial(shutil.copytree, member["uri"], dirs_exist_ok=True)
        uri, digest = store.publish_model(context.policy, f"{stage}/{number}", write=write)
        published.append({"uri": uri, "digest": digest})
    return published
