"""The reward service."""

from __future__ import annotations

from monitoring import catalogue, limits
from monitoring.boards import common
from monitoring.boards.board import HEALTH, HERE, WINDOW, Board, Variable
from monitoring.boards.common import bars, lines, spread
from monitoring.boards.panel import RED, Panel, Query
from monitoring.rules import recording
from rlaif.reward.metrics import reward_metrics

UID = "rlaif-reward"
_REWARD = HERE.where(job="rlaif-reward", pod="=~$reward")
_ALL = HERE.where(job="rlaif-reward")


def reward() -> Board:
    """How many rewards, which of them failed and why, and how the engine's batches go."""
    return Board(
        uid=UID,
        title="RLAIF / Reward",
        description="Rewards: how many, which components failed and why, how long they take.",
        sections={
            HEALTH: _health(),
            "What becomes of rewards?": _rewards(),
            "Does the engine keep up?": _engine(),
            "Do callers get answers?": common.calls_section("reward", _REWARD),
        },
        variables=(Variable.of("reward", "replica", catalogue.requests("reward").ready, "pod"),),
    )


def _health() -> tuple[Panel, ...]:
    return (
        common.ready("reward", _REWARD),
        common.errors(
            _ALL, "Share of the calls of 5 minutes that ended in a fault; a judge that is away makes them UNAVAILABLE."
        ),
        common.bad_share(
            "failed",
            "How many rewards are none?",
            f"max({_ALL.select(recording.REWARDS_FAILED)})",
            "Share of the components' values of 10 minutes that are no number; such completions are not trained on.",
            orange=limits.REWARDS_FAILED / 2,
            red=limits.REWARDS_FAILED,
        ),
        common.queue(_ALL, nothing="no model"),
        common.number(
            "latency",
            "How long does a call take?",
            _REWARD.quantile(0.99, catalogue.requests("reward").seconds, WINDOW, method="RewardService/ScoreResponses"),
            "99 % of the calls for rewards take no longer.",
            unit="s",
            steps=((60, RED),),
        ),
        common.number(
            "rewards_per_second",
            "How many rewards a second?",
            _REWARD.rate(reward_metrics().rewards, WINDOW, outcome="scored"),
            "Values of components a second.",
        ),
    )


def _rewards() -> tuple[Panel, ...]:
    metrics = reward_metrics()
    return (
        lines(
            "rewards",
            "Which components give values?",
            "Values a second by component and outcome: scored, or why there is none.",
            Query(_REWARD.keep("component", "outcome").rate(metrics.rewards, WINDOW), "{{component}} {{outcome}}"),
        ),
        common.share_of_jobs(
            "failed_ratio",
            "Do more rewards fail than did?",
            "Share of values that are no number, over 10 minutes. The line is where the alert fires.",
            recording.REWARDS_FAILED,
            _ALL,
            red=limits.REWARDS_FAILED,
        ),
        bars(
            "loads",
            "Were reward models loaded?",
            "Reward models that runs had loaded in the last day.",
            Query(_REWARD.keep("pod").total(f"increase({_REWARD.select(metrics.loads)}[1d])"), "{{pod}}"),
        ),
    )


def _engine() -> tuple[Panel, ...]:
    metrics = reward_metrics()
    return (
        lines(
            "queue_tokens",
            "How much waits for the engine?",
            "Tokens that wait, counted for every member of an ensemble, and the most that may.",
            Query(_REWARD.total(_REWARD.select(metrics.queue_tokens)), "waiting"),
            Query(_REWARD.total(_REWARD.select(metrics.queue_limit)), "limit"),
        ),
        lines(
            "queue_wait",
            "How long do requests wait?",
            "Time in the queue of a request, or of a turn of a long one.",
            *spread(_REWARD, metrics.queue_wait_seconds),
            unit="s",
        ),
        lines(
            "batches",
            "How large are its batches, how long do they take?",
            "One batch of trained reward models: inputs and tokens without padding; on the right, seconds.",
            Query(_REWARD.mean(metrics.batch_inputs, WINDOW), "inputs"),
            Query(_REWARD.mean(metrics.batch_tokens, WINDOW), "tokens"),
            Query(_REWARD.quantile(0.99, metrics.batch_seconds, WINDOW), "99 % seconds", "s"),
        ),
    )
