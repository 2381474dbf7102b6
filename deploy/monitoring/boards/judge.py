"""The judge, and the second judge that evaluates."""

from __future__ import annotations

from monitoring import catalogue, limits, objectives
from monitoring.boards.board import HEALTH, HERE, WINDOW, Board, Variable
from monitoring.boards.panel import GREEN, ORANGE, RED, Panel, Query, stat_panel
from monitoring.boards.service import calls_section
from monitoring.catalogue import series_of
from monitoring.promql import ratio
from monitoring.rules import recording
from rlaif.judge.metrics import judge_metrics

UID = "rlaif-judge"
_JUDGE = HERE.where(job="=~$job")
_JOBS = _JUDGE.keep("job")


def judge() -> Board:
    """How many labels, how quickly, at what cost, and which of them are doubtful."""
    ready = series_of(catalogue.requests("judge").ready).name
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
            "Do callers get answers?": calls_section("judge", _JUDGE),
        },
        variables=(Variable("job", "judge", f'label_values({ready}{{namespace="$namespace"}}, job)', many=True),),
    )


def _health() -> tuple[Panel, ...]:
    return (
        stat_panel(
            "ready",
            "Does it take calls?",
            f"min({_JUDGE.select(catalogue.requests('judge').ready)})",
            "Lowest readiness of any replica of the judges chosen.",
            words={1: ("yes", GREEN), 0: ("not all", RED)},
            base=RED,
            steps=((1, GREEN),),
        ),
        stat_panel(
            "errors",
            "How many calls fail?",
            f"max({_JUDGE.select(recording.request_errors('5m'))})",
            "Share of the calls of 5 minutes that ended in a fault of the judge.",
            unit="percentunit",
            steps=((1 - objectives.AVAILABILITY, ORANGE), (0.05, RED)),
        ),
        stat_panel(
            "queue",
            "How full is its queue?",
            f"max({_JUDGE.select(recording.QUEUE_USED)})",
            "Places in use of the fullest queue of any replica; at 100 % calls are refused.",
            unit="percentunit",
            steps=((0.5, ORANGE), (limits.QUEUE_USED, RED)),
        ),
        stat_panel(
            "abstentions",
            "How often does it not decide?",
            f"max({_JUDGE.select(recording.ABSTENTIONS)})",
            "Share of the labels of half an hour without a verdict. They are never trained on.",
            unit="percentunit",
            steps=((limits.ABSTENTIONS / 2, ORANGE), (limits.ABSTENTIONS, RED)),
        ),
        stat_panel(
            "inconsistent",
            "Does order change its mind?",
            f"max({_JUDGE.select(recording.INCONSISTENT)})",
            "Share of the decided comparisons of half an hour whose verdict depends on which response is shown first.",
            unit="percentunit",
            steps=((limits.INCONSISTENT_LEAST, ORANGE), (limits.INCONSISTENT, RED)),
        ),
        stat_panel(
            "labels_per_second",
            "How many labels a second?",
            f"sum({_JUDGE.select(recording.LABELS)})",
            "Labels made, over 5 minutes; those answered from the ledger are not among them.",
            unit="short",
        ),
    )


def _decisions() -> tuple[Panel, ...]:
    metrics = judge_metrics()
    hits = _JUDGE.rate(metrics.ledger_hits, WINDOW)
    return (
        Panel(
            "labels",
            "What do its labels say?",
            "Labels a second by form and outcome. First and second should be about as frequent as each other.",
            (Query(_JUDGE.keep("form", "outcome").rate(metrics.labels, WINDOW), "{{form}} {{outcome}}"),),
            "short",
            least=0,
        ),
        Panel(
            "abstention_reasons",
            "Why does it not decide?",
            "Labels without a verdict a second, by reason.",
            (Query(_JUDGE.keep("form", "reason").rate(metrics.abstentions, WINDOW), "{{form}} {{reason}}"),),
            "short",
            least=0,
        ),
        Panel(
            "ledger_hits",
            "How many answers come from the ledger?",
            "Share of decisions that had been made before and cost no computing.",
            (Query(ratio(hits, f"({hits} + {_JUDGE.rate(metrics.labels, WINDOW)})"), "from the ledger"),),
            "percentunit",
            least=0,
            most=1,
        ),
        Panel(
            "texts",
            "What does it write?",
            "Critiques, revisions and audits a second, by what became of them.",
            (Query(_JUDGE.keep("form", "outcome").rate(metrics.texts, WINDOW), "{{form}} {{outcome}}"),),
            "short",
            least=0,
        ),
        Panel(
            "panel_votes",
            "Do the panel's other judges vote?",
            "Votes a second of each judge elsewhere, or why it cast none.",
            (Query(_JUDGE.keep("judge", "outcome").rate(metrics.panel_votes, WINDOW), "{{judge}} {{outcome}}"),),
            "short",
            least=0,
            nothing="no panel",
        ),
        Panel(
            "abstention_ratio",
            "Does it abstain more than it did?",
            "Share of the labels of half an hour without a verdict. The line is where the alert fires.",
            (Query(_JUDGE.select(recording.ABSTENTIONS), "{{job}}"),),
            "percentunit",
            steps=((limits.ABSTENTIONS, RED),),
            least=0,
        ),
    )


