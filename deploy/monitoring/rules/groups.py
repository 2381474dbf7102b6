"""The rules as groups, as Prometheus and the Prometheus operator read them."""

from __future__ import annotations

from typing import Any, Final

from monitoring.boards import boards
from monitoring.promql import Scope
from monitoring.rules.alert import Alert
from monitoring.rules.label_alerts import label_alerts
from monitoring.rules.recording import recording_rules
from monitoring.rules.service_alerts import service_alerts
from monitoring.rules.training_alerts import training_alerts
from monitoring.timing import Timing

NAMESPACE: Final = "rlaif"
"""What the chart replaces by the namespace it is installed in."""
SCOPE: Final = Scope((("namespace", NAMESPACE),))


def alerts(timing: Timing) -> dict[str, list[Alert]]:
    """All alerts by group."""
    overview, judge, sampler, reward, training, labels = boards()
    return {
        "rlaif-services": service_alerts(SCOPE, timing, overview=overview, sampler=sampler),
        "rlaif-labels": label_alerts(SCOPE, timing, judge=judge, reward=reward, labels=labels),
        "rlaif-runs": training_alerts(SCOPE, timing, overview=overview, training=training),
    }


def recordings(timing: Timing) -> dict[str, Any]:
    """The file of recording rules."""
    rules = [rule.to_json() for rule in recording_rules(SCOPE, timing)]
    return {"groups": [{"name": "rlaif-recordings", "rules": rules}]}


def alert_file(timing: Timing) -> dict[str, Any]:
    """The file of alerts."""
    groups = alerts(timing)
    return {"groups": [{"name": name, "rules": [each.to_json() for each in found]} for name, found in groups.items()]}
