"""The verbs of the training entry point, one frozen settings model each; unknown keys are refused."""

from __future__ import annotations

from typing import Literal

from rlaif_pipelines.training.config.common import TrainingSettings
from rlaif_pipelines.training.config.dpo import DpoTraining
from rlaif_pipelines.training.config.reward import RewardTraining
from rlaif_pipelines.training.config.rl import RlTraining
from rlaif_pipelines.training.config.sft import SftTraining

Verb = Literal["sft", "reward", "dpo", "rl"]

SETTINGS: dict[str, type[TrainingSettings]] = {
    "sft": SftTraining,
    "reward": RewardTraining,
    "dpo": DpoTraining,
    "rl": RlTraining,
}
"""The model of each verb."""
