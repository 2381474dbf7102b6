"""The parameters of the pipelines: what the KFP UI asks for, what `rlaif submit --param` takes, and what each sets.

An empty text, 0, {} and [] mean "not given": parameters of KFP have no null. Defaults are those of a cluster with the
chart installed as release `rlaif`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rlaif.core.errors import SettingsError
from rlaif_pipelines.mounts import default_image, trainer_image
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
_MAX_TOKENS: Final = Parameter("max_tokens", int, 0, "Longest completion, tokens.", "sampling.max_tokens")
_SAMPLING: Final = (
    Parameter("num_prompts", int, 0, "Prompts labelled in a round.", "sampling.num_prompts"),
    Parameter("num_completions", int, 0, "Completions of each labelled prompt.", "sampling.num_completions"),
    _MAX_TOKENS,
)
_SHARDS: Final = Parameter("num_shards", int, 0, "Parts in which sampling and judging are worked on.", "num_shards")
_EVALUATOR: Final = Parameter(
    "evaluator", str, "", "Second judge that only evaluates; not the judge that labels.", "evaluator"
)
_SERVED: Final = (
    Parameter("policy_resource", str, "policies/served", "The policy's name at the sampler.", "policy_resource"),
    Parameter("artifact_root", str, "/rlaif/artifacts", "Where the sampler finds what is published.", "artifact_root"),
)
_PROMOTE: Final = Parameter("promote_to", str, "", "Policy that an improvement is given to.", "promote_to")
_TRAINING: Final = (
    Parameter("algorithm", str, "", "grpo or dpo.", "algorithm"),
    Parameter("reward", str, "", "GRPO's reward: judge or model.", "reward"),
    Parameter("human_labels", str, "", "People's labels to learn from too.", "human_labels.path"),
    Parameter("steps", int, 0, "GRPO steps of a round.", "rl.steps"),
    Parameter("launcher", str, "trainjob", "Where trainings run: trainjob, indexed_job or local.", "jobs.launcher"),
    Parameter("trainer_image", str, "", "Image of trainings; empty: rlaif-trainer beside `image`.", "jobs.pod.image"),
    Parameter("num_nodes", int, 0, "Machines that train together.", "jobs.num_nodes"),
    Parameter("gpu_type", str, "", "Resource name of a training's GPUs: nvidia.com/gpu.", "jobs.pod.gpu_resource"),
    Parameter("gpu_count", int, 0, "GPUs of each machine that trains.", "jobs.pod.gpus"),
    Parameter("gpu_node_selector", dict, {}, "Labels of nodes for trainings.", "jobs.pod.node_selector"),
    Parameter("gpu_tolerations", list, [], "Tolerations of trainings' pods.", "jobs.pod.tolerations"),
)
_SEED: Final = Parameter("seed", int, 0, "Every random choice follows from it.", "seed")
_JUDGING_SERVICES: Final = (
    Parameter("judge_address", str, "rlaif-judge:50051", "Judge that labels, host:port.", "services.judge"),
    Parameter("ledger_address", str, "rlaif-oversight:50051", "Ledger, host:port.", "services.ledger"),
)
_LABELLING_SERVICES: Final = (
    Parameter("sampler_address", str, "rlaif-sampler:50051", "Sampler, host:port.", "services.sampler"),
    *_JUDGING_SERVICES,
)
_REWARD_ADDRESS: Final = Parameter(
    "reward_address", str, "rlaif-reward:50051", "Reward service, host:port.", "services.reward"
)
_EVALUATOR_ADDRESS: Final = Parameter(
    "evaluator_address", str, "", "Judge that only evaluates, host:port.", "services.evaluator"
)
_OTHER: Final = (
    Parameter("settings", dict, {}, "Any other settings of the run, nested as in run.json."),
    Parameter("services", dict, {}, "What else concerns the services: timeout_seconds, tls_ca_path, …"),
)
VOLUME_CLAIM: Final = Parameter(
    "volume_claim", str, "rlaif-runs", "PersistentVolumeClaim mounted at /rlaif, ReadWriteMany."
)
PLACEMENT: Final = (
    Parameter("image", str, "", "Image of every task."),
    VOLUME_CLAIM,
    Parameter("token_secret", str, "rlaif-token", "Secret with `token`, shown to the services; may be missing."),
    Parameter("tls_secret", str, "rlaif-tls", "Secret mounted at /etc/rlaif/tls, with `ca.crt`; may be missing."),
    Parameter("hub_secret", str, "rlaif-hub", "Secret with `token` of the Hugging Face hub; may be missing."),
    Parameter("storage_secret", str, "rlaif-storage", "Secret with AWS_… keys of object storage; may be missing."),
    Parameter("node_selector", dict, {}, "Labels of nodes for the tasks."),
    Parameter("tolerations", list, [], "Tolerations of the tasks' pods."),
)
"""Where tasks run and what they are given; only as far as trainings need it too is it a setting of the run."""

RUN_PARAMETERS: Final[Mapping[PipelineName, Sequence[Parameter]]] = {
    "rlaif": (
        RUN_ROOT,
        _PROMPTS,
        _POLICY,
        *_JUDGE,
        _EVALUATOR,
        *_TRAINING,
        *_SAMPLING,
        _SHARDS,
        _SEED,
        *_SERVED,
        _PROMOTE,
        *_LABELLING_SERVICES,
        _REWARD_ADDRESS,
        _EVALUATOR_ADDRESS,
        *_OTHER,
    ),
    "label-only": (
        RUN_ROOT,
        _PROMPTS,
        _POLICY,
        *_JUDGE,
        *_SAMPLING,
        _SHARDS,
        _SEED,
        *_SERVED,
        *_LABELLING_SERVICES,
        *_OTHER,
    ),
    "evaluate-only": (
        RUN_ROOT,
        Parameter("candidate", str, None, "Model to evaluate: a folder, a URI or a hub id.", "candidate"),
        _PROMPTS,
        _POLICY,
        *_JUDGE,
        _EVALUATOR,
        _MAX_TOKENS,
        _SEED,
        *_SERVED,
        _PROMOTE,
        *_LABELLING_SERVICES,
        _EVALUATOR_ADDRESS,
        *_OTHER,
    ),
    "judge-benchmark": (
        RUN_ROOT,
        Parameter("pairs", str, None, "Labelled pairs, in any form `rlaif labels import` takes.", "pairs.path"),
        *_JUDGE,
        _SHARDS,
        *_JUDGING_SERVICES,
        *_OTHER,
    ),
}
"""What each pipeline asks for, placement aside."""


def parameters_of(pipeline: PipelineName) -> tuple[Parameter, ...]:
    """All parameters of a pipeline, in the order in which they are shown."""
    return (*RUN_PARAMETERS[pipeline], *PLACEMENT)


def neutral(pipeline: PipelineName) -> dict[str, Any]:
    """Values that give nothing, for every parameter that has a default."""
    return {parameter.name: parameter.kind() for parameter in parameters_of(pipeline) if not parameter.required}


def defaults(pipeline: PipelineName) -> dict[str, Any]:
    """What a run that gives nothing is given on a cluster."""
    return {parameter.name: parameter.default for parameter in parameters_of(pipeline) if not parameter.required}


def required(pipeline: PipelineName, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the parameters without a default, as settings have them; the run's folder aside."""
    found = {}
    for parameter in parameters_of(pipeline):
        if parameter.required and parameter.setting:
            path = parameter.setting.split(".")
            found[parameter.name] = functools.reduce(lambda place, key: place[key], path, settings)
    return found


