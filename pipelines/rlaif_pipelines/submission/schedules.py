"""Runs that Kubeflow Pipelines starts by itself, as values: when, and what is known of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import kfp_server_api

from rlaif.core.errors import InvalidInputError

_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_INTERVAL: Final = re.compile(r"(\d{1,9})([smhd]?)")
_FIELD: Final = re.compile(r"[0-9A-Za-z*/,?-]+")
_NAMED: Final = re.compile(r"@(hourly|daily|midnight|weekly|monthly|yearly|annually)")
_MIN_SECONDS: Final = 60


@dataclass(frozen=True)
class Trigger:
    """When: by a cron expression with seconds, as the scheduler reads it (UTC), or every so many seconds."""

    cron: str = ""
    interval_seconds: int = 0

    @classmethod
    def of_cron(cls, text: str) -> Trigger:
        """From cron's usual five fields, the scheduler's six (seconds first), or a name such as @daily."""
        fields = text.split()
        if _NAMED.fullmatch(text.strip()):
            return cls(cron=text.strip())
        if len(fields) not in (5, 6) or not all(map(_FIELD.fullmatch, fields)):
            raise InvalidInputError(
                f"--cron {text!r}: must be minute, hour, day of month, month, day of week, such as '0 3 * * 1-5'; or "
                "six fields, seconds first; or @hourly, @daily, @weekly, @monthly",
                field="--cron",
            )
        return cls(cron=" ".join(fields if len(fields) == 6 else ["0", *fields]))

    @classmethod
    def of_interval(cls, text: str) -> Trigger:
        """From a number with s, m, h or d."""
        found = _INTERVAL.fullmatch(text.strip())
        seconds = int(found[1]) * _UNITS[found[2]] if found else 0
        if seconds < _MIN_SECONDS:
            raise InvalidInputError(
                f"--every {text!r}: must be at least a minute, written as 30m, 6h or 7d", field="--every"
            )
        return cls(interval_seconds=seconds)

    def to_api(self) -> Any:
        """As the API takes it."""
        if self.cron:
            return kfp_server_api.V2beta1Trigger(cron_schedule=kfp_server_api.V2beta1CronSchedule(cron=self.cron))
        return kfp_server_api.V2beta1Trigger(
            periodic_schedule=kfp_server_api.V2beta1PeriodicSchedule(interval_second=str(self.interval_seconds))
        )

    def __str__(self) -> str:
        return self.cron or f"every {self.interval_seconds} s"


@dataclass(frozen=True)
class Schedule:
    """A schedule as the API knows it."""

    schedule_id: str
    name: str
    when: Trigger
    active: bool
    error: str = ""


@dataclass(frozen=True)
class SchedulePage:
    """Some schedules, the latest first; `next_page` asks for those after them, empty after the last."""

    schedules: tuple[Schedule, ...]
    next_page: str = ""


def schedule_of(found: Any) -> Schedule:
    """The schedule that a V2beta1RecurringRun tells of."""
    cron = found.trigger.cron_schedule if found.trigger else None
    periodic = found.trigger.periodic_schedule if found.trigger else None
    return Schedule(
        schedule_id=str(found.recurring_run_id or ""),
        name=str(found.display_name or ""),
        when=Trigger(
            cron=str((cron and cron.cron) or ""), interval_seconds=int((periodic and periodic.interval_second) or 0)
        ),
        active=found.status == kfp_server_api.V2beta1RecurringRunStatus.ENABLED,
        error=str((found.error and found.error.message) or ""),
    )
