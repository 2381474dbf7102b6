"""A panel: one question, the queries that answer it, and where its answer stops being good."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog import builder as cogbuilder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models

DATASOURCE: Final = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
GREEN, ORANGE, RED = "green", "orange", "red"

Kind = Literal["stat", "lines", "bars"]
Step = tuple[float, str]
"""From this value on, this colour."""


@dataclass(frozen=True)
class Query:
    """An expression, and what its lines are called: text with `{{label}}`."""

    expr: str
    legend: str = ""
    unit: str = ""
    """Where it is not the panel's: such lines have their scale on the right."""


@dataclass(frozen=True)
class Panel:
    """One panel. `key` names it for alerts and stays when the question is put otherwise."""

    key: str
    question: str
    description: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Kind = "lines"
    base: str = GREEN
    """Colour below the first step."""
    steps: tuple[Step, ...] = ()
    width: int = 8
    height: int = 8
    least: float | None = 0.0
    most: float | None = None
    words: Mapping[float, tuple[str, str]] | None = None
    """What single values mean, and in which colour."""
    nothing: str = "none"
    """What is shown where there is no series."""

    def build(self, number: int) -> models.Panel:
        """As Grafana has it."""
        return _BUILDERS[self.kind](self, number).build()


Builder = TypeVar("Builder", stat.Panel, bargauge.Panel, timeseries.Panel)


def _common(builder: Builder, panel: Panel, number: int, *, instant: bool) -> Builder:
    builder.id(number).title(panel.question).description(panel.description).datasource(DATASOURCE)
    builder.height(panel.height).span(panel.width).unit(panel.unit).no_value(panel.nothing)
    if panel.least is not None:
        builder.min(panel.least)
    if panel.most is not None:
        builder.max(panel.most)
    steps = [models.Threshold(value=None, color=panel.base)]
    steps += [models.Threshold(value=value, color=color) for value, color in panel.steps]
    builder.thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
    if panel.words:
        builder.mappings([_mapping(panel.words)])
    for index, query in enumerate(panel.queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend or "__auto").ref_id(chr(65 + index))
        builder.with_target(target.instant() if instant else target.range())
        if query.unit:
            own = {"unit": query.unit, "custom.axisPlacement": "right"}
            builder.override_by_query(
                chr(65 + index), [models.DynamicConfigValue(name, value) for name, value in own.items()]
            )
    return builder


def _mapping(words: Mapping[float, tuple[str, str]]) -> models.ValueMapping:
    return models.ValueMap(
        options={
            f"{value:g}": models.ValueMappingResult(text=text, color=color, index=index)
            for index, (value, (text, color)) in enumerate(words.items())
        }
    )


def _stat(panel: Panel, number: int) -> stat.Panel:
    builder = _common(stat.Panel(), panel, number, instant=True)
    builder.color_mode(common_models.BigValueColorMode.BACKGROUND).graph_mode(common_models.BigValueGraphMode.NONE)
    return builder.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))


def _bars(panel: Panel, number: int) -> bargauge.Panel:
    builder = _common(bargauge.Panel(), panel, number, instant=True)
    builder.orientation(common_models.VizOrientation.HORIZONTAL)
    return builder.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))


def _lines(panel: Panel, number: int) -> timeseries.Panel:
    builder = _common(timeseries.Panel(), panel, number, instant=False)
    legend = common.VizLegendOptions().show_legend(True).placement(common_models.LegendPlacement.BOTTOM)
    builder.legend(legend.display_mode(common_models.LegendDisplayMode.LIST)).fill_opacity(8).line_width(2)
    builder.color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC))
    if panel.steps:
        builder.thresholds_style(common.GraphThresholdsStyleConfig().mode(common_models.GraphTresholdsStyleMode.DASHED))
    return builder


_BUILDERS: Final[Mapping[Kind, Callable[[Panel, int], cogbuilder.Builder[models.Panel]]]] = {
    "stat": _stat,
    "lines": _lines,
    "bars": _bars,
}
