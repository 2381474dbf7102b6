"""PromQL from metrics: selectors whose labels are checked, and the few shapes of query that rules and panels need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from prometheus_client import Counter, Gauge, Histogram

from monitoring.catalogue import TARGET_LABELS, Series, series_of

Metric = Counter | Gauge | Histogram | Series
Match = str | Sequence[str]
"""A value that a label has; several of them; or, after an operator (`!=`, `=~`, `!~`), what it is held against."""

_OPERATORS = ("!=", "=~", "!~")


@dataclass(frozen=True)
class Scope:
    """What every query is about: matchers of all its selectors, and labels that all its sums keep."""

    matchers: tuple[tuple[str, Match], ...] = ()
    by: tuple[str, ...] = ("namespace",)

    def where(self, **matchers: Match) -> Scope:
        """The scope with further matchers; they take the place of others on the same label."""
        return replace(self, matchers=tuple((dict(self.matchers) | matchers).items()))

    def keep(self, *labels: str) -> Scope:
        """The scope whose sums keep further labels."""
        return replace(self, by=(*self.by, *labels))

    def select(self, metric: Metric, part: str = "", /, **matchers: Match) -> str:
        """The series themselves; `part` is bucket, sum or count of a histogram."""
        series = metric if isinstance(metric, Series) else series_of(metric)
        wanted = dict(self.matchers) | matchers
        known = series.labels | TARGET_LABELS | ({"le"} if part == "bucket" else set())
        assert wanted.keys() <= known, f"{series.name} has no label {sorted(wanted.keys() - known)}"
        assert (series.kind == "histogram") == bool(part), f"{series.name} is a {series.kind}"
        if "le" in wanted:
            assert wanted["le"] in series.bounds, f"{wanted['le']} is no bound of {series.name}"
        name = f"{series.name}_{part}" if part else series.name
        return f"{name}{{{','.join(_matcher(label, match) for label, match in wanted.items())}}}"

    def select_any(self, metrics: Sequence[Metric], **matchers: Match) -> str:
        """The series of several metrics whose labels are the same, such as one of each service."""
        names = [self.select(metric, **matchers).partition("{") for metric in metrics]
        [rest] = {rest for _, _, rest in names}
        return f'{{__name__=~"{"|".join(name for name, _, _ in names)}",{rest}'

    def rate(self, metric: Metric, window: str, part: str = "", /, **matchers: Match) -> str:
        """Rises of a counter a second, summed."""
        return self.total(f"rate({self.select(metric, part, **matchers)}[{window}])")

    def total(self, expression: str) -> str:
        """The sum that keeps the scope's labels."""
        return f"sum by ({', '.join(self.by)}) ({expression})"

    def largest(self, expression: str) -> str:
        """The maximum that keeps the scope's labels."""
        return f"max by ({', '.join(self.by)}) ({expression})"

    def least(self, expression: str) -> str:
        """The minimum that keeps the scope's labels."""
        return f"min by ({', '.join(self.by)}) ({expression})"

    def quantile(self, share: float, metric: Metric, window: str, **matchers: Match) -> str:
        """A quantile of a histogram."""
        return f"histogram_quantile({share}, {self.keep('le').rate(metric, window, 'bucket', **matchers)})"

    def mean(self, metric: Metric, window: str, **matchers: Match) -> str:
        """The mean of a histogram."""
        return ratio(self.rate(metric, window, "sum", **matchers), self.rate(metric, window, "count", **matchers))


def ratio(part: str, whole: str) -> str:
    """Part over whole; nothing where the whole is nothing."""
    return f"{part} / ({whole} > 0)"


def share(part: str, whole: str) -> str:
    """Part over whole, where a part that was never counted is 0."""
    return f"({part} or 0 * {whole}) / ({whole} > 0)"


def risen(counter: str, window: str) -> str:
    """How much a counter rose, the value it appeared with counted, which `increase` does not see."""
    rise = f"increase({counter}[{window}])"
    return f"({rise} + (min_over_time({counter}[{window}]) unless {counter} offset {window}) or {rise})"


def either(*expressions: str) -> str:
    """All of them side by side."""
    return f"({' or '.join(expressions)})" if len(expressions) > 1 else expressions[0]


def _matcher(label: str, match: Match) -> str:
    if not isinstance(match, str):
        return f'{label}=~"{"|".join(match)}"'
    for operator in _OPERATORS:
        if match.startswith(operator):
            return f'{label}{operator}"{match.removeprefix(operator)}"'
    return f'{label}="{match}"'
