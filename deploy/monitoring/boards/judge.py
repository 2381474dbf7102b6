"""The judge, and the second judge that evaluates."""

from __future__ import annotations

from monitoring import catalogue, limits
from monitoring.boards import common
from monitoring.boards.board import HEALTH, HERE, WINDOW, Board, Variable
from monitoring.boards.common import bars, lines, spread
from monitoring.boards.panel import ORANGE, Panel, Query
from monitoring.promql import ratio
from monitoring.rules import recording
from rlaif.judge.metrics import judge_metrics

UID = "rlaif-judge"
_JUDGE = HERE.where(job="=~$judge")
_JOBS = _JUDGE.keep("job")


def judge() -> Board:
    """How many labels, how quickly, at what cost, and which of them are doubtful."""
    return Board(
        uid=UID,
        title="RLAIF / Judge",
        description="Labels: how many, how quickly, at what cost, and what speaks against them.",
        sections={
            HEALTH: _health(),
            "What does it decide?": _decisions(),
            "What speaks against its labels?": _doubts(),
            "Does the engine keep up?": _engine(),
            "What does a label cost?": _cost(),
            "Do callers get answers?": common.calls_section("judge", _JUDGE),
        },
        variables=(Variable.of("judge", "judge", catalogue.requests("judge").ready, "job"),),
    )


def _health() -> tuple[Panel, ...]:
    return (
        common.ready("judge", _JUDGE, "Lowest readiness of any replica of the judges chosen."),
        common.errors(_JUDGE, "Share of the calls of 5 minutes that ended in a fault of the judge."),
        common.queue(_JUDGE),
        common.bad_share(
            "abstentions",
            "How often does it not decide?",
            f"max({_JUDGE.select(recording.ABSTENTIONS)})",
            "Share of the labels of half an hour without a verdict. They are never trained on.",
            orange=limits.ABSTENTIONS / 2,
            red=limits.ABSTENTIONS,
        ),
        common.bad_share(
            "inconsistent",
            "Does order change its mind?",
            f"max({_JUDGE.select(recording.INCONSISTENT)})",
            "Share of the decided comparisons of half an hour whose verdict depends on which response is shown first.",
            orange=limits.INCONSISTENT_LEAST,
            red=limits.INCONSISTENT,
        ),
        common.number(
            "labels_per_second",
            "How many labels a second?",
            f"sum({_JUDGE.select(recording.LABELS)})",
            "Labels made, over 5 minutes; those answered from the ledger are not among them.",
        ),
    )


def _decisions() -> tuple[Panel, ...]:
    metrics = judge_metrics()
    hits = _JUDGE.rate(metrics.ledger_hits, WINDOW)
    return (
        lines(
            "labels",
            "What do its labels say?",
            "Labels a second by form and outcome. First and second should be about as frequent as each other.",
            Query(_JUDGE.keep("form", "outcome").rate(metrics.labels, WINDOW), "{{form}} {{outcome}}"),
        ),
        lines(
            "abstention_reasons",
            "Why does it not decide?",
            "Labels without a verdict a second, by reason.",
            Query(_JUDGE.keep("form", "reason").rate(metrics.abstentions, WINDOW), "{{form}} {{reason}}"),
        ),
        lines(
            "ledger_hits",
            "How many answers come from the ledger?",
            "Share of decisions that had been made before and cost no computing.",
            Query(ratio(hits, f"({hits} + {_JUDGE.rate(metrics.labels, WINDOW)})"), "from the ledger"),
            unit="percentunit",
            most=1,
        ),
        lines(
            "texts",
            "What does it write?",
            "Critiques, revisions and audits a second, by what became of them.",
            Query(_JUDGE.keep("form", "outcome").rate(metrics.texts, WINDOW), "{{form}} {{outcome}}"),
        ),
        lines(
            "panel_votes",
            "Do the panel's other judges vote?",
            "Votes a second of each judge elsewhere, or why it cast none.",
            Query(_JUDGE.keep("judge", "outcome").rate(metrics.panel_votes, WINDOW), "{{judge}} {{outcome}}"),
            nothing="no panel",
        ),
        common.share_of_jobs(
            "abstention_ratio",
            "Does it abstain more than it did?",
            "Share of the labels of half an hour without a verdict. The line is where the alert fires.",
            recording.ABSTENTIONS,
            _JUDGE,
            red=limits.ABSTENTIONS,
        ),
    )


