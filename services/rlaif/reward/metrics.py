"""What the reward service counts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from prometheus_client import Counter, Histogram

from rlaif.runtime.telemetry import REGISTRY

_SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True)
class RewardMetrics:
    """Rewards by what became of them, and how long a batch of them takes."""

    rewards: Counter
    batch_seconds: Histogram
    loads: Counter


@cache
def reward_metrics() -> RewardMetrics:
    """The reward service's metrics, made once a process."""
    return RewardMetrics(
        rewards=Counter(
            "rlaif_reward_rewards_total",
            "Rewards asked for, by component and outcome: scored, or why there is none.",
            ["component", "outcome"],
            registry=REGISTRY,
        ),
        batch_seconds=Histogram(
            "rlaif_reward_batch_seconds",
            "Time of one batch of rewards.",
            ["component"],
            buckets=_SECONDS_BUCKETS,
            registry=REGISTRY,
        ),
        loads=Counter("rlaif_reward_model_loads_total", "Reward models loaded.", registry=REGISTRY),
    )
