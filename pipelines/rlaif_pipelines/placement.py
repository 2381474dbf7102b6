"""Where the tasks of a pipeline run on a cluster, and what each is given; kfp.local takes no notice of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kfp import kubernetes
from kfp.dsl import pipeline_context

from rlaif_pipelines.mounts import STORAGE_VARIABLES, TLS_PATH, VOLUME_PATH

USER_ID: Final = 65532
"""Who tasks run as, as everything of ours does."""
SECRET_VARIABLES: Final[Mapping[str, Mapping[str, str]]] = {
    "token_secret": {"token": "RLAIF_TOKEN"},
    "hub_secret": {"token": "HF_TOKEN"},
    "storage_secret": {name: name for name in STORAGE_VARIABLES},
}
"""By parameter: the keys of its Secret, and the variables of every task that they become."""


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
        for parameter, variables in SECRET_VARIABLES.items():
            kubernetes.use_secret_as_env(
                task, secret_name=given[parameter], secret_key_to_env=dict(variables), optional=True
            )
        kubernetes.use_secret_as_volume(task, secret_name=given["tls_secret"], mount_path=TLS_PATH, optional=True)
        kubernetes.add_node_selector_json(task, given["node_selector"])
        kubernetes.add_toleration_json(task, given["tolerations"])
