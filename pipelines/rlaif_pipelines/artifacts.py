"""What a stage left, as KFP artifacts: where it lies, what it is, and the figures that the KFP UI draws."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlaif.runtime.store import is_remote
from rlaif_pipelines.context import StageResult


def describe_file(artifact: Any, result: StageResult, file: str) -> None:
    """Point a Dataset at a file of the run folder."""
    artifact.uri = str(result.path(file))
    artifact.metadata.update(_metadata(result) | {"sha256": result.outputs[file]})


def describe_model(artifact: Any, result: StageResult) -> None:
    """Point a Model at the weights that the stage published.

    KFP uploads what an artifact of object storage names to its own bucket, and fails where that is another one: there
    the artifact is a small file that names the model.
    """
    uri = result.values["uri"]
    artifact.metadata.update(_metadata(result) | {"model_uri": uri, "format": "safetensors"})
    if is_remote(uri):
        text = json.dumps({"uri": uri, "digest": result.values.get("digest", "")})
        Path(artifact.path).write_text(f"{text}\n", encoding="utf-8")
    else:
        artifact.uri = uri


def log_figures(metrics: Any, figures: Mapping[str, Any]) -> None:
    """Every finite number among the figures, nested ones by their path: "win_rate.low"."""
    for name, value in _numbers(figures):
        metrics.log_metric(name, value)


def log_classification(metrics: Any, found: Mapping[str, Any] | None) -> None:
    """A Classification as plain values; of none the artifact stays empty."""
    if found is None:
        return
    metrics.log_confusion_matrix(found["classes"], found["confusion"])
    if found["roc"]:
        thresholds, false_positives, true_positives = (list(column) for column in zip(*found["roc"], strict=True))
        metrics.log_roc_curve(false_positives, true_positives, thresholds)


def write_page(artifact: Any, path: Path) -> None:
    """Copy a page to where KFP keeps artifacts: its UI reads nothing else."""
    shutil.copyfile(path, artifact.path)


def _metadata(result: StageResult) -> dict[str, Any]:
    """Plain values only, without nulls: what is nested becomes text, because KFP keeps neither."""
    values = {"stage": result.stage, "inputs_sha256": result.inputs_sha256, **result.values}
    return {
        name: value if isinstance(value, str | int | float) else json.dumps(value, sort_keys=True)
        for name, value in values.items()
        if value is not None
    }


def _numbers(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and math.isfinite(value):
            yield f"{prefix}{name}", float(value)
