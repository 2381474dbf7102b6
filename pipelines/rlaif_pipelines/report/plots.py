"""Plots as inline SVG: no library, the same bytes every time, colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup, escape

_WIDTH: Final = 520
_HEIGHT: Final = 184
_LEFT: Final = 52
_RIGHT: Final = 14
_TOP: Final = 12
_BOTTOM: Final = 40


@dataclass(frozen=True)
class Series:
    """One line of a chart; `points` are (x, y), in order of x. `style` is a CSS class."""

    name: str
    points: Sequence[tuple[float, float]]
    style: str


@dataclass(frozen=True)
class Mark:
    """A vertical line at `x` that says what happened there."""

    x: float
    text: str


def line_chart(
    series: Sequence[Series], *, title: str, x_label: str, limit: float | None = None, marks: Sequence[Mark] = ()
) -> Markup:
    """Lines over one x axis with a little room above and below; `limit` is drawn as a dashed line where it is near.

    With several series their names stand above the lines.
    """
    points = [point for each in series for point in each.points]
    if not points:
        return Markup("")
    xs, ys = [*(x for x, _ in points), *(mark.x for mark in marks)], [y for _, y in points]
    low, high = min(ys), max(ys)
    if limit is not None and limit <= high * 2:
        high = max(high, limit)
    x_ticks, y_ticks = ticks(min(xs), max(xs), count=6), ticks(low, high, count=4)
    frame = _Frame(min(xs), max(xs), min(low, y_ticks[0]), max(high, y_ticks[-1]))
    parts = [_grid(frame, x_ticks, y_ticks, x_label)]
    if limit is not None and limit <= frame.y_high:
        y = frame.y(limit)
        parts.append(f'<line class="limit" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text("guard", x=_WIDTH - _RIGHT, y=y - 4, anchor="end"))
    for mark in marks:
        x = frame.x(mark.x)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        on_the_left = mark.x > (frame.x_low + frame.x_high) / 2
        anchor = "end" if on_the_left else "start"
        parts.append(_text(mark.text, x=x - 3 if on_the_left else x + 3, y=_TOP + 8, anchor=anchor))
    for number, each in enumerate(series if len(series) > 1 else ()):
        x = _LEFT + 8 + 90 * number
        parts.append(
            f'<line class="line {escape(each.style)}" x1="{x}" x2="{x + 16}" y1="{_TOP - 6}" y2="{_TOP - 6}"/>'
        )
        parts.append(_text(each.name, x=x + 20, y=_TOP - 2, anchor="start"))
    for each in series:
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in each.points)
        parts.append(f'<polyline class="line {escape(each.style)}" points="{path}"/>')
        x, y = each.points[-1] if each.points else (0.0, 0.0)
        parts.append(f'<circle class="dot {escape(each.style)}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3"/>')
    return _svg(parts, title=title)


def histogram(values: Sequence[float], *, num_bins: int, title: str, x_label: str) -> Markup:
    """How often values in [0, 1] fall into each bin."""
    if not values:
        return Markup("")
    counts = [0] * num_bins
    for value in values:
        counts[min(num_bins - 1, int(value * num_bins))] += 1
    y_ticks = ticks(0, max(counts), count=4)
    frame = _Frame(0.0, 1.0, 0.0, max(y_ticks[-1], max(counts)))
    parts = [_grid(frame, [0, 0.25, 0.5, 0.75, 1], y_ticks, x_label)]
    for index, count in enumerate(counts):
        left, right = frame.x(index / num_bins) + 1, frame.x((index + 1) / num_bins) - 1
        top = frame.y(count)
        parts.append(
            f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
            f'height="{frame.y(0) - top:.1f}"><title>{count}</title></rect>'
        )
    return _svg(parts, title=title)


def interval_bar(value: float, *, low: float | None, high: float | None, reference: float | None) -> Markup:
    """A share in [0, 1] with its interval on a line from 0 to 1; `reference` is marked."""
    width, middle = 220.0, 9.0
    parts = [f'<line class="axis" x1="0" x2="{width:g}" y1="{middle:g}" y2="{middle:g}"/>']
    if reference is not None:
        x = reference * width
        parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="1" y2="17"/>')
    if low is not None and high is not None:
        parts.append(
            f'<rect class="interval" x="{low * width:.1f}" y="5" width="{max(1.0, (high - low) * width):.1f}" '
            'height="8" rx="4"/>'
        )
    parts.append(f'<circle class="dot first" cx="{value * width:.1f}" cy="{middle:g}" r="4"/>')
    return Markup(f'<svg class="mini" viewBox="-5 0 {width + 10:g} 18" aria-hidden="true">{"".join(parts)}</svg>')  # noqa: S704


def ticks(low: float, high: float, *, count: int) -> list[float]:
    """About `count` round numbers that span [low, high]; multiples of 1, 2 or 5 times a power of ten."""
    span = high - low
    if span <= 0:
        span = abs(high) or 1.0
        low, high = low - span / 2, high + span / 2
    raw = span / max(1, count - 1)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = magnitude * next(factor for factor in (1, 2, 5, 10) if factor * magnitude >= raw * 0.999)
    # What sticks out by less than one can see needs no tick of its own.
    first, last = math.floor(low / step + 0.01), math.ceil(high / step - 0.01)
    return [round(index * step, 10) for index in range(first, last + 1)]


@dataclass(frozen=True)
class _Frame:
    """Maps values to pixels."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        span = self.x_high - self.x_low or 1.0
        return _LEFT + (value - self.x_low) / span * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        span = self.y_high - self.y_low or 1.0
        return _HEIGHT - _BOTTOM - (value - self.y_low) / span * (_HEIGHT - _TOP - _BOTTOM)


def _grid(frame: _Frame, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str) -> str:
    parts = []
    for tick in y_ticks:
        y = frame.y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(_number(tick), x=_LEFT - 7, y=y + 3.5, anchor="end"))
    for tick in x_ticks:
        if frame.x_low <= tick <= frame.x_high:
            parts.append(_text(_number(tick), x=frame.x(tick), y=_HEIGHT - 24, anchor="middle"))
    parts.append(_text(x_label, x=_WIDTH - _RIGHT, y=_HEIGHT - 7, anchor="end"))
    return "".join(parts)


def _text(text: str, *, x: float, y: float, anchor: str) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: Sequence[str], *, title: str) -> Markup:
    head = f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
    return Markup(f"{head}{''.join(parts)}</svg>")  # noqa: S704 - numbers and escaped text only


def _number(value: float) -> str:
    return f"{value:g}"
