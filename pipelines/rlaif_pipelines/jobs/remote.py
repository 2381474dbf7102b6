"""A training as a job of a cluster: attempts, each a job of its own, until one ends it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlaif_pipelines.jobs.attempt import AttemptRun, remove, removed_afterwards
from rlaif_pipelines.jobs.cluster import Cluster, ClusterError
from rlaif_pipelines.jobs.launchers import LAUNCHERS, Launcher
from rlaif_pipelines.jobs.manifests import Attempt, owner_reference
from rlaif_pipelines.jobs.names import TRAINING_LABEL, attempt_name, labels, training_digest
from rlaif_pipelines.jobs.pod_log import RunLog
from rlaif_pipelines.jobs.pod_states import Failure
from rlaif_pipelines.jobs.settings import JobSettings
from rlaif_pipelines.jobs.spec import JobResult, JobSpec

_REMOVAL_SECONDS = 90.0


def run_remote(
    spec: JobSpec, settings: JobSettings, *, cluster: Cluster, on_line: Callable[[str], None] | None = None
) -> JobResult:
    """Runs the training to its end; lost nodes and pods cost an attempt, after which it goes on from its checkpoint.

    All ranks start anew together: a rendezvous is made once, by all, and a single rank that comes back disturbs it.
    """
    assert settings.launcher != "local"
    launcher = LAUNCHERS[settings.launcher]
    began, log = time.perf_counter(), RunLog(spec.log_path)
    failure: Failure | None = None
    number = 0
    try:
        _remove_leftovers(cluster, launcher, spec.config_path, settings, note=log.note)
        for number in range(1, settings.attempts + 1):
            failure = _attempt(number, spec, settings, launcher=launcher, cluster=cluster, log=log, on_line=on_line)
            if failure is None or not failure.retry or number == settings.attempts:
                break
            pause = settings.retry_pause_seconds * 2 ** (number - 1)
            log.note(f"attempt {number + 1} of {settings.attempts} begins in {pause:g} s")
            time.sleep(pause)
    except ClusterError as error:
        failure = Failure("UNREACHABLE" if error.reason == "UNREACHABLE" else "REFUSED", error.message)
    seconds = time.perf_counter() - began
    if failure is None:
        return JobResult(0, "", seconds, spec.log_path, reason="DONE", attempts=number)
    return JobResult(
        failure.exit_code, failure.sentence, seconds, spec.log_path, reason=failure.reason, attempts=max(number, 1)
    )


def _attempt(
    number: int,
    spec: JobSpec,
    settings: JobSettings,
    *,
    launcher: Launcher,
    cluster: Cluster,
    log: RunLog,
    on_line: Callable[[str], None] | None,
) -> Failure | None:
    attempt = Attempt(
        spec,
        settings,
        name=attempt_name(spec, settings),
        labels=labels(spec, settings, attempt=number),
        owner=_owner(cluster),
    )
    log.note(f"attempt {number}: {launcher.kind.plural}/{attempt.name} in namespace {cluster.namespace}")
    seconds = settings.grace_seconds + _REMOVAL_SECONDS
    with removed_afterwards(cluster, launcher, attempt.name, seconds=seconds, log=log) as left:
        failure = AttemptRun(attempt, launcher=launcher, cluster=cluster, log=log, on_line=on_line).run()
        if failure is not None:
            log.note(f"attempt {number} failed: {failure.sentence}")
    if failure is not None and failure.retry and left and settings.num_nodes == 1:
        # Of several, one without its peers waits for ever and writes nothing.
        return Failure(
            failure.reason,
            f"{failure.sentence}; pod {left[0]} has not ended since, and two trainings would write into one folder: "
            "remove it or its node, then start again",
        )
    return failure


def release_remote(run_root: Path, settings: JobSettings, *, cluster: Cluster) -> list[str]:
    """Removes the jobs that a run's trainings left behind, and says which; whoever started them is gone."""
    assert settings.launcher != "local"
    launcher = LAUNCHERS[settings.launcher]
    removed: list[str] = []
    for config_path in sorted((run_root / "stages").glob("*/config.json")):
        removed += _remove_leftovers(cluster, launcher, config_path, settings)
    return removed


def _remove_leftovers(
    cluster: Cluster,
    launcher: Launcher,
    config_path: Path,
    settings: JobSettings,
    *,
    note: Callable[[str], None] = lambda sentence: None,
) -> list[str]:
    """Removes jobs of this training whose starter was killed: two would write into one folder. Says which."""
    try:
        found = cluster.find(launcher.kind, labels=f"{TRAINING_LABEL}={training_digest(config_path, settings)}").items
    except ClusterError as error:
        if error.status == 404:  # creating one will say so better
            return []
        raise
    removed = []
    for job in found:
        name = f"{launcher.kind.plural}/{job['metadata']['name']}"
        note(f"{name} of an earlier start is removed")
        left = remove(cluster, launcher, job["metadata"]["name"], seconds=_REMOVAL_SECONDS)
        if left:
            raise ClusterError(
                f"pod {left[0]} of an earlier start has not ended, and two trainings would write into one folder: "
                "remove it or its node, then start again",
                status=409,
            )
        removed.append(name)
    return removed


def _owner(cluster: Cluster) -> dict[str, Any] | None:
    """The pod that this runs in, as Kubeflow Pipelines or a manifest's downward API name it; None elsewhere.

    Of another namespace it must not be: what has an owner that is not there is removed at once.
    """
    for prefix in ("KFP_", ""):
        name, uid = (os.environ.get(f"{prefix}POD_{part}") for part in ("NAME", "UID"))
        if name and uid and cluster.own_namespace == cluster.namespace:
            return owner_reference(api_version="v1", kind="Pod", name=name, uid=uid)
    return None
