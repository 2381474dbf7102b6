"""One training run, as its first process tells it."""

from __future__ import annotations

from prometheus_client import Gauge

from monitoring import limits
from monitoring.boards import common
from monitoring.boards.board import HEALTH, HERE, WINDOW, Board, Variable
from monitoring.boards.common import bars, lines
from monitoring.boards.panel import ORANGE, RED, Panel, Query
from monitoring.progress import dropped_share, since_last_step, usual_pause
from rlaif_pipelines.training.prometheus import training_metrics

UID = "rlaif-training"
_RUN = HERE.where(pod="=~$run", stage="=~$stage").keep("pod", "stage")


def training() -> Board:
    """How far it is, whether it learns what it should, and what it spends its time on."""
    step = _figure("step")
    return Board(
        uid=UID,
        title="RLAIF / Training run",
        description="A training while it runs: how far it is, whether it learns what it should, what it waits for.",
        sections={
            HEALTH: _health(),
            "Does it become better?": _better(),
            "Does it still mean what it should?": _meaning(),
            "Does it learn steadily?": _learning(),
            "What is the time spent on?": _time(),
        },
        variables=(
            Variable.of("run", "run (pod)", step, "pod"),
            Variable.of("stage", "stage", step, "stage"),
        ),
    )


def _figure(name: str) -> Gauge:
    return training_metrics().figures[name]


def _line(name: str, legend: str, unit: str = "") -> Query:
    return Query(_RUN.select(_figure(name)), f"{{{{pod}}}} {legend}", unit)


def _health() -> tuple[Panel, ...]:
    metrics = training_metrics()
    return (
        common.number(
            "progress",
            "How far is it?",
            f"max({_RUN.select(_figure('step'))} / {_RUN.select(_figure('num_steps'))})",
            "Share of the planned steps that are done.",
            unit="percentunit",
        ),
        common.number(
            "remaining",
            "When will it be done?",
            f"max({_RUN.select(metrics.remaining_seconds)})",
            "Expected time to the end at the pace since this start.",
            unit="s",
        ),
        common.bad_share(
            "last_step",
            "Is it still going?",
            f"max({since_last_step(_RUN)} / {usual_pause(_RUN)})",
            "Time since the last step, as a share of what the alert allows: ten times that step, a quarter of an hour "
            "at least. Of several trainings, the one that waits longest.",
            orange=0.5,
            red=1,
        ),
        common.bad_share(
            "guards",
            "Is a guard about to fire?",
            f"max({_RUN.select(metrics.guards_used)})",
            "How much of its limit the guard that is nearest to it has used; over 100 % it fires.",
            orange=0.6,
            red=limits.GUARD_USED,
            nothing="no guards",
        ),
        common.number(
            "reward",
            "What reward does it get?",
            f"max({_RUN.select(_figure('reward'))})",
            "Mean reward of the last batch. It rises by itself while it is trained on: look at the held-out score too.",
            nothing="no rewards",
        ),
        common.bad_share(
            "dropped",
            "How much is not trained on?",
            f"max({dropped_share(_RUN, '15m')})",
            "Completions of a quarter of an hour whose rewards failed, over all.",
            orange=limits.SAMPLES_DROPPED / 2,
            red=limits.SAMPLES_DROPPED,
            nothing="nothing",
        ),
    )


def _better() -> tuple[Panel, ...]:
    return (
        lines(
            "rewards",
            "Does the reward rise?",
            "Mean and standard deviation of the rewards of each batch.",
            _line("reward", "mean"),
            _line("reward_sd", "standard deviation"),
            least=None,
        ),
        lines(
            "held_out",
            "Does it become better by what it is not trained on?",
            "Second opinion on prompts set apart, and the gold score where there is one. The reward rising while "
            "these fall is a reward that is gamed.",
            _line("held_out", "held out"),
            _line("gold", "gold"),
            least=None,
        ),
        lines(
            "pairs",
            "Do preferred responses lead?",
            "Of reward models and preference optimisation: share of decided pairs whose preferred response leads; on "
            "the right, by how much.",
            _line("accuracy", "leads"),
            _line("margin", "by, nats", "short"),
            least=None,
            unit="percentunit",
        ),
    )


