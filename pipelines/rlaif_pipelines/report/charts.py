"""What the page draws of training: a plot for each figure of its steps, rounds after each other on one axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from rlaif_pipelines.report.facts import RunFacts
from rlaif_pipelines.report.plots import Mark, Series, line_chart

_Chart = tuple[str, str, str, str]
"""Key of a step's line, title, meaning, style."""
_CHARTS: Final[Sequence[_Chart]] = (
    ("reward", "Reward (proxy)", "what the policy is trained on", "first"),
    ("gold", "Gold", "independent rules; logged only, never trained on", "second"),
    ("held_out", "Held-out score", "second opinion on prompts set apart; guards, never trained on", "third"),
    ("kl", "KL", "nats a reply from where the round began", "fourth"),
    ("completion_tokens", "Reply length", "tokens", "fifth"),
    ("entropy", "Entropy", "nats a token", "sixth"),
    ("repetition", "Repetition", "share of a reply's 4-grams that it has said before", "first"),
    ("clip_fraction", "Clipped", "share of tokens whose ratio of policies was clipped", "second"),
    ("truncated_fraction", "Truncated", "share of tokens whose weight against the sampler was cut", "third"),
    ("cut_off_fraction", "Cut off", "share of replies that ended because their token budget did", "fourth"),
    ("learning_rate", "Learning rate", "", "fifth"),
    ("kl_beta", "KL weight", "", "sixth"),
    ("grad_norm", "Gradient norm", "before clipping", "first"),
    ("num_dropped", "Dropped", "replies without a reward, and groups left out", "second"),
    ("staleness", "Staleness", "steps that replies trail the weights by", "third"),
)
_CONSTANT_IS_NO_NEWS: Final = (
    "repetition",
    "clip_fraction",
    "truncated_fraction",
    "cut_off_fraction",
    "learning_rate",
    "kl_beta",
    "num_dropped",
    "staleness",
)
_STYLES: Final = ("first", "second", "third", "fourth", "fifth", "sixth")
_TOGETHER: Final = (("reward", "proxy", "first"), ("held_out", "held-out", "third"), ("gold", "gold", "second"))
_LOSS_CHART: Final[Sequence[_Chart]] = (
    ("loss", "Loss", "of the preferences; DPO has no reward", "first"),
    ("accuracy", "Accuracy", "share of a step's pairs whose preferred reply has the higher implicit reward", "second"),
    ("margin", "Margin", "mean lead of the preferred replies' implicit reward", "third"),
)
_SFT_CHART: Final[Sequence[_Chart]] = (("loss", "Loss", "nats a token of the revised replies", "first"),)


def charts(facts: RunFacts) -> Iterator[dict[str, Any]]:
    """Plots of the policy's training, each with title, meaning, first and last value."""
    guards = (facts.settings.get("rl") or {}).get("guards") or {}
    max_kl = (guards.get("kl") or {}).get("limit")
    rows: list[Mapping[str, Any]] = [{**row, **_counted(row)} for row in facts.metrics if row["kind"] == "train"]
    shown = _CHARTS if any("reward" in row for row in rows) else _LOSS_CHART
    if not rows:
        rows, shown = [row for row in facts.metrics if row["kind"] == "sft"], _SFT_CHART
    place = _axis(rows)
    marks = list(_marks(rows, place))
    yield from _together(rows, place, marks)
    yield from _components(rows, place, marks)
    for key, title, meaning, style in shown:
        points = _points(rows, key, place)
        if len(points) < 2 or (key in _CONSTANT_IS_NO_NEWS and len({y for _, y in points}) == 1):
            continue
        yield {
            "title": title,
            "meaning": meaning,
            "first": f"{points[0][1]:.3g}",
            "last": f"{points[-1][1]:.3g}",
            "plot": line_chart(
                [Series(title, points, style)],
                title=f"{title} over training steps",
                x_label="step",
                limit=max_kl if key == "kl" else None,
                marks=marks,
            ),
        }


def _axis(rows: Sequence[Mapping[str, Any]]) -> Callable[[int, int], float]:
    """Where a step of a round stands: rounds follow each other on one axis."""
    last_steps: dict[int, int] = {}
    for row in rows:
        last_steps[row["round"]] = max(last_steps.get(row["round"], 0), row["step"])

    def place(round_number: int, step: int) -> float:
        return float(step + sum(steps for number, steps in last_steps.items() if number < round_number))

    return place


def _points(
    rows: Sequence[Mapping[str, Any]], key: str, place: Callable[[int, int], float]
) -> list[tuple[float, float]]:
    return [
        (place(row["round"], row["step"]), float(row[key])) for row in rows if isinstance(row.get(key), int | float)
    ]


def _together(
    rows: Sequence[Mapping[str, Any]], place: Callable[[int, int], float], marks: Sequence[Mark]
) -> Iterator[dict[str, Any]]:
    """Proxy, held-out score and gold in one picture: whether what is optimised still means what it should."""
    series = []
    for key, name, style in _TOGETHER:
        points = _points(rows, key, place)
        low, high = min((y for _, y in points), default=0.0), max((y for _, y in points), default=0.0)
        if len(points) > 1 and high > low:
            series.append(Series(name, [(x, (y - low) / (high - low)) for x, y in points], style))
    if len(series) > 1:
        yield {
            "title": "Proxy against the rest",
            "meaning": "each from its lowest to its highest",
            "first": "0",
            "last": "1",
            "plot": line_chart(series, title="Proxy, held-out score and gold over steps", x_label="step", marks=marks),
        }


def _components(
    rows: Sequence[Mapping[str, Any]], place: Callable[[int, int], float], marks: Sequence[Mark]
) -> Iterator[dict[str, Any]]:
    """The reward's components, where it has several."""
    names = sorted({name for row in rows for name in row.get("reward_components") or {}})[: len(_STYLES)]
    series = [
        Series(name, _points([{**row, **(row.get("reward_components") or {})} for row in rows], name, place), style)
        for name, style in zip(names, _STYLES, strict=False)
    ]
    if len(series) > 1:
        yield {
            "title": "Rewards by component",
            "meaning": "unweighted means",
            "first": "",
            "last": "",
            "plot": line_chart(series, title="Rewards by component over steps", x_label="step", marks=marks),
        }


def _counted(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"num_dropped": sum(row["dropped"].values())} if row.get("dropped") else {}


def _marks(rows: Sequence[Mapping[str, Any]], place: Callable[[int, int], float]) -> Iterator[Mark]:
    # A round has a reward model of its own: a jump there is one of scales.
    for number in sorted({row["round"] for row in rows})[1:]:
        yield Mark(place(number, 1), f"round {number}")
    for row in rows:
        for firing in row.get("guards") or ():
            yield Mark(place(row["round"], row["step"]), f"{firing['guard']}: {firing['action']}")
        if back := row.get("rolled_back"):
            # The rollouts of step n + 1 come from the weights after step n.
            yield Mark(place(row["round"], back["num_steps"] + 1), "rolled back to")
