"""training.json: what a training was told, what it read, what it made and how good that is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rlaif.core.canonical import digest
from rlaif.runtime.artifacts import atomic_write_text, folder_digest
from rlaif_pipelines.training.config.common import TrainingSettings
from rlaif_pipelines.training.model import Base

RECORD_NAME = "training.json"
_WHEREABOUTS: dict[str, Any] = dict.fromkeys(
    (
        "out",
        "policy",
        "publish",
        "metrics_path",
        "sampler",
        "rewards",
        "failures",
        "checkpoint_every",
        "keep_checkpoints",
    ),
    True,
) | {"labels": {"__all__": {"path"}}}


def file_sha256(path: Path) -> str:
    """Digest of a file's bytes, lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity_of(settings: TrainingSettings, *, base: Base, inputs: Mapping[str, Path]) -> str:
    """Digest of all that the weights depend on, and of nothing that says only where things are."""
    values = settings.model_dump(mode="json", exclude=dict.fromkeys(inputs, True) | _WHEREABOUTS)
    return digest({"settings": values, "base": base.digest, "inputs": _digests(inputs)})


def write_record(
    out: Path,
    *,
    verb: str,
    settings: TrainingSettings,
    base: Base,
    models: Sequence[Path],
    inputs: Mapping[str, Path],
    results: Mapping[str, Any],
    seconds: float,
) -> None:
    """Writes `out`/training.json, whole; its being there says that the training is done."""
    record = {
        "verb": verb,
        "settings": settings.model_dump(mode="json"),
        "base": {"uri": base.uri, "digest": base.digest},
        "models": [{"uri": str(folder), "digest": folder_digest(folder)} for folder in models],
        "inputs": {name: {"path": str(inputs[name]), "sha256": sha256} for name, sha256 in _digests(inputs).items()},
        "results": results,
        "seconds": round(seconds, 3),
        "libraries": {name: version(name) for name in ("torch", "transformers", "deepspeed")},
    }
    atomic_write_text(out / RECORD_NAME, json.dumps(record, indent=2) + "\n")


def _digests(inputs: Mapping[str, Path]) -> dict[str, str]:
    return {name: file_sha256(path) for name, path in inputs.items()}
