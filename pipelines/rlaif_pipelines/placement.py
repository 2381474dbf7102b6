"""Where the tasks of a pipeline run on a cluster, and what each is given; kfp.local takes no notice of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Final

from kfp import kubernetes
from kfp.dsl import pipeline_context

VOLUME_PATH: Final = "/rlaif"
"""Where the volume with the run folders is mounted."""
TLS_PATH: Final = "/etc/rlaif/tls"
"""Where certificates of the tasks lie."""
USER_ID: Final = 65532
"""Who tasks run as, as everything of ours does."""
SECRET_VARIABLES: Final = (
    "RLAIF_TOKEN",
    "HF_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL",
)
"""Keys of the tasks' Secret, each the name of the variable that it becomes."""


def default_image() -> str:
    """Image of the tasks, of this version."""
    return f"ghcr.io/kube-rlaif/rlaif-pipelines:{metadata.version('kube-rlaif')}"


@dataclass(frozen=True)
class Retries:
    """How often a task that failed is started again; all tasks go on where an earlier attempt stopped."""

    count: int = 2
    pause_seconds: int = 30
    """Wait before the first; it doubles with each further one."""
    max_pause_seconds: int = 600


def place_tasks(given: Mapping[str, Any], *, retries: Retries) -> None:
    """Give every task of the pipeline that is being built its image, volume, Secrets, nodes and retries.

    KFP's cache is off for all of them: it knows names and not contents, and the run folder skips what is finished by
    content, which it checks.
    """
    pipeline = pipeline_context.Pipeline.get_default_pipeline()
    variables = {name: name for name in SECRET_VARIABLES}
    for task in pipeline.tasks.values():
        task.set_caching_options(False)
        if retries.count:
            task.set_retry(
                num_retries=retries.count,
                backoff_duration=f"{retries.pause_seconds}s",
                backoff_factor=2.0,
                backoff_max_duration=f"{retries.max_pause_seconds}s",
            )
        task.set_container_image(given["image"])
        kubernetes.set_security_context(task, run_as_user=USER_ID, run_as_group=USER_ID, run_as_non_root=True)
        kubernetes.mount_pvc(task, pvc_name=given["volume_claim"], mount_path=VOLUME_PATH)
        kubernetes.use_secret_as_env(task, secret_name=given["secret"], secret_key_to_env=variables, optional=True)
        kubernetes.use_secret_as_volume(task, secret_name=given["tls_secret"], mount_path=TLS_PATH, optional=True)
        kubernetes.add_node_selector_json(task, given["node_selector"])
        kubernetes.add_toleration_json(task, given["tolerations"])
