"""Our trainers as a contender of `make bench-train`: the modules that `rlaif_pipelines.training` runs, unchanged."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train_workload import Turns, Workload, cheap_reward

from rlaif.client.judge_values import ResponseToScore
from rlaif.client.reward import RewardResult
from rlaif.client.sampler import SamplerClient
from rlaif_pipelines.training import dpo, metrics, reward, rl
from rlaif_pipelines.training.config.dpo import DpoTraining
from rlaif_pipelines.training.config.reward import RewardTraining
from rlaif_pipelines.training.config.rl import RlTraining

POLICY = "policies/bench"


class CheapRewards:
    """Rewards without a service."""

    def score(self, reward_model: str, inputs: Sequence[ResponseToScore], *, constitution: str) -> list[RewardResult]:
        """One reward an input."""
        return [RewardResult(cheap_reward(response), {}, 0.0, "") for _, response, _ in inputs]


def log_with_turns(turns: Turns) -> None:
    """Has the trainers' log end a turn after each step, and wait for the next."""

    class Log(metrics.MetricsLog):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            turns.begin()

        def write(self, step: int, values: Mapping[str, Any]) -> None:
            super().write(step, values)
            turns.end(values.get("loss"))
            turns.begin()

    metrics.MetricsLog = Log  # type: ignore[misc]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=["reward", "dpo", "grpo"])
    parser.add_argument("workload", type=Path)
    parser.add_argument("--sampler", default="", help="target of the sampler service, for grpo")
    options = parser.parse_args()
    workload = Workload(**json.loads(options.workload.read_text()))
    log_with_turns(Turns(workload))
    common: dict[str, Any] = {
        "out": Path(workload.folder) / f"ours-{options.task}",
        "policy": str(workload.policy),
        "engine": {"micro_batch_tokens": workload.micro_batch_tokens},
        "optimizer": {"learning_rate": workload.learning_rate},
    }
    pairs = {"labels": workload.labels, "batch_pairs": workload.batch_pairs, "num_epochs": 1, "held_out_fraction": 0.0}
    if options.task == "reward":
        reward.run(RewardTraining.model_validate(common | pairs | {"centring": 0.0}))
    elif options.task == "dpo":
        dpo.run(DpoTraining.model_validate(common | pairs | {"beta": workload.beta}))
    else:
        settings = RlTraining.model_validate(common | rl_values(workload, sampler=options.sampler))
        with SamplerClient(settings.sampler) as sampler:
            rl.train(settings, sampler=sampler, rewards=CheapRewards())
    return 0


def rl_values(workload: Workload, *, sampler: str) -> dict[str, Any]:
    """What GRPO is told beside the common settings."""
    return {
        "publish": {"artifact_root": Path(workload.folder) / "artifacts", "policy": POLICY},
        "prompts": workload.prompts,
        "sampler": {"target": sampler},
        "rewards": {"target": "unused"},
        "reward": {"name": "rewardModels/cheap"},
        "num_steps": workload.total_steps,
        "prompts_per_step": workload.prompts_per_step,
        "group_size": workload.group_size,
        "max_tokens": workload.max_tokens,
        "kl_beta": workload.kl_beta,
        "guards": {name: {"limit": None} for name in ("kl", "held_out", "length", "entropy", "repetition")},
    }


if __name__ == "__main__":
    sys.exit(main())
