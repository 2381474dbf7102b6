"""What the reward service counts."""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from prometheus_client import Counter, Gauge, Histogram

from rlaif.reward.scoring import Reward
from rlaif.runtime.telemetry import REGISTRY, SECONDS_BUCKETS

_INPUT_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOKEN_BUCKETS = (16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)


@dataclass(frozen=True)
class RewardMetrics:
    """Rewards by what became of them, and how the engine's batches go."""

    rewards: Counter
    batch_seconds: Histogram
    batch_inputs: Histogram
    batch_tokens: Histogram
    queue_wait_seconds: Histogram
    queue_tokens: Gauge
    queue_limit: Gauge
    loads: Counter

    def count(self, rewards: Iterable[Reward]) -> None:
        """Counts each component's value, and the failure of the first that failed."""
        outcomes: Count[tuple[str, str]] = Count()
        for reward in rewards:
            for term in reward.terms:
                outcomes[term.name, "scored"] += 1
            if reward.failure_reason:
                outcomes[reward.failed_component, reward.failure_reason.lower()] += 1
        for (component, outcome), number in outcomes.items():
            self.rewards.labels(component=component, outcome=outcome).inc(number)


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
            "Time of one engine batch of trained reward models.",
            buckets=SECONDS_BUCKETS,
            registry=REGISTRY,
        ),
        batch_inputs=Histogram(
            "rlaif_reward_batch_inputs", "Inputs in one engine batch.", buckets=_INPUT_BUCKETS, registry=REGISTRY
        ),
        batch_tokens=Histogram(
            "rlaif_reward_batch_tokens",
            "Tokens in one engine batch, counted for every member, without padding.",
            buckets=_TOKEN_BUCKETS,
            registry=REGISTRY,
        ),
        queue_wait_seconds=Histogram(
            "rlaif_reward_queue_wait_seconds",
            "How long a request, or a turn of a long one, waited for its engine batch.",
            buckets=SECONDS_BUCKETS,
            registry=REGISTRY,
        ),
        queue_tokens=Gauge(
            "rlaif_reward_queue_tokens", "Tokens that wait for an engine batch, for every member.", registry=REGISTRY
        ),
        queue_limit=Gauge("rlaif_reward_queue_limit_tokens", "Most tokens that may wait.", registry=REGISTRY),
        loads=Counter("rlaif_reward_model_loads_total", "Reward models loaded.", registry=REGISTRY),
    )
