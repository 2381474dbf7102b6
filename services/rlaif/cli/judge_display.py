"""How the judge's answers look in a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rlaif.cli.constitution_display import findings_page
from rlaif.client.judge import ConstitutionAudit, Critique, Provenance, Ranking, Revision, Score, Verdict

_WIDTH: Final = 20
_EXCERPT_CHARACTERS: Final = 72
_HEADLINES: Final = {
    "first": ("the first response is preferred", "bold green"),
    "second": ("the second response is preferred", "bold green"),
    "tie": ("judged equal", "bold yellow"),
    "abstain": ("no verdict", "bold red"),
}


def verdict_page(verdict: Verdict) -> RenderableType:
    """A verdict: what was decided, principle by principle, and by whom."""
    headline, style = _HEADLINES[verdict.preference]
    head = Text(headline, style)
    if verdict.probability_first is not None:
        head.append(f"  P(first) = {verdict.probability_first:.3f}", "default")
    head.append_text(_because(verdict.abstention_reason))
    parts: list[RenderableType] = [head]
    parts += [Text(f"! {remark}", "yellow") for remark in _verdict_remarks(verdict)]
    if verdict.votes:
        table = _table("principle", "weight", "P(first)", "shown first", "shown second", "")
        for vote in verdict.votes:
            cells: tuple[str | Text, ...] = ("", "", "", Text(_words(vote.abstention_reason), "yellow"))
            if vote.abstention_reason is None:
                cells = (
                    f"{vote.probability_first:.3f}",
                    f"{vote.probability_shown_first:.3f}",
                    f"{vote.probability_shown_second:.3f}",
                    _bar(vote.probability_first),
                )
            table.add_row(vote.principle_id, f"{vote.weight:g}", *cells)
        parts += [Text(""), table]
    if verdict.rationale:
        parts += [Text(""), Text("rationale", "bold"), Padding(Text(verdict.rationale), (0, 0, 0, 2))]
    return Group(*parts, Text(""), *_sources(verdict.provenance, verdict.label, verdict.recorded_before))


def _verdict_remarks(verdict: Verdict) -> Iterator[str]:
    if verdict.abstention_reason is None and not verdict.order_consistent:
        yield "the two orders of showing the responses gave different preferences"
    yield from _remarks(verdict.injection_suspected, verdict.null_response_suspected)
    if verdict.responses_nearly_identical:
        yield "the responses are nearly the same text"
    if len(verdict.judge_votes) > 1:
        yield f"{len(verdict.judge_votes)} judges voted, standard deviation {verdict.panel_disagreement:.3f}"
    if verdict.calibration:
        yield f"calibrated by {verdict.calibration} from {verdict.raw_probability_first:.3f}"


def score_page(score: Score) -> RenderableType:
    """A score: its mean, principle by principle, and by whom."""
    head = Text("no score", "bold red")
    if score.expected is not None:
        head = Text(f"{score.expected:.2f} of 10", "bold green")
        head.append(f"  reward {score.reward:+.3f}", "default")
    head.append_text(_because(score.abstention_reason))
    parts: list[RenderableType] = [head]
    parts += [
        Text(f"! {remark}", "yellow") for remark in _remarks(score.injection_suspected, score.null_response_suspected)
    ]
    if score.scores:
        table = _table("principle", "weight", "score", "spread", "1 … 10")
        for each in score.scores:
            cells: tuple[str | Text, ...] = ("", "", Text(_words(each.abstention_reason), "yellow"))
            if each.abstention_reason is None:
                cells = (f"{each.expected:.2f}", f"{each.standard_deviation:.2f}", _columns(each.probabilities))
            table.add_row(each.principle_id, f"{each.weight:g}", *cells)
        parts += [Text(""), table]
    return Group(*parts, Text(""), *_sources(score.provenance, score.label, score.recorded_before))


def ranking_page(ranking: Ranking, responses: Sequence[str]) -> RenderableType:
    """A ranking from best to worst with the strength of each response."""
    if ranking.abstention_reason:
        return Group(Text("no ranking", "bold red").append_text(_because(ranking.abstention_reason)))
    table = _table("rank", "response", "strength", "± standard error", "text")
    for each in ranking.ranking:
        table.add_row(
            str(each.rank),
            str(each.index + 1),
            f"{each.strength:+.2f}",
            f"{each.strength_standard_error:.2f}",
            _excerpt(responses[each.index]),
        )
    parts: list[RenderableType] = [table, Text(f"\n{len(ranking.comparisons)} comparisons", "dim")]
    for cycle in ranking.cycles:
        circle = " > ".join(str(index + 1) for index in (*cycle, cycle[0]))
        parts.append(Text(f"! preferred in a circle: {circle}", "yellow"))
    return Group(*parts, *_sources(ranking.comparisons[0].verdict.provenance if ranking.comparisons else None))


def critique_page(critique: Critique) -> RenderableType:
    """A critique and the principles that it applied."""
    if critique.abstention_reason:
        return Text("no critique", "bold red").append_text(_because(critique.abstention_reason))
    applied = Text(f"\nby {', '.join(critique.principle_ids)}", "dim")
    return Group(Text(critique.text), applied, *_sources(critique.provenance))


def rewrite_page(critique: str, revision: Revision | None, abstention_reason: str | None) -> RenderableType:
    """A rewrite and the critique that it answers."""
    parts: list[RenderableType] = []
    if critique:
        parts += [Text("critique", "bold"), Padding(Text(critique), (0, 0, 1, 2))]
    if revision is None or abstention_reason:
        missing = "no rewrite" if critique else "no critique to answer"
        return Group(*parts, Text(missing, "bold red").append_text(_because(abstention_reason)))
    title = "unchanged" if revision.unchanged else "rewritten"
    parts += [Text(title, "bold yellow" if revision.unchanged else "bold green")]
    return Group(*parts, Padding(Text(revision.text), (0, 0, 1, 2)), *_sources(revision.provenance))


def audit_page(name: str, audit: ConstitutionAudit) -> RenderableType:
    """Findings of an audit, then the judge model's own words."""
    parts = [findings_page(name, audit.findings)]
    if audit.written_audit:
        parts += [Text("\nin the judge's own words", "bold"), Padding(Text(audit.written_audit), (0, 0, 0, 2))]
    elif audit.written_audit_abstention_reason:
        reason = _words(audit.written_audit_abstention_reason)
        parts.append(Text(f"\nno written audit: {reason}", "yellow"))
    return Group(*parts, Text(""), *_sources(audit.provenance))


