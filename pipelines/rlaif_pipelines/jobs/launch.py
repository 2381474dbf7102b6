"""One way to run a training, wherever the settings say: a process here, a TrainJob, an Indexed Job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rlaif_pipelines.jobs.settings import JobSettings
from rlaif_pipelines.jobs.spec import JobResult, JobSpec


def launch(spec: JobSpec, settings: JobSettings, *, on_line: Callable[[str], None] | None = None) -> JobResult:
    """Runs the job to its end and says how it ended; `on_line` gets each line of its output as it comes.

    Nothing of it is left when this call ends, also by an exception, Ctrl-C or SIGTERM turned into SystemExit.
    """
    if not settings.on_cluster:
        from rlaif_pipelines.jobs.local import run_job

        return run_job(spec, timeout_seconds=settings.timeout_seconds, on_line=on_line)
    from rlaif_pipelines.jobs.cluster import Cluster
    from rlaif_pipelines.jobs.remote import run_remote

    cluster = Cluster.connect(namespace=settings.namespace, context=settings.context)
    return run_remote(spec, settings, cluster=cluster, on_line=on_line)


def release(run_root: Path, settings: JobSettings) -> list[str]:
    """Removes what trainings of a run have left where they run, and says what: nothing, unless a starter was killed."""
    if not settings.on_cluster:
        return []
    from rlaif_pipelines.jobs.cluster import Cluster
    from rlaif_pipelines.jobs.remote import release_remote

    cluster = Cluster.connect(namespace=settings.namespace, context=settings.context)
    return release_remote(run_root, settings, cluster=cluster)
