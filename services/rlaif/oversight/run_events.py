"""What the events of runs mean as metrics. Anyone who may write events writes these: nothing of them is trusted."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from rlaif.oversight.metrics import GUARDS, RunMetrics
from rlaif.oversight.records import EventRow
from rlaif.runtime.telemetry import OTHER, BoundedValues

_LAUNCHERS: Final = ("local", "trainjob", "indexed_job")
_MAX_STAGES, _MAX_REASONS = 20, 30
_STAGE: Final = re.compile(r"[a-z][a-z_]{0,30}")
_REASON: Final = re.compile(r"[A-Z][A-Z0-9_]{0,40}")
_ROUND: Final = re.compile(r"-[0-9]+$")


EVENT_TYPES: Final = ("stage_finished", "stage_failed", "gate_decided", "policy_published")
"""Types of event that are counted."""


class RunEvents:
    """Counts the events that pipelines record of their runs; labels stay bounded whatever is written."""

    def __init__(self, metrics: RunMetrics) -> None:
        self._metrics = metrics
        self._stages = BoundedValues(_MAX_STAGES, pattern=_STAGE)
        self._reasons = BoundedValues(_MAX_REASONS, pattern=_REASON)

    def count(self, event: EventRow) -> None:
        """Counts an event; others than those of runs are passed over."""
        metrics = self._metrics
        match event.event_type:
            case "stage_finished":
                metrics.stages_finished.labels(stage=self._stage(event.subject)).inc()
                guard = _found(_payload(event), "values", "results", "guard", "guard")
                if guard is not None:
                    metrics.guard_stops.labels(guard=guard if guard in GUARDS else OTHER).inc()
            case "stage_failed":
                launcher = _found(_payload(event), "launcher")
                metrics.stage_failures.labels(
                    stage=self._stage(event.subject),
                    launcher=launcher if launcher in _LAUNCHERS else OTHER,
                    reason=self._reasons(_found(_payload(event), "reason")),
                ).inc()
            case "gate_decided":
                passed = _found(_payload(event), "passed") is True
                metrics.gates.labels(outcome="passed" if passed else "failed").inc()
            case "policy_published":
                metrics.policies_published.inc()

    def _stage(self, subject: str) -> str:
        """Of "runs/{run}/stages/{stage}", the stage without its round."""
        return self._stages(_ROUND.sub("", subject.rpartition("/")[2]))


def _payload(event: EventRow) -> Any:
    try:
        return json.loads(event.payload)
    except (ValueError, TypeError):  # altered since, for a verification to tell
        return None


def _found(values: Any, *path: str) -> Any:
    """What stands at that path; None where there is nothing."""
    for key in path:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values
