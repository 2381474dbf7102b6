"""What trainings on labelled pairs are told: which labels, at which weights, in which portions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from rlaif.runtime.settings import SettingsModel
from rlaif_pipelines.training.config.common import Fraction, TrainingSettings


class LabelFile(SettingsModel):
    """Labels of one origin."""

    path: Path
    """JSON lines, plain or .gz: labels.jsonl of a run, `rlaif labels export`, or what `rlaif labels import` takes."""
    weight: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """Multiplies the weight of each of its labels."""
    smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of labels taken to be wrong: trains on (1 - s)·p + s·(1 - p). For hard labels; soft ones say it already."""
    source: Literal["ai", "human"] = "ai"
    """Who labelled, for rows that say neither `source` nor `annotator`."""


def _as_files(value: Any) -> Any:
    values = [value] if isinstance(value, str | Path | dict | LabelFile) else value
    if not isinstance(values, list | tuple):
        return value
    return [{"path": each} if isinstance(each, str | Path) else each for each in values]


LabelFiles = Annotated[tuple[LabelFile, ...], BeforeValidator(_as_files), Field(min_length=1)]
"""A path, or a list of paths and of {path, weight, smoothing, source}."""


class PairTraining(TrainingSettings):
    """What reward models and preference optimisation share."""

    policy: str = Field(min_length=1)
    """Folder of the causal language model to start from; preference optimisation takes it as its reference too."""
    labels: LabelFiles
    """Files of labels; several are mixed, each with its weight."""
    num_epochs: int = Field(default=1, ge=1)
    """Passes over the labels."""
    batch_pairs: int = Field(default=32, ge=1)
    """Pairs of one optimiser step."""
    held_out_fraction: Fraction = 0.1
    """Share of the prompts whose pairs only measure."""
    allow_one_class: bool = False
    """Train also on a file whose labels all prefer the first response, or all the second."""