def counted(counts: Counter[str]) -> str:
    """Outcomes as words: "3 first, 2 abstain"."""
    return ", ".join(f"{number} {outcome}" for outcome, number in counts.most_common()) or "none"


def _remarks(injection_suspected: bool, null_response_suspected: bool) -> Iterator[str]:
    if injection_suspected:
        yield "a response addresses the judge"
    if null_response_suspected:
        yield "a response says nothing, or is one text that answers anything"


def _sources(provenance: Provenance | None, label: str = "", recorded_before: bool = False) -> Iterator[Text]:
    if provenance is None:
        return
    weights = provenance.model_digest[:12] or "unidentified weights"
    yield Text(f"judge {provenance.model_uri} ({weights})", "dim", overflow="fold")
    rules = f"{provenance.constitution} ({provenance.constitution_sha256[:12]})"
    yield Text(f"by {rules}, template {provenance.template_sha256[:12]}", "dim")
    if label:
        yield Text(f"{'already in' if recorded_before else 'recorded in'} the ledger: {label}", "dim", overflow="fold")


def _because(reason: str | None) -> Text:
    return Text(f": {_words(reason)}" if reason else "", "default")


def _words(reason: str | None) -> str:
    return (reason or "").replace("_", " ")


def _table(*titles: str) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title in titles:
        table.add_column(title, justify="left" if title in ("principle", "text", "1 … 10", "") else "right")
    return table


def _bar(probability: float) -> Text:
    filled = round(probability * _WIDTH)
    return Text("█" * filled, "green" if probability > 0.5 else "red").append("░" * (_WIDTH - filled), "dim")


def _columns(probabilities: Sequence[float]) -> Text:
    levels = " ▁▂▃▄▅▆▇█"
    top = max(probabilities, default=0.0) or 1.0
    return Text("".join(levels[round(each / top * (len(levels) - 1))] for each in probabilities), "green")


def _excerpt(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _EXCERPT_CHARACTERS else f"{line[: _EXCERPT_CHARACTERS - 1]}…"
