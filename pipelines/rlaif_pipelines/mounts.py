"""What is mounted into the tasks on a cluster, and handed on to the trainings that they start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from rlaif.core.errors import SettingsError
from rlaif.runtime.settings import TOKEN_VARIABLE

VOLUME_PATH: Final = "/rlaif"
"""Where the volume with the run folders is mounted."""
TLS_PATH: Final = "/etc/rlaif/tls"
"""Where certificates of the tasks lie; `ca.crt` is what they trust."""
STORAGE_VARIABLES: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL",
    "AWS_DEFAULT_REGION",
)
"""Keys of the Secret of object storage, each the name of its variable."""


def default_image() -> str:
    """Image of the tasks, of this version."""
    return f"ghcr.io/kube-rlaif/rlaif-pipelines:{metadata.version('kube-rlaif')}"


def trainer_image(image: str, *, with_gpus: bool) -> str:
    """The trainer's image that was built with that of the tasks."""
    if "rlaif-pipelines:" not in image or "@" in image:
        raise SettingsError(
            f"the trainings' image does not follow from the tasks' {image!r}: give trainer_image", field="trainer_image"
        )
    return image.replace("rlaif-pipelines:", "rlaif-trainer:") + ("-gpu" if with_gpus else "")


def hand_on_secrets(settings: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Give trainings in pods of their own the Secrets that this task has, unless the settings name others."""
    jobs = settings.get("jobs") or {}
    if jobs.get("launcher", "local") == "local":
        return
    pod = jobs["pod"]
    variables = pod.setdefault("secret_environment", {})
    # A Secret that may be missing is there when its variable is.
    if given["token_secret"] and os.environ.get(TOKEN_VARIABLE):
        variables.setdefault(TOKEN_VARIABLE, f"{given['token_secret']}/token")
    for name in STORAGE_VARIABLES:
        if given["storage_secret"] and os.environ.get(name):
            variables.setdefault(name, f"{given['storage_secret']}/{name}")
    if given["tls_secret"] and Path(TLS_PATH, "ca.crt").is_file():
        pod.setdefault("secret_files", {}).setdefault(TLS_PATH, given["tls_secret"])


def complete_services(services: Mapping[str, Any]) -> dict[str, Any]:
    """The addresses, with the certificates to trust where tasks have some."""
    trusted = Path(TLS_PATH, "ca.crt")
    return {"tls_ca_path": str(trusted), **services} if trusted.is_file() else dict(services)
