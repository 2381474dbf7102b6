"""Names and labels of a training's objects on a cluster."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Final

from rlaif.core.canonical import sha256_hex
from rlaif_pipelines.jobs.settings import JobSettings
from rlaif_pipelines.jobs.spec import JobSpec

TRAINING_LABEL: Final = "rlaif/training"
"""Which training of which run a job is for, by digest; the same for all its attempts."""
INDEX_ANNOTATION: Final = "batch.kubernetes.io/job-completion-index"
_MAX_SLUG: Final = 18
"""Of a pod of a TrainJob, whose name is the longest, "-node-0-999-abcde" is left: 63 characters in all."""


def training_digest(config_path: Path, settings: JobSettings) -> str:
    """What names a training: on which volume and where its configuration lies, in a run folder of its own.

    Others' runs in the same namespace have the same paths, and volumes of their own.
    """
    return sha256_hex(f"{settings.pod.volume_claim}:{config_path.absolute()}".encode())[:16]


def attempt_name(spec: JobSpec, settings: JobSettings) -> str:
    """A name for one attempt that no other has, at most 39 characters; it begins with a letter, as DNS wants it."""
    slug = re.sub(r"[^a-z0-9]+", "-", spec.name.lower()).strip("-")[:_MAX_SLUG].strip("-")
    return f"rlaif-{slug}-{training_digest(spec.config_path, settings)[:6]}-{secrets.token_hex(3)}"


def labels(spec: JobSpec, settings: JobSettings, *, attempt: int) -> dict[str, str]:
    """Of a job and of its pods."""
    return {
        "app.kubernetes.io/name": "rlaif",
        "app.kubernetes.io/part-of": "rlaif",
        "app.kubernetes.io/component": "training",
        "app.kubernetes.io/managed-by": "rlaif-pipelines",
        "rlaif/stage": _value(spec.name),
        "rlaif/run": _value(_run_folder(spec.config_path)),
        TRAINING_LABEL: training_digest(spec.config_path, settings),
        "rlaif/attempt": str(attempt),
    }


def _run_folder(config_path: Path) -> str:
    """Of RUN/stages/STAGE/config.json the name of RUN; of any other path that of its folder."""
    folder = config_path.absolute().parent
    return folder.parents[1].name if folder.parent.name == "stages" else folder.name


def _value(text: str) -> str:
    """The text as far as a label's value may hold it."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[:63].strip("-_.")
