"""Everything a run can be told: which inputs, which models, which route, which sizes.

Two sets of defaults: one suits the embedded world and its million-parameter models on two cores, the other suits other
people's models. Which applies follows from the inputs: without a prompts file the run plays in the playground.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError, model_validator

from rlaif.core.canonical import digest, sha256_hex
from rlaif.core.errors import SettingsError
from rlaif.playground.paths import JUDGE_DIR, POLICY_DIR
from rlaif.runtime.settings import SettingsModel, suggest_key
from rlaif.runtime.store import ArtifactRoot
from rlaif_pipelines.jobs.settings import JobSettings
from rlaif_pipelines.stage_settings import (
    ConstitutionalSettings,
    DpoSettings,
    EvaluationSettings,
    GateSettings,
    HumanLabels,
    JudgingSettings,
    RewardModelSettings,
    RlSettings,
    SamplingSettings,
)
from rlaif_pipelines.training.config.common import EngineSettings
from rlaif_pipelines.training.config.pairs import LabelFile

_CREDENTIALS: Final = re.compile(r"://[^/@]*@")
PLAYGROUND: Final = "playground"
NO_EVALUATOR: Final = "none"

PipelineName = Literal["rlaif", "label-only", "evaluate-only", "judge-benchmark"]
"""The whole loop; labels and the gate's word; a given model against the policy; a judge against given labels."""
PolicyResource = Annotated[str, Field(pattern=r"^policies/[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
ConstitutionalStage = Literal["none", "first", "only"]
"""No constitutional stage, one before the first round, or one and nothing else."""


class ServiceAddresses(SettingsModel):
    """Where the services listen, each `host:port`; a stage that needs one that is not given says so."""

    sampler: str | None = None
    """SamplerService of the policy that is trained."""
    judge: str | None = None
    """JudgeService that labels."""
    reward: str | None = None
    """RewardService."""
    ledger: str | None = None
    """LedgerService (oversight)."""
    evaluator: str | None = None
    """JudgeService of the second judge; another model than `judge`."""
    timeout_seconds: Annotated[float, Field(gt=0.0)] = 120.0
    """Deadline of one call."""
    tls_ca_path: Path | None = None
    """PEM certificates to trust; None speaks plaintext. A bearer token comes from RLAIF_TOKEN."""
    tls_certificate_path: Path | None = None
    """PEM certificate chain that the services ask for."""
    tls_key_path: Path | None = None
    """PEM private key that belongs to it."""


class RunSettings(SettingsModel):
    """What `rlaif run` can be told; `run.json` keeps it."""

    out: Path = Path("runs/latest")
    """Run folder; started again with the same folder, a run continues."""
    pipeline: PipelineName = "rlaif"
    """Which of the pipelines the run goes through."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Every random choice of the run follows from it."""
    prompts: Path | None = None
    """JSONL of prompts; None plays in the playground."""
    constitution: str = PLAYGROUND
    """Path of a YAML file, or the name of a shipped constitution."""
    policy: str = PLAYGROUND
    """Model folder or Hugging Face id of the policy to train; `playground` is the shipped one."""
    judge: str = PLAYGROUND
    """Model folder or Hugging Face id of the judge; `playground` is the shipped one."""
    judge_template: Literal["compact", "standard"] = "compact"
    """Wording of the judge's prompts; the playground's judge knows `compact`."""
    evaluator: str | None = None
    """Model folder, Hugging Face id or `host:port` of a second judge that only evaluates; `none` or None for none."""
    algorithm: Literal["grpo", "dpo", "sft"] = "grpo"
    """How the policy learns; sft is the constitutional stage alone."""
    reward: Literal["judge", "model"] = "judge"
    """Where GRPO's reward comes from: the judge's expected score, or the reward model trained on its labels."""
    rounds: Annotated[int, Field(ge=1, le=16)] = 1
    """Sample, judge, gate and train this many times; each round samples from the policy of the one before."""
    num_shards: Annotated[int, Field(ge=1, le=256)] = 1
    """Parts into which sampling and judging are cut, worked on side by side; the rows are the same for any number."""
    artifact_root: ArtifactRoot | None = None
    """Folder or URI under which the run's models are published; None keeps them in the run folder."""
    policy_resource: PolicyResource | None = None
    """Name of the policy at a sampler that runs already, policies/{name}; None names it after the settings."""
    promote_to: PolicyResource | None = None
    """Policy that gets the trained weights as its next version where they are an improvement; None promotes nothing."""
    candidate: str | None = None
    """Pipeline evaluate-only: model folder, URI or Hugging Face id to hold against the policy."""
    pairs: LabelFile | None = None
    """Pipeline judge-benchmark: pairs that people or rules have labelled, to hold the judge against."""
    held_out_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Share of the user's own prompts kept for evaluation, chosen by digest; rows with a split of their own keep it."""
    sampling: SamplingSettings = SamplingSettings()
    """Completions that the judge labels."""
    judging: JudgingSettings = JudgingSettings()
    """How pairs go to the judge."""
    human_labels: HumanLabels | None = None
    """People's labels that reward models and preference optimisation also learn from."""
    gate: GateSettings = GateSettings()
    """What labels and revisions must hold."""
    constitutional: ConstitutionalSettings = ConstitutionalSettings()
    """Constitutional stage."""
    reward_model: RewardModelSettings = RewardModelSettings()
    """Reward model."""
    rl: RlSettings = RlSettings()
    """GRPO."""
    dpo: DpoSettings = DpoSettings()
    """DPO."""
    engine: EngineSettings = EngineSettings()
    """How DeepSpeed runs the models it trains."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """Held-out evaluation."""
    jobs: JobSettings = JobSettings()
    """Where trainings run."""

    @model_validator(mode="before")
    @classmethod
    def _profile_defaults(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        benchmark = given.get("pipeline") == "judge-benchmark"
        if given.get("pairs" if benchmark else "prompts") is None:
            return _merge(_ROUTE_DEFAULTS.get(str(given.get("reward")), {}), given)
        missing = [name for name in (("judge",) if benchmark else ("policy", "judge")) if given.get(name) is None]
        if missing:
            needed = " and ".join(f"--{name}" for name in missing)
            raise ValueError(
                f"{'pairs' if benchmark else 'prompts'} of your own need {needed}: a model folder or a Hugging Face id "
                f"({PLAYGROUND!r} for the shipped tiny one, to try the plumbing)"
            )
        defaults = dict(_MODEL_DEFAULTS)
        if given["judge"] == PLAYGROUND:
            defaults |= {"judge_template": "compact", "constitution": PLAYGROUND}
        return _merge(defaults, given)

    @model_validator(mode="after")
    def _consistent(self) -> RunSettings:
        if self.evaluator not in (None, NO_EVALUATOR) and self.evaluator == self.judge:
            raise ValueError(
                f"evaluator {self.evaluator!r} is the judge that labels: an evaluation by the judge whose labels "
                "trained the policy is no evidence; name another model, or none"
            )
        if self.rounds > 1 and self.engine.lora is not None:
            raise ValueError(
                "rounds above 1 train all weights: an adapter of a later round would be of a base that no sampler "
                "holds; set rounds to 1, or leave engine.lora out"
            )
        if self.algorithm == "grpo" and self.reward == "model" and not self.reward_model.enabled:
            raise ValueError("reward 'model' needs reward_model.enabled")
        for name, pipeline in (("candidate", "evaluate-only"), ("pairs", "judge-benchmark")):
            if (getattr(self, name) is not None) != (self.pipeline == pipeline):
                raise ValueError(f"{name} and pipeline {pipeline!r} need each other; pipeline is {self.pipeline!r}")
        if self.pipeline == "evaluate-only" and (self.algorithm == "sft" or self.constitutional.enabled):
            raise ValueError("pipeline 'evaluate-only' trains nothing: leave out the constitutional stage")
        if self.algorithm == "sft" and self.rounds > 1:
            raise ValueError("algorithm 'sft' is the constitutional stage alone: it has no rounds to repeat")
        return self

    @property
    def playground(self) -> bool:
        """Whether the prompts are the playground's, so that gold rules apply."""
        return self.prompts is None

    @property
    def asks_evaluator(self) -> bool:
        """Whether the evaluation is the second judge's, if there is one: gold rules go before it."""
        return self.pipeline in ("rlaif", "evaluate-only") and not self.playground

    @property
    def trains_reward_model(self) -> bool:
        """Whether a reward model is trained: as the reward, or as a second opinion that watches."""
        return self.algorithm == "grpo" and self.reward_model.enabled

    @property
    def labels(self) -> bool:
        """Whether the run's rounds label pairs of completions."""
        return self.pipeline in ("rlaif", "label-only") and self.algorithm != "sft"

    @property
    def constitutional_stage(self) -> ConstitutionalStage:
        """Whether there is a constitutional stage, and whether anything comes after it."""
        if self.algorithm == "sft":
            return "only"
        return "first" if self.constitutional.enabled else "none"

    @property
    def route(self) -> Literal["judge", "model", "dpo", "sft"]:
        """What the policy learns from: the judge's score, the reward model, the labels, or its own revised replies."""
        return self.reward if self.algorithm == "grpo" else self.algorithm

    @property
    def branch(self) -> Literal["dpo", "sft", "direct", "with_reward_model"]:
        """Which branch of the pipeline trains."""
        if self.algorithm != "grpo":
            return self.algorithm
        return "with_reward_model" if self.trains_reward_model else "direct"

    @property
    def policy_uri(self) -> str:
        """Folder or hub id of the base policy."""
        return _model_uri(self.policy, shipped=POLICY_DIR)

    @property
    def judge_uri(self) -> str:
        """Folder or hub id of the judge."""
        return _model_uri(self.judge, shipped=JUDGE_DIR)

    @property
    def evaluator_uri(self) -> str | None:
        """Folder, hub id or address of the second judge; None without one."""
        return None if self.evaluator in (None, NO_EVALUATOR) else _model_uri(str(self.evaluator), shipped=JUDGE_DIR)

    @property
    def policy_name(self) -> str:
        """Resource name of the policy this run trains; runs that would train differently have different names."""
        if self.policy_resource is not None:
            return self.policy_resource
        elsewhere = {"out", "pipeline", "artifact_root", "policy_resource", "evaluator", "evaluation", "gate", "rounds"}
        elsewhere |= {"num_shards", "jobs", "promote_to", "pairs"}
        elsewhere |= {"candidate"} if self.candidate is None else set()
        shaping = self.model_dump(mode="json", exclude=elsewhere)
        labels = self.human_labels.path if self.human_labels else None
        named = (self.prompts, Path(self.constitution), labels)
        files = [path for path in named if path is not None and path.is_file()]
        return f"policies/run-{digest([shaping, [sha256_hex(path.read_bytes()) for path in files]])[:12]}"


_ROUTE_DEFAULTS: Final[dict[str, Any]] = {
    "model": {
        "sampling": {"num_prompts": 400, "pairs_per_prompt": 5},
        "reward_model": {"epochs": 4},
        "rl": {"steps": 36, "kl_beta": 0.25, "advantage_epsilon": 0.05},
    }
}
"""Playground sizes where they depend on the reward: a small reward model needs more labels, and is fooled sooner."""

_MODEL_DEFAULTS: Final[dict[str, Any]] = {
    "constitution": "helpful-harmless",
    "judge_template": "standard",
    "sampling": {
        "num_prompts": 512,
        "num_completions": 4,
        "pairs_per_prompt": 2,
        "max_tokens": 256,
        "prompts_per_request": 8,
    },
    "judging": {"pairs_per_request": 16},
    "reward_model": {"epochs": 1, "learning_rate": 1e-5, "batch_size": 32, "principle_loss_weight": 0.0},
    "rl": {
        "steps": 200,
        "prompts_per_step": 16,
        "learning_rate": 1e-6,
        "kl_beta": 0.01,
        "checkpoint_every": 25,
        "guards": {"kl": {"limit": 20.0}},
    },
    "dpo": {"epochs": 1, "learning_rate": 5e-7, "batch_size": 32},
    "constitutional": {"num_prompts": 512, "rounds": 4, "epochs": 1, "learning_rate": 1e-5},
    "evaluation": {"num_other": 240, "max_kl": 20.0},
}


def make_settings(values: Mapping[str, Any]) -> RunSettings:
    """Settings from what was given (None means not given); SettingsError with one sentence a fault."""
    try:
        return RunSettings.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        faults = [_sentence(fault["loc"], fault["msg"], fault.get("input")) for fault in error.errors()]
        field = ".".join(str(part) for part in error.errors()[0]["loc"]) or None
        raise SettingsError("; ".join(faults), field=field) from None


def _sentence(location: tuple[int | str, ...], message: str, value: Any) -> str:
    message = message.removeprefix("Value error, ")
    if not location:
        return message
    name = ".".join(str(part) for part in location)
    if message.startswith("Extra inputs"):
        return f"there is no setting {name!r}; {suggest_key(RunSettings, location)}"
    shown = _CREDENTIALS.sub("://…@", repr(value))
    return f"{name} = {shown}: {message[0].lower()}{message[1:]}"


def _model_uri(name: str, *, shipped: Path) -> str:
    return str(shipped) if name == PLAYGROUND else name


def _merge(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(defaults)
    for key, value in given.items():
        nested = merged.get(key)
        merged[key] = _merge(nested, value) if isinstance(nested, Mapping) and isinstance(value, Mapping) else value
    return merged
