"""What job settings refuse, and that they change where a training runs but not what it is."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from rlaif_pipelines.jobs.settings import JobSettings
from rlaif_pipelines.settings import RunSettings, make_settings

POD: dict[str, Any] = {"image": "registry.example/trainer:1", "volume_claim": "runs"}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"num_nodes": 2}, "num_nodes above 1 needs a cluster"),
        ({"launcher": "trainjob"}, "needs pod.image and pod.volume_claim"),
        ({"launcher": "indexed_job", "pod": {"image": "a"}}, "needs pod.volume_claim"),
        (
            {"launcher": "trainjob", "pod": POD | {"priority_class": "high"}},
            "training.runtime.priorityClassName in the chart",
        ),
        ({"pod": {"memory": "8 GB"}}, "pod.memory"),
        ({"pod": {"mount_path": "rlaif"}}, "must be an absolute path below /"),
        ({"pod": {"mount_path": "/a/../b"}}, "must be an absolute path below /"),
        ({"pod": {"environment": {"PET_NNODES": "3"}}}, "PET_NNODES is set for the job"),
        ({"pod": {"environment": {"A-B": "3"}}}, "pod.environment.A-B"),
        ({"pod": {"secret_environment": {"TOKEN": "no-key"}}}, "pod.secret_environment.TOKEN"),
        ({"pod": {"node_selector": {"pool": "a b"}}}, "pod.node_selector.pool"),
        ({"pod": {"tolerations": [{"effect": "NoGo"}]}}, "pod.tolerations.0.effect"),
        ({"queue": "not/a/name"}, "queue"),
    ],
)
def test_wrong_settings_name_the_field(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        JobSettings.model_validate(values)
    assert sentence in str(caught.value)


def test_a_process_runs_for_each_gpu_unless_told_otherwise() -> None:
    assert JobSettings().num_processes == 1
    assert JobSettings.model_validate({"pod": {"gpus": 8}}).num_processes == 8
    assert JobSettings.model_validate({"pod": {"gpus": 8}, "processes_per_node": 2}).num_processes == 2


def test_where_a_training_runs_does_not_rename_its_policy() -> None:
    here = RunSettings()
    there = make_settings({"jobs": {"launcher": "indexed_job", "num_nodes": 2, "pod": POD}})
    assert there.policy_name == here.policy_name
