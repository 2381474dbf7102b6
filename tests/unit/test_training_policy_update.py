"""A batch of rollouts as optimiser steps: what is too small for all processes moves no weight."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlaif_pipelines.training import engine
from rlaif_pipelines.training.config.rl import RlTraining
from rlaif_pipelines.training.packing import Layout
from rlaif_pipelines.training.policy_update import PolicyUpdater
from rlaif_pipelines.training.rollouts import Rollouts


def rollouts(rewards: list[list[float | None]]) -> Rollouts:
    """Completions of two tokens."""
    return Rollouts(
        step=0,
        policy_version=0,
        prompt_ids=[[5, 6]] * len(rewards),
        token_ids=[[[7, 3]] * len(row) for row in rewards],
        logprobs=[[[-1.0, -1.0]] * len(row) for row in rewards],
        rewards=rewards,
        failures={},
        gold=None,
        components={},
        num_cut_off=0,
        held_out=None,
        sample_seconds=0.0,
        reward_seconds=0.0,
        held_out_seconds=0.0,
    )


def test_a_part_with_fewer_samples_than_processes_is_not_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "num_processes", lambda: 3)
    settings = RlTraining.model_validate(
        {
            "out": tmp_path,
            "policy": "unused",
            "publish": {"artifact_root": tmp_path, "policy": "policies/test"},
            "prompts": tmp_path / "prompts.jsonl",
            "sampler": {"target": "unused"},
            "rewards": {"target": "unused"},
            "reward": {"name": "rewardModels/unused"},
            "group_size": 4,
            "quorum": 2,
            "updates_per_batch": 2,
        }
    )
    without_weights: Any = SimpleNamespace(device=torch.device("cpu"))
    updater = PolicyUpdater(without_weights, reference=torch.nn.Identity(), settings=settings, layout=Layout(pad_id=0))
    report = updater.update(rollouts([[0.0, 1.0, 0.5, 0.2], [0.0, 1.0, None, None]]), first_update=0)
    assert report.num_sequences == 6
    assert report.loss is None