def _doubts() -> tuple[Panel, ...]:
    metrics = judge_metrics()
    return (
        common.share_of_jobs(
            "order",
            "Does its verdict depend on the order?",
            "Share of decided comparisons, over half an hour. The line is the gate's limit.",
            recording.INCONSISTENT,
            _JUDGE,
            red=limits.INCONSISTENT,
        ),
        common.share_of_jobs(
            "injections",
            "Do responses address the judge?",
            "Share of labels on such responses, over 10 minutes. The line is where the alert fires.",
            recording.INJECTIONS,
            _JUDGE,
            red=limits.INJECTIONS,
        ),
        lines(
            "empty",
            "Are there responses that say nothing?",
            "Labels a second on responses that are empty or answer many different conversations, and on pairs that "
            "differ in spacing, case or punctuation at most.",
            Query(_JUDGE.keep("form").rate(metrics.null_responses, WINDOW), "{{form}} says nothing"),
            Query(_JUDGE.rate(metrics.nearly_identical, WINDOW), "nearly identical"),
        ),
    )


def _engine() -> tuple[Panel, ...]:
    metrics = judge_metrics()
    queues = _JUDGE.keep("queue")
    return (
        lines(
            "queue_depth",
            "How much waits for the engine?",
            "Prompts in each queue, all replicas together, and the most that may wait.",
            Query(queues.total(_JUDGE.select(metrics.queue_prompts)), "{{queue}}"),
            Query(queues.total(_JUDGE.select(metrics.queue_limit)), "{{queue}} limit"),
        ),
        lines(
            "queue_wait",
            "How long does it wait?",
            "Time in the queue of a request, or of a turn of a long one.",
            *spread(queues, metrics.queue_wait_seconds, "{{queue}}"),
            unit="s",
        ),
        lines(
            "batches",
            "How large are its batches?",
            "Prompts of one engine batch. Small batches with a full queue leave the engine idle: mix_requests joins "
            "callers.",
            Query(_JUDGE.mean(metrics.batch_prompts, WINDOW), "mean"),
            Query(_JUDGE.quantile(0.99, metrics.batch_prompts, WINDOW), "99 %"),
        ),
        lines(
            "engine_seconds",
            "How long does a batch take?",
            "Time in which the engine reads verdicts, and in which it writes texts.",
            *spread(_JUDGE, metrics.engine_seconds, "verdicts"),
            Query(_JUDGE.quantile(0.99, metrics.text_seconds, WINDOW), "texts 99 %"),
            unit="s",
        ),
        lines(
            "engine_busy",
            "How busy is each engine?",
            "Share of the time in which a replica's engine computes verdicts or texts. Near 1 more callers mean more "
            "waiting.",
            Query(recording.judge_busy(_JUDGE.keep("job", "pod"), WINDOW), "{{job}} {{pod}}"),
            unit="percentunit",
            steps=((0.9, ORANGE),),
        ),
        bars(
            "engine_gpus",
            "How many GPUs does it use?",
            "GPUs of all replicas of a judge; 0 on CPUs and with a server elsewhere.",
            Query(_JOBS.total(_JUDGE.select(metrics.engine_gpus)), "{{job}}"),
        ),
    )


def _cost() -> tuple[Panel, ...]:
    metrics = judge_metrics()
    per_label = _JUDGE.select(recording.ENGINE_SECONDS_PER_LABEL)
    gpus = _JUDGE.keep("namespace", "job").largest(_JUDGE.select(metrics.engine_gpus))
    return (
        lines(
            "seconds_per_label",
            "How much engine time does a label take?",
            "Engine seconds for each label, and GPU seconds: those times the GPUs of a replica. Over half an hour.",
            Query(per_label, "{{job}} engine"),
            Query(f"{per_label} * on (namespace, job) {gpus}", "{{job}} GPUs"),
            unit="s",
        ),
        lines(
            "tokens",
            "How many tokens go in and out?",
            "Tokens a second: of prompts, each counted for every question that follows it; computed for that; and "
            "written.",
            Query(_JUDGE.rate(metrics.prompt_tokens, WINDOW), "given"),
            Query(_JUDGE.rate(metrics.computed_prompt_tokens, WINDOW), "computed"),
            Query(_JUDGE.rate(metrics.completion_tokens, WINDOW), "written"),
        ),
        lines(
            "shared_prefixes",
            "How much of the prompts is shared?",
            "Prompt tokens that were not computed again because another question had computed them, over half an hour.",
            Query(_JUDGE.select(recording.PROMPT_TOKENS_SHARED), "{{job}}"),
            unit="percentunit",
            most=1,
        ),
    )