def _doubts() -> tuple[Panel, ...]:
    metrics = judge_metrics()
    return (
        Panel(
            "order",
            "Does its verdict depend on the order?",
            "Share of decided comparisons, over half an hour; in verdicts a second beside it. The line is the gate's "
            "limit.",
            (
                Query(_JUDGE.select(recording.INCONSISTENT), "{{job}}"),
                Query(_JOBS.rate(metrics.order_inconsistent, WINDOW), "{{job}} a second"),
            ),
            "percentunit",
            steps=((limits.INCONSISTENT, RED),),
            least=0,
        ),
        Panel(
            "injections",
            "Do responses address the judge?",
            "Share of labels on such responses, over 10 minutes. The line is where the alert fires.",
            (
                Query(_JUDGE.select(recording.INJECTIONS), "{{job}}"),
                Query(_JUDGE.keep("form").rate(metrics.injections, WINDOW), "{{form}} a second"),
            ),
            "percentunit",
            steps=((limits.INJECTIONS, RED),),
            least=0,
        ),
        Panel(
            "empty",
            "Are there responses that say nothing?",
            "Labels a second on responses that are empty or answer many different conversations, and on pairs that "
            "differ "
            "in spacing, case or punctuation at most.",
            (
                Query(_JUDGE.keep("form").rate(metrics.null_responses, WINDOW), "{{form}} says nothing"),
                Query(_JUDGE.rate(metrics.nearly_identical, WINDOW), "nearly identical"),
            ),
            "short",
            least=0,
        ),
    )


def _engine() -> tuple[Panel, ...]:
    metrics = judge_metrics()
    queues = _JUDGE.keep("queue")
    return (
        Panel(
            "queue_depth",
            "How much waits for the engine?",
            "Prompts in each queue, all replicas together, and the most that may wait.",
            (
                Query(queues.total(_JUDGE.select(metrics.queue_prompts)), "{{queue}}"),
                Query(queues.total(_JUDGE.select(metrics.queue_limit)), "{{queue}} limit"),
            ),
            "short",
            least=0,
        ),
        Panel(
            "queue_wait",
            "How long does it wait?",
            "Time in the queue of a request, or of a turn of a long one.",
            (
                Query(queues.quantile(0.5, metrics.queue_wait_seconds, WINDOW), "{{queue}} median"),
                Query(queues.quantile(0.99, metrics.queue_wait_seconds, WINDOW), "{{queue}} 99 %"),
            ),
            "s",
            least=0,
        ),
        Panel(
            "batches",
            "How large are its batches?",
            "Prompts of one engine batch. Small batches with a full queue leave the engine idle: mix_requests joins "
            "callers.",
            (
                Query(_JUDGE.mean(metrics.batch_prompts, WINDOW), "mean"),
                Query(_JUDGE.quantile(0.99, metrics.batch_prompts, WINDOW), "99 %"),
            ),
            "short",
            least=0,
        ),
        Panel(
            "engine_seconds",
            "How long does a batch take?",
            "Time in which the engine reads verdicts, and in which it writes texts.",
            (
                Query(_JUDGE.quantile(0.5, metrics.engine_seconds, WINDOW), "verdicts median"),
                Query(_JUDGE.quantile(0.99, metrics.engine_seconds, WINDOW), "verdicts 99 %"),
                Query(_JUDGE.quantile(0.99, metrics.text_seconds, WINDOW), "texts 99 %"),
            ),
            "s",
            least=0,
        ),
        Panel(
            "engine_busy",
            "How busy is each engine?",
            "Share of the time in which a replica's engine computes verdicts or texts. Near 1 more callers mean more "
            "waiting.",
            (Query(recording.judge_busy(_JUDGE.keep("job", "pod"), WINDOW), "{{job}} {{pod}}"),),
            "percentunit",
            steps=((0.9, ORANGE),),
            least=0,
        ),
        Panel(
            "engine_gpus",
            "How many GPUs does it use?",
            "GPUs of all replicas of a judge; 0 on CPUs and with a server elsewhere.",
            (Query(_JOBS.total(_JUDGE.select(metrics.engine_gpus)), "{{job}}"),),
            "short",
            kind="bars",
            least=0,
        ),
    )


def _cost() -> tuple[Panel, ...]:
    metrics = judge_metrics()
    per_label = _JUDGE.select(recording.ENGINE_SECONDS_PER_LABEL)
    gpus = _JUDGE.keep("namespace", "job").largest(_JUDGE.select(metrics.engine_gpus))
    return (
        Panel(
            "seconds_per_label",
            "How much engine time does a label take?",
            "Engine seconds for each label, and GPU seconds: those times the GPUs of a replica. Over half an hour.",
            (
                Query(per_label, "{{job}} engine"),
                Query(f"{per_label} * on (namespace, job) {gpus}", "{{job}} GPUs"),
            ),
            "s",
            least=0,
        ),
        Panel(
            "tokens",
            "How many tokens go in and out?",
            "Tokens a second: of prompts, each counted for every question that follows it; computed for that; and "
            "written.",
            (
                Query(_JUDGE.rate(metrics.prompt_tokens, WINDOW), "given"),
                Query(_JUDGE.rate(metrics.computed_prompt_tokens, WINDOW), "computed"),
                Query(_JUDGE.rate(metrics.completion_tokens, WINDOW), "written"),
            ),
            "short",
            least=0,
        ),
        Panel(
            "shared_prefixes",
            "How much of the prompts is shared?",
            "Prompt tokens that were not computed again because another question had computed them, over half an hour.",
            (Query(_JUDGE.select(recording.PROMPT_TOKENS_SHARED), "{{job}}"),),
            "percentunit",
            least=0,
            most=1,
        ),
    )
