"""The parameters of the pipelines: what the KFP UI asks for, what `rlaif submit --param` takes, and what each sets.

An empty text, 0, {} and [] mean "not given": parameters of KFP have no null.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rlaif.core.errors import SettingsError
from rlaif_pipelines.settings import PipelineName


@dataclass(frozen=True)
class Parameter:
    """One parameter: its type, its default, what it means, and the setting of the run that it gives, if any."""

    name: str
    kind: type
    default: Any
    meaning: str
    setting: str = ""

    @property
    def required(self) -> bool:
        """Whether a run must give it."""
        return self.default is None


RUN_ROOT: Final = Parameter("run_root", str, None, "Run folder, on the volume: /rlaif/runs/<name>. Again: continue.")
_PROMPTS: Final = Parameter("prompts", str, "", "JSON lines of prompts; empty plays in the playground.", "prompts")
_POLICY: Final = Parameter("policy", str, "", "Policy to begin with: a folder, a URI or a hub id.", "policy")
_JUDGE: Final = (
    Parameter("judge", str, "", "The judge's model, as its service has it: a folder, a URI or a hub id.", "judge"),
    Parameter("constitution", str, "", "Constitution: a YAML file or a shipped name.", "constitution"),
)
_SAMPLING: Final = (
    Parameter("num_prompts", int, 0, "Prompts labelled in a round.", "sampling.num_prompts"),
    Parameter("num_completions", int, 0, "Completions of each labelled prompt.", "sampling.num_completions"),
    Parameter("max_tokens", int, 0, "Longest completion, tokens.", "sampling.max_tokens"),
)
_SHARDS: Final = Parameter("num_shards", int, 0, "Parts in which sampling and judging are worked on.", "num_shards")
_EVALUATION: Final = (
    Parameter("evaluator", str, "", "Second judge that only evaluates; not the judge that labels.", "evaluator"),
    Parameter("artifact_root", str, "", "Where models are published: a folder or a URI.", "artifact_root"),
)
_RESOURCE: Final = Parameter(
    "policy_resource", str, "", "Name of the policy at the sampler, policies/<name>.", "policy_resource"
)
_TRAINING: Final = (
    Parameter("algorithm", str, "", "grpo or dpo.", "algorithm"),
    Parameter("reward", str, "", "GRPO's reward: judge or model.", "reward"),
    Parameter("human_labels", str, "", "People's labels to learn from too.", "human_labels.path"),
    Parameter("steps", int, 0, "GRPO steps of a round.", "rl.steps"),
    Parameter("launcher", str, "", "Where trainings run: trainjob, indexed_job or local.", "jobs.launcher"),
    Parameter("trainer_image", str, "", "Image of the trainings' pods.", "jobs.pod.image"),
    Parameter("num_nodes", int, 0, "Machines that train together.", "jobs.num_nodes"),
    Parameter("gpu_type", str, "", "Resource name of a training's GPUs: nvidia.com/gpu.", "jobs.pod.gpu_resource"),
    Parameter("gpu_count", int, 0, "GPUs of each machine that trains.", "jobs.pod.gpus"),
    Parameter("gpu_node_selector", dict, {}, "Labels of nodes for trainings.", "jobs.pod.node_selector"),
    Parameter("gpu_tolerations", list, [], "Tolerations of trainings' pods.", "jobs.pod.tolerations"),
)
_SEED: Final = Parameter("seed", int, 0, "Every random choice follows from it.", "seed")
_OTHER: Final = (
    Parameter("settings", dict, {}, "Any other settings of the run, nested as in run.json."),
    Parameter("services", dict, {}, "Addresses, host:port: sampler, judge, reward, ledger, evaluator."),
)
PLACEMENT: Final = (
    Parameter("image", str, "", "Image of every task."),
    Parameter("volume_claim", str, "rlaif-runs", "PersistentVolumeClaim mounted at /rlaif, ReadWriteMany."),
    Parameter("secret", str, "rlaif-pipelines", "Secret whose keys become variables of every task, where it is there."),
    Parameter("tls_secret", str, "rlaif-client-tls", "Secret mounted at /etc/rlaif/tls, where it is there."),
    Parameter("node_selector", dict, {}, "Labels of nodes for the tasks."),
    Parameter("tolerations", list, [], "Tolerations of the tasks' pods."),
)
"""Where tasks run and what they are given; nothing of it is a setting of the run."""

RUN_PARAMETERS: Final[Mapping[PipelineName, Sequence[Parameter]]] = {
    "rlaif": (
        RUN_ROOT,
        _PROMPTS,
        _POLICY,
        *_JUDGE,
        *_EVALUATION,
        _RESOURCE,
        *_TRAINING,
        *_SAMPLING,
        _SHARDS,
        _SEED,
        *_OTHER,
    ),
    "label-only": (RUN_ROOT, _PROMPTS, _POLICY, *_JUDGE, _RESOURCE, *_SAMPLING, _SHARDS, _SEED, *_OTHER),
}
"""What each pipeline asks for, placement aside."""


def parameters_of(pipeline: PipelineName) -> tuple[Parameter, ...]:
    """All parameters of a pipeline, in the order in which they are shown."""
    return (*RUN_PARAMETERS[pipeline], *PLACEMENT)


def settings_from(given: Mapping[str, Any]) -> dict[str, Any]:
    """RunSettings as plain values: `settings` of the parameters, and what the others set.

    SettingsError where a parameter and `settings` say different things.
    """
    settings = _copied(given.get("settings") or {})
    for parameter in _with_settings():
        value = given.get(parameter.name)
        if not value:
            continue
        *parents, last = parameter.setting.split(".")
        place = settings
        for parent in parents:
            place = place.setdefault(parent, {})
        known = place.setdefault(last, value)
        if known != value:
            raise SettingsError(
                f"{parameter.name} = {value!r}, but settings.{parameter.setting} = {known!r}: give one of them",
                field=parameter.name,
            )
    return settings


def _with_settings() -> Iterator[Parameter]:
    seen = {parameter.name: parameter for group in RUN_PARAMETERS.values() for parameter in group}
    return (parameter for parameter in seen.values() if parameter.setting)


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in values.items()}
