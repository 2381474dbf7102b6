"""An alert: what fires it, how bad that is, and where to look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

RUNBOOKS: Final = "https://github.com/kube-rlaif/kube-rlaif/blob/main/docs/runbooks.md"

Severity = Literal["critical", "warning"]


@dataclass(frozen=True)
class Alert:
    """One alerting rule. Its series keep `namespace`; several rules may share a name and so a runbook."""

    name: str
    expr: str
    wait: str
    """How long it must hold; "" fires at once."""
    severity: Severity
    summary: str
    """One line; may hold `{{ $labels.job }}` and the like."""
    description: str
    """What it means and what to do first."""
    panel: str
    """Path below Grafana of the panel that shows it."""
    window: str = ""
    """Tells rules of one name apart."""

    @property
    def runbook(self) -> str:
        """Where docs/runbooks.md says what to do."""
        return f"{RUNBOOKS}#{self.name.lower()}"

    def to_json(self) -> dict[str, Any]:
        """As a rules file has it."""
        labels = {"severity": self.severity} | ({"window": self.window} if self.window else {})
        return {
            "alert": self.name,
            "expr": self.expr,
            **({"for": self.wait} if self.wait else {}),
            "labels": labels,
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": self.runbook,
                "dashboard_url": f"{self.panel}&var-namespace={{{{ $labels.namespace }}}}",
            },
        }