def _meaning() -> tuple[Panel, ...]:
    metrics = training_metrics()
    return (
        lines(
            "guards_used",
            "How close is each guard?",
            "Share of its limit that each guard found used. The line is where the alert fires, at 1 the guard does.",
            Query(_RUN.select(metrics.guards_used), "{{pod}} {{guard}}"),
            unit="percentunit",
            steps=((limits.GUARD_USED, ORANGE), (1, RED)),
        ),
        lines(
            "kl",
            "How far has it gone from the reference?",
            "KL of a whole completion, nats; on the right, the weight that holds it back.",
            _line("kl", "KL"),
            _line("kl_beta", "weight", "short"),
            least=None,
        ),
        lines(
            "entropy",
            "Does it still say different things?",
            "Mean entropy of a token, nats. Near 0 it says one thing only.",
            _line("entropy", "entropy"),
        ),
        lines(
            "length",
            "How long are its completions?",
            "Mean tokens of a completion.",
            _line("completion_tokens", "tokens"),
        ),
        lines(
            "repetition",
            "Does it repeat itself or run on?",
            "Repeated 4-grams of a completion, and completions that ended because their budget did.",
            _line("repetition", "repeated"),
            _line("cut_off_fraction", "cut off"),
            unit="percentunit",
        ),
        bars(
            "guard_firings",
            "Did a guard fire?",
            "Firings of each guard since the process started; one that stops the training is counted in the overview "
            "too.",
            Query(_RUN.keep("guard").total(_RUN.select(metrics.guards)), "{{pod}} {{guard}}"),
            steps=((1, RED),),
        ),
    )


def _learning() -> tuple[Panel, ...]:
    metrics = training_metrics()
    return (
        lines(
            "loss",
            "How does the loss go?",
            "Loss of each step; of preference optimisation it falls, of reinforcement it need not.",
            _line("loss", "loss"),
            least=None,
        ),
        lines(
            "gradient",
            "Are gradients calm?",
            "Norm of the gradient before clipping; on the right, the learning rate.",
            _line("grad_norm", "gradient"),
            _line("learning_rate", "learning rate", "short"),
        ),
        lines(
            "clipping",
            "How much is clipped?",
            "Tokens whose ratio of policies was clipped, and whose weight between trainer and sampler was cut.",
            _line("clip_fraction", "clipped"),
            _line("truncated_fraction", "cut"),
            unit="percentunit",
        ),
        lines(
            "dropped_reasons",
            "What is not trained on, and why?",
            "A second: completions whose rewards failed, by reason; groups without a quorum or without variance.",
            Query(_RUN.keep("reason").rate(metrics.dropped, WINDOW), "{{pod}} {{reason}}"),
        ),
        lines(
            "samples",
            "How much is trained on?",
            "Completions a second that were trained on; on the right, steps a second without anything to learn from.",
            Query(_RUN.rate(metrics.samples, WINDOW), "{{pod}} completions"),
            Query(_RUN.rate(metrics.skipped, WINDOW), "{{pod}} skipped steps", "ops"),
        ),
        lines(
            "versions",
            "Which policy is sampled from?",
            "Version that the last batch came from; on the right, by how many steps it trails the weights trained.",
            _line("policy_version", "version"),
            _line("staleness", "steps behind", "short"),
        ),
    )


def _time() -> tuple[Panel, ...]:
    metrics = training_metrics()
    return (
        lines(
            "parts",
            "What does a step spend its time on?",
            "Seconds of the last step and its parts; wait is what the training stood still for.",
            Query(_RUN.select(metrics.part_seconds), "{{pod}} {{part}}"),
            unit="s",
            width=12,
        ),
        lines(
            "speed",
            "How quick is it?",
            "Tokens a second of the last step; on the right, steps done.",
            _line("tokens_per_second", "tokens a second"),
            _line("step", "steps", "short"),
            width=12,
        ),
    )
