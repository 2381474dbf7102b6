"""report.json in a few lines of Markdown, for where a page is too much."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_SHARES = (("harmful_compliance", "harmful compliance"), ("over_refusal", "over-refusal"))


def render(summary: Mapping[str, Any]) -> str:
    """The verdict, why, and a table of the figures that are known."""
    verdict = str(summary["verdict"]).replace("_", " ")
    lines = [f"## {verdict[:1].upper()}{verdict[1:]}", "", *(f"* {_plain(why)}" for why in summary["verdict_reasons"])]
    rows = list(_rows(summary))
    if rows:
        lines += ["", "| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    if summary["benchmark"] is not None:
        lines += ["", *_benchmark(summary["benchmark"]["statistics"])]
    return "\n".join(lines) + "\n"


def _rows(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    win = summary["win_rate"]
    if win["value"] is not None:
        interval = f" ({win['low']:.3f} to {win['high']:.3f})" if win["low"] is not None else ""
        yield "win rate against the start", f"{win['value']:.3f}{interval}"
    for key, name in _SHARES:
        pair = summary[key]
        if pair["baseline"] is not None and pair["trained"] is not None:
            yield name, f"{pair['baseline']:.1%} → {pair['trained']:.1%}"
    words = summary["mean_words"]
    if words["baseline"] is not None and words["trained"] is not None:
        yield "words a reply", f"{words['baseline']:.1f} → {words['trained']:.1f}"
    if summary["kl"] is not None:
        yield "KL from the start", f"{summary['kl']:.2f} nats a reply"
    quality = summary["label_quality"]
    if quality is not None:
        gated = [each["round"] for each in summary["rounds"] if each["gate_passed"] is not None]
        of_round = f" of round {gated[-1]}" if len(gated) > 1 else ""
        yield f"labels{of_round}", str(quality["num_labels"])
        for key in ("abstention_rate", "order_inconsistency"):
            if quality[key] is not None:
                yield f"{key.replace('_', ' ')}{of_round}", f"{quality[key]:.1%}"
        if summary["label_accuracy"] is not None:
            yield f"agreement with gold{of_round}", f"{summary['label_accuracy']:.1%}"


def _benchmark(statistics: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "| pairs | number | accuracy (95 % CI) | order inconsistency | abstentions |"
    yield "|---|---|---|---|---|"
    for name, found in statistics.items():
        accuracy = found["human_agreement"]
        told = [_share(accuracy), _share(found["order_inconsistency"]), _share(found["abstention_rate"])]
        if accuracy["low"] is not None:
            told[0] += f" ({accuracy['low']:.1%} to {accuracy['high']:.1%})"
        yield f"| {_plain(name or 'all')} | {found['abstention_rate']['num_samples']} | {' | '.join(told)} |"


def _share(estimate: Mapping[str, Any]) -> str:
    return "not known" if estimate["value"] is None else f"{estimate['value']:.1%}"


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