def settings_from(given: Mapping[str, Any]) -> dict[str, Any]:
    """RunSettings as plain values: `settings` of the parameters, and what the others set.

    `settings` go before a parameter that has its default, since nobody can tell whether it was given. SettingsError
    where one that was given says something else.
    """
    settings = _filled(given, under="settings")
    _complete_pods(settings, given)
    return settings


def services_from(given: Mapping[str, Any]) -> dict[str, Any]:
    """ServiceAddresses as plain values, likewise."""
    return _filled(given, under="services")


def _filled(given: Mapping[str, Any], *, under: str) -> dict[str, Any]:
    """The values of the parameter `under`, with those that other parameters set among them."""
    values = _copied(given.get(under) or {})
    for parameter in _setting_parameters():
        value, of_services = given.get(parameter.name), parameter.setting.startswith("services.")
        if not value or of_services != (under == "services"):
            continue
        path = parameter.setting.removeprefix("services.")
        *parents, last = path.split(".")
        place = values
        for parent in parents:
            place = _group(place, parent, name=f"{under}.{parent}")
        known = place.setdefault(last, value)
        if known != value and value != parameter.default:
            raise SettingsError(
                f"{parameter.name} = {value!r}, but {under}.{path} = {known!r}: give one of them", field=parameter.name
            )
    return values


def _complete_pods(settings: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Trainings in pods of their own get the tasks' volume, and the trainer's image of the tasks' version."""
    jobs = settings.get("jobs") or {}
    if not isinstance(jobs, Mapping) or jobs.get("launcher", "local") == "local":
        return
    pod = _group(settings["jobs"], "pod", name="settings.jobs.pod")
    pod.setdefault("volume_claim", given.get("volume_claim") or VOLUME_CLAIM.default)
    if not pod.get("image"):
        pod["image"] = trainer_image(given.get("image") or default_image(), with_gpus=bool(pod.get("gpus")))


def _setting_parameters() -> Iterator[Parameter]:
    seen = {parameter.name: parameter for group in RUN_PARAMETERS.values() for parameter in group}
    return (parameter for parameter in seen.values() if parameter.setting)


def _group(place: dict[str, Any], key: str, *, name: str) -> dict[str, Any]:
    """The settings under that key, none where it is new."""
    group = place.setdefault(key, {})
    if not isinstance(group, dict):
        raise SettingsError(f"{name} = {group!r}: must hold settings, such as {{name: value}}", field=name)
    return group


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without nulls, which parameters of KFP do not have: what is null was not given."""
    return {
        key: _copied(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }
