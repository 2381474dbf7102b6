"""Runs and their tasks as values, made from what the API tells of a run.

Kubeflow Pipelines 2 tells one entry a node of the Argo workflow: a task `judge` is the nodes `judge-driver`, `judge`
and, below that, `executor`, with `executor(0)`, `executor(1)`, … below it where the task may be tried again; groups and
loops are nodes too. Here they are put together again.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

PENDING: Final = "PENDING"
RUNNING: Final = "RUNNING"
SUCCEEDED: Final = "SUCCEEDED"
SKIPPED: Final = "SKIPPED"
FAILED: Final = "FAILED"
CANCELED: Final = "CANCELED"
STATES: Final = (PENDING, RUNNING, SUCCEEDED, SKIPPED, FAILED, "CANCELING", CANCELED, "PAUSED")
ENDED: Final = frozenset({SUCCEEDED, SKIPPED, FAILED, CANCELED})

_DRIVER: Final = "-driver"
_EXECUTOR: Final = re.compile(r"executor(\(\d+\))?")
_SCAFFOLD: Final = re.compile(r"root|iteration.*|(exit-hook|exit-handler|condition|condition-branches|for-loop)-.*")
_GATE: Final = re.compile(r"(gate|revisions)-passed.*")
_POD_TEMPLATES: Final = ("system-container-impl", "retry-system-container-impl")
_WORST_FIRST: Final = (FAILED, "CANCELING", CANCELED, RUNNING, "PAUSED", PENDING)
_MAX_DEPTH: Final = 8


@dataclass(frozen=True)
class Task:
    """A task of the pipeline; the shards of one count together."""

    name: str
    state: str
    started: datetime | None = None
    ended: datetime | None = None
    error: str = ""
    pods: tuple[str, ...] = ()
    """Names its pods may have, the last attempt's first."""
    cached: bool = False
    """Whether its result was that of an earlier run."""
    num_parts: int = 1
    num_done: int = 0

    def seconds(self, now: datetime) -> float | None:
        """How long it ran, or has been running."""
        if self.started is None:
            return None
        return max(0.0, ((self.ended or now) - self.started).total_seconds())


