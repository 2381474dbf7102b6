"""A dashboard: sections of panels, the first of which says whether all is well, and choices at the top."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models
from prometheus_client import Gauge

from monitoring.boards.panel import DATASOURCE, Panel
from monitoring.catalogue import Series, series_of
from monitoring.promql import Scope

HEALTH: Final = "Is it healthy?"
WINDOW: Final = "$__rate_interval"
TAG: Final = "rlaif"
HERE: Final = Scope((("namespace", "$namespace"),), by=())
"""What every panel asks about: the namespace chosen; its sums keep no label unless they say so."""


@dataclass(frozen=True)
class Variable:
    """A choice at the top of the page, filled from the values of a label."""

    name: str
    title: str
    query: str
    many: bool = False

    @classmethod
    def of(cls, name: str, title: str, metric: Gauge | Series, label: str) -> Variable:
        """Any of the values that a label of the metric has in the namespace chosen.

        Links between pages carry choices along by name: one that means something else elsewhere needs another name.
        """
        series = metric if isinstance(metric, Series) else series_of(metric)
        return cls(name, title, f'label_values({series.name}{{namespace="$namespace"}}, {label})', many=True)

    def build(self) -> dashboard.QueryVariable:
        """As Grafana has it."""
        builder = dashboard.QueryVariable(self.name).label(self.title).query(self.query).datasource(DATASOURCE)
        builder.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
        return builder.multi(True).include_all(True).all_value(".*") if self.many else builder


NAMESPACE: Final = Variable("namespace", "namespace", 'label_values(up{job=~"rlaif-.*"}, namespace)')


@dataclass(frozen=True)
class Board:
    """One dashboard. The first section is HEALTH."""

    uid: str
    title: str
    description: str
    sections: Mapping[str, tuple[Panel, ...]]
    variables: tuple[Variable, ...] = ()

    @property
    def panels(self) -> dict[str, tuple[int, Panel]]:
        """(number, panel) by key."""
        return {
            panel.key: (number, panel)
            for number, panel in enumerate((each for panels in self.sections.values() for each in panels), start=1)
        }

    def path_to(self, key: str) -> str:
        """Path below Grafana that shows one panel alone."""
        return f"/d/{self.uid}?viewPanel={self.panels[key][0]}"

    def to_json(self) -> str:
        """The file that Grafana reads."""
        builder = dashboard.Dashboard(self.title).uid(self.uid).description(self.description).tags([TAG]).editable()
        builder.time("now-3h", "now").refresh("30s").tooltip(models.DashboardCursorSync.CROSSHAIR).timezone("browser")
        source = dashboard.DatasourceVariable("datasource").label("data source").type("prometheus")
        builder.with_variable(source)
        for variable in (NAMESPACE, *self.variables):
            builder.with_variable(variable.build())
        link = dashboard.DashboardLink("RLAIF").type(models.DashboardLinkType.DASHBOARDS).tags([TAG])
        builder.link(link.as_dropdown(True).include_vars(True).keep_time(True))
        number = 0
        for title, panels in self.sections.items():
            builder.with_row(dashboard.Row(title).id(1000 + number))
            for panel in panels:
                number += 1
                builder.with_panel(_Built(panel.build(number)))
        return json.dumps(builder.build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


@dataclass(frozen=True)
class _Built(Builder[models.Panel]):
    """A panel that is built already, where Grafana's SDK wants a builder."""

    panel: models.Panel

    def build(self) -> models.Panel:
        """The panel."""
        return self.panel
