"""The reward service."""

from __future__ import annotations

from monitoring import catalogue, limits, objectives
from monitoring.boards.board import HEALTH, HERE, WINDOW, Board, Variable
from monitoring.boards.panel import GREEN, ORANGE, RED, Panel, Query, stat_panel
from monitoring.boards.service import calls_section
from monitoring.catalogue import series_of
from monitoring.rules import recording
from rlaif.reward.metrics import reward_metrics

UID = "rlaif-reward"
_REWARD = HERE.where(job="rlaif-reward", pod="=~$pod")
_ALL = HERE.where(job="rlaif-reward")


def reward() -> Board:
    """How many rewards, which of them failed and why, and how the engine's batches go."""
    ready = series_of(catalogue.requests("reward").ready).name
    return Board(
        uid=UID,
        title="RLAIF / Reward",
        description="Rewards: how many, which components failed and why, how long they take.",
        sections={
            HEALTH: _health(),
            "What becomes of rewards?": _rewards(),
            "Does the engine keep up?": _engine(),
            "Do callers get answers?": calls_section("reward", _REWARD),
        },
        variables=(Variable("pod", "replica", f'label_values({ready}{{namespace="$namespace"}}, pod)', many=True),),
    )


def _health() -> tuple[Panel, ...]:
    metrics = reward_metrics()
    return (
        stat_panel(
            "ready",
            "Does it take calls?",
            f"min({_REWARD.select(catalogue.requests('reward').ready)})",
            "Lowest readiness of any replica.",
            words={1: ("yes", GREEN), 0: ("not all", RED)},
            base=RED,
            steps=((1, GREEN),),
        ),
        stat_panel(
            "errors",
            "How many calls fail?",
            f"max({_ALL.select(recording.request_errors('5m'))})",
            "Share of the calls of 5 minutes that ended in a fault; a judge that is away makes them UNAVAILABLE.",
            unit="percentunit",
            steps=((1 - objectives.AVAILABILITY, ORANGE), (0.05, RED)),
        ),
        stat_panel(
            "failed",
            "How many rewards are none?",
            f"max({_ALL.select(recording.REWARDS_FAILED)})",
            "Share of the components' values of 10 minutes that are no number; such completions are not trained on.",
            unit="percentunit",
            steps=((limits.REWARDS_FAILED / 2, ORANGE), (limits.REWARDS_FAILED, RED)),
        ),
        stat_panel(
            "queue",
            "How full is its queue?",
            f"max({_ALL.select(recording.QUEUE_USED)})",
            "Tokens that wait over the most that may; at 100 % calls are refused.",
            unit="percentunit",
            steps=((0.5, ORANGE), (limits.QUEUE_USED, RED)),
            nothing="no model",
        ),
        stat_panel(
            "latency",
            "How long does a call take?",
            _REWARD.quantile(0.99, catalogue.requests("reward").seconds, WINDOW, method="RewardService/ScoreResponses"),
            "99 % of the calls for rewards take no longer.",
            unit="s",
            steps=((60, RED),),
        ),
        stat_panel(
            "rewards_per_second",
            "How many rewards a second?",
            _REWARD.rate(metrics.rewards, WINDOW, outcome="scored"),
            "Values of components a second.",
            unit="short",
        ),
    )


def _rewards() -> tuple[Panel, ...]:
    metrics = reward_metrics()
    return (
        Panel(
            "rewards",
            "Which components give values?",
            "Values a second by component and outcome: scored, or why there is none.",
            (Query(_REWARD.keep("component", "outcome").rate(metrics.rewards, WINDOW), "{{component}} {{outcome}}"),),
            "short",
            least=0,
        ),
        Panel(
            "failed_ratio",
            "Do more rewards fail than did?",
            "Share of values that are no number, over 10 minutes. The line is where the alert fires.",
            (Query(_ALL.select(recording.REWARDS_FAILED), "{{job}}"),),
            "percentunit",
            steps=((limits.REWARDS_FAILED, RED),),
            least=0,
        ),
        Panel(
            "loads",
            "Were reward models loaded?",
            "Reward models that runs had loaded in the last day.",
            (Query(_REWARD.keep("pod").total(f"increase({_REWARD.select(metrics.loads)}[1d])"), "{{pod}}"),),
            "short",
            kind="bars",
            least=0,
        ),
    )


def _engine() -> tuple[Panel, ...]:
    metrics = reward_metrics()
    return (
        Panel(
            "queue_tokens",
            "How much waits for the engine?",
            "Tokens that wait, counted for every member of an ensemble, and the most that may.",
            (
                Query(_REWARD.total(_REWARD.select(metrics.queue_tokens)), "waiting"),
                Query(_REWARD.total(_REWARD.select(metrics.queue_limit)), "limit"),
            ),
            "short",
            least=0,
        ),
        Panel(
            "queue_wait",
            "How long do requests wait?",
            "Time in the queue of a request, or of a turn of a long one.",
            (
                Query(_REWARD.quantile(0.5, metrics.queue_wait_seconds, WINDOW), "median"),
                Query(_REWARD.quantile(0.99, metrics.queue_wait_seconds, WINDOW), "99 %"),
            ),
            "s",
            least=0,
        ),
        Panel(
            "batches",
            "How large are its batches, how long do they take?",
            "One batch of trained reward models: inputs, tokens without padding, seconds.",
            (
                Query(_REWARD.mean(metrics.batch_inputs, WINDOW), "inputs"),
                Query(_REWARD.mean(metrics.batch_tokens, WINDOW), "tokens"),
                Query(_REWARD.quantile(0.99, metrics.batch_seconds, WINDOW), "99 % seconds"),
            ),
            "short",
            least=0,
        ),
    )