@dataclass(frozen=True)
class Run:
    """A run as the API knows it; tasks in the order in which they began."""

    run_id: str
    name: str
    state: str
    link: str
    experiment_id: str = ""
    pipeline_id: str = ""
    pipeline_version_id: str = ""
    created: datetime | None = None
    finished: datetime | None = None
    error: str = ""
    tasks: tuple[Task, ...] = ()
    closed_gates: tuple[str, ...] = ()
    """Names of the gates that let nothing through."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ENDED

    @property
    def failed_task(self) -> Task | None:
        """The first task that failed."""
        return next((task for task in self.tasks if task.state == FAILED), None)


def run_of(found: Any, *, link: str, titles: Mapping[str, str]) -> Run:
    """The run that a V2beta1Run tells of; `titles` are the names that groups of tasks have in the pipeline."""
    reference = found.pipeline_version_reference
    details = (found.run_details.task_details if found.run_details else None) or []
    return Run(
        run_id=str(found.run_id or ""),
        name=str(found.display_name or ""),
        state=_state(found.state),
        link=link,
        experiment_id=str(found.experiment_id or ""),
        pipeline_id=str((reference and reference.pipeline_id) or ""),
        pipeline_version_id=str((reference and reference.pipeline_version_id) or ""),
        created=_time(found.created_at),
        finished=_time(found.finished_at),
        error=_error(found),
        tasks=tuple(_tasks(details)),
        closed_gates=tuple(
            titles[detail.display_name]
            for detail in details
            if _state(detail.state) == SKIPPED and _GATE.fullmatch(titles.get(detail.display_name) or "")
        ),
    )


def _tasks(details: Iterable[Any]) -> Iterator[Task]:
    nodes = _Nodes(details)
    parts: dict[str, list[Task]] = defaultdict(list)
    for task in nodes.tasks():
        parts[task.name].append(task)
    whole = (_together(each) for each in parts.values())
    yield from sorted(whole, key=lambda task: (task.started is None, task.started.timestamp() if task.started else 0))


def _together(parts: list[Task]) -> Task:
    """One task from its shards."""
    states = {task.state for task in parts}
    state = next((state for state in _WORST_FIRST if state in states), SUCCEEDED if SUCCEEDED in states else SKIPPED)
    starts = [task.started for task in parts if task.started]
    ends = [task.ended for task in parts if task.ended]
    failed = [task for task in parts if task.state == FAILED]
    return Task(
        name=parts[0].name,
        state=state,
        started=min(starts, default=None),
        ended=max(ends, default=None) if state in ENDED else None,
        error=next((task.error for task in [*failed, *parts] if task.error), ""),
        pods=tuple(pod for task in [*failed, *(task for task in parts if task not in failed)] for pod in task.pods),
        cached=all(task.cached for task in parts),
        num_parts=len(parts),
        num_done=sum(task.state in (SUCCEEDED, SKIPPED) for task in parts),
    )


class _Nodes:
    """The nodes of one workflow, found by the hash that ends their ids and their pods' names."""

    def __init__(self, details: Iterable[Any]) -> None:
        self._details = [detail for detail in details if detail.display_name]
        self._by_hash = {_hash(detail.pod_name): detail for detail in self._details if detail.pod_name}
        # Ids begin with the name of the workflow, which is a node too.
        self._workflows = {node_id.rpartition("-")[0] for detail in self._details for node_id in _child_ids(detail)}
        self._broken = {
            detail.display_name.removesuffix(_DRIVER): detail
            for detail in self._details
            if detail.display_name.endswith(_DRIVER) and _state(detail.state) == FAILED
        }

    def tasks(self) -> Iterator[Task]:
        told = set()
        for detail in self._details:
            name = detail.display_name
            if not name.endswith(_DRIVER) and not self._is_scaffold(name):
                told.add(name)
                yield self._broken_task(name) if name in self._broken else self._task(detail)
        for name in self._broken:  # a driver that fails may leave its task unborn
            if name not in told and not self._is_scaffold(name):
                yield self._broken_task(name)

    def _is_scaffold(self, name: str) -> bool:
        return bool(_SCAFFOLD.fullmatch(name) or _EXECUTOR.fullmatch(name) or name in self._workflows)

    def _broken_task(self, name: str) -> Task:
        """A task whose driver failed, and which therefore never ran."""
        driver = self._broken[name]
        pods = (str(driver.pod_name),) if driver.pod_name else ()
        return Task(name, FAILED, _time(driver.start_time), _time(driver.end_time), _error(driver), pods)

    def _task(self, detail: Any) -> Task:
        executors = [node for node in self._children(detail) if _EXECUTOR.fullmatch(node.display_name or "")]
        state = _state(detail.state)
        return Task(
            name=detail.display_name,
            state=state,
            started=_time(detail.start_time),
            ended=_time(detail.end_time) if state in ENDED else None,
            error=_error(detail),
            pods=tuple(dict.fromkeys(self._pods(detail, depth=0))),
            cached=state == SUCCEEDED and bool(executors) and all(_state(n.state) == SKIPPED for n in executors),
            num_done=int(state in (SUCCEEDED, SKIPPED)),
        )

    def _children(self, detail: Any) -> list[Any]:
        return [node for node_id in _child_ids(detail) if (node := self._by_hash.get(_hash(node_id))) is not None]

    def _pods(self, detail: Any, *, depth: int) -> Iterator[str]:
        """Pods of the task, the last attempt's first; where the API does not name them, what they may be called."""
        for node_id in reversed(_child_ids(detail)):
            node = self._by_hash.get(_hash(node_id))
            if node is None:
                workflow, _, number = node_id.rpartition("-")
                yield from (f"{workflow}-{template}-{number}" for template in _POD_TEMPLATES)
                yield node_id
            elif _EXECUTOR.fullmatch(node.display_name or ""):
                if _child_ids(node) and depth < _MAX_DEPTH:
                    yield from self._pods(node, depth=depth + 1)
                else:
                    yield node.pod_name


def _child_ids(detail: Any) -> list[str]:
    return [str(child.pod_name) for child in detail.child_tasks or [] if child.pod_name]


def _hash(name: str) -> str:
    return name.rpartition("-")[2]


def _state(state: Any) -> str:
    return str(state) if state in STATES else PENDING


def _time(value: Any) -> datetime | None:
    """The time; None for the years 1 and 1970, which mean not yet."""
    return value if isinstance(value, datetime) and value.year > 1970 else None


def _error(found: Any) -> str:
    """What is said of the failure, by the entry itself or by the last of its states."""
    errors = [found.error, *(status.error for status in reversed(found.state_history or []))]
    return next((str(error.message) for error in errors if error is not None and error.message), "")
