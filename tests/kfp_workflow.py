"""What Kubeflow Pipelines 2 tells of a run: the nodes of its Argo workflow, a driver, a task and an executor each."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import kfp_server_api as kfp

START = datetime(2026, 3, 1, 9, 0, 0, tzinfo=UTC)
NEVER = datetime(1, 1, 1, tzinfo=UTC)
WORKFLOW = "rlaif-x7k2p"


@dataclass(frozen=True)
class Snapshot:
    """A run at one time: its state, and its tasks' states in the order in which they begin."""

    state: str
    tasks: Mapping[str, str]
    error: str = ""
    skipped_groups: Sequence[str] = ()
    cached: Sequence[str] = ()
    shards: Mapping[str, int] = field(default_factory=dict)
    attempts: Mapping[str, int] = field(default_factory=dict)
    failed_drivers: Sequence[str] = ()


DONE = Snapshot("SUCCEEDED", {"prepare": "SUCCEEDED", "load-prompts": "SUCCEEDED", "label": "SUCCEEDED"})


def task_details(snapshot: Snapshot, *, names_pods: bool = True) -> list[Any]:
    """The nodes of the Argo workflow that Kubeflow Pipelines 2 tells of: driver, task and executor of each task."""
    numbers = itertools.count(1001)
    details = [
        _node(WORKFLOW, snapshot.state, pod=WORKFLOW, children=[f"{WORKFLOW}-1"]),
        _node("root", snapshot.state, pod=f"{WORKFLOW}-root-1"),
        _node("root-driver", "SUCCEEDED", pod=f"{WORKFLOW}-system-dag-driver-2"),
    ]
    for group in snapshot.skipped_groups:
        details.append(_node(group, "SKIPPED", pod=f"{WORKFLOW}-comp-{group}-{next(numbers)}"))
    for position, (name, state) in enumerate(snapshot.tasks.items()):
        for _ in range(snapshot.shards.get(name, 1)):
            details += _nodes_of(name, state, snapshot, numbers=numbers, began=START + timedelta(minutes=position))
    if not names_pods:
        for detail in details:
            detail.pod_name = None
    return details


def _nodes_of(name: str, state: str, snapshot: Snapshot, *, numbers: Iterator[int], began: datetime) -> list[Any]:
    """A task's driver, the task, its executor and, where it may be tried again, the attempts below that."""
    driver_pod = f"{WORKFLOW}-system-container-driver-{next(numbers)}"
    whole_pod = f"{WORKFLOW}-system-container-executor-{next(numbers)}"
    if name in snapshot.failed_drivers:
        driver = _node(f"{name}-driver", "FAILED", pod=driver_pod, began=began)
        driver.error = kfp.GoogleRpcStatus(code=2, message="the driver found no such claim")
        return [driver, _node(name, state, pod=whole_pod, began=began)]
    driver = _node(f"{name}-driver", "PENDING" if state == "PENDING" else "SUCCEEDED", pod=driver_pod, began=began)
    if state in ("PENDING", "SKIPPED"):
        return [driver, _node(name, state, pod=whole_pod, began=began)]
    number = next(numbers)
    whole = _node(name, state, pod=whole_pod, began=began, children=[f"{WORKFLOW}-{number}"])
    executor_state = "SKIPPED" if name in snapshot.cached else state
    tries = [next(numbers) for _ in range(snapshot.attempts.get(name, 0))]
    kind = "retry-system-container-impl" if tries else "system-container-impl"
    executor = _node(
        "executor",
        executor_state,
        pod=f"{WORKFLOW}-{kind}-{number}",
        began=began,
        children=[f"{WORKFLOW}-{each}" for each in tries],
    )
    attempts = [
        _node(f"executor({index})", "FAILED", pod=f"{WORKFLOW}-{kind}-{each}", began=began)
        for index, each in enumerate(tries)
    ]
    if attempts:
        attempts[-1].state = state
    return [driver, whole, executor, *attempts]


def _node(name: str, state: str, *, pod: str, began: datetime = START, children: Sequence[str] = ()) -> Any:
    ended = began + timedelta(seconds=42) if state in ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED") else NEVER
    return kfp.V2beta1PipelineTaskDetail(
        task_id=str(uuid.uuid4()),
        display_name=name,
        state=state,
        create_time=began,
        start_time=began if state != "PENDING" else NEVER,
        end_time=ended,
        pod_name=pod,
        child_tasks=[kfp.PipelineTaskDetailChildTask(pod_name=child) for child in children],
    )
