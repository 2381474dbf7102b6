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
from rlaif_pipelines.training.plots import write_plots

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
        "tensorboard",
        "metrics_address",
    ),
    True,
) | {"labels": {"__all__": {"path"}}}
_LINEAGE = {
    "judge_digest": "judge digest",
    "constitution": "constitution",
    "constitution_sha256": "constitution sha256",
}
_WAYS_TO_RUN = {
    "device",
    "zero_stage",
    "offload",
    "gradient_checkpointing",
    "micro_batch_tokens",
    "share_prefixes",
    "attention",
    "compile",
    "num_threads",
}
"""Settings of the engine that change how fast and where it computes; weights agree but for rounding."""
_FORMAT = 2
"""Of checkpoints; those of another are not gone on from."""


def file_sha256(path: Path) -> str:
    """Digest of a file's bytes, lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity_of(settings: TrainingSettings, *, base: Base, inputs: Mapping[str, Path]) -> str:
    """Digest of all that is learnt from, and of nothing that says only where things are and how they are computed."""
    values = settings.model_dump(mode="json", exclude=dict.fromkeys(inputs, True) | _WHEREABOUTS)
    values["engine"] = {name: value for name, value in values["engine"].items() if name not in _WAYS_TO_RUN}
    return digest({"format": _FORMAT, "settings": values, "base": base.digest, "inputs": _digests(inputs)})


def judged_by(labels: Mapping[str, Path]) -> dict[str, str]:
    """Who judged the labels by what, as far as their rows say so, for a model card."""
    told: dict[str, set[str]] = {name: set() for name in _LINEAGE}
    for path in labels.values():
        for text in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(text) if text.strip() else {}
            for name, values in told.items():
                values.update([str(row[name])] if row.get(name) else [])
    return {shown: ", ".join(sorted(told[name])) for name, shown in _LINEAGE.items() if told[name]}


def card_settings(settings: TrainingSettings) -> dict[str, Any]:
    """What a model card tells of the settings: all that shape the weights and are not the default."""
    return settings.model_dump(mode="json", exclude_defaults=True, exclude=_WHEREABOUTS)


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
    """Writes `out`/training.json, whole; its being there says that the training is done. Draws its figures first."""
    if settings.metrics_path is None:  # else they are of a run, whose report draws them
        write_plots(out / "plots", metrics=settings.metrics_file)
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
