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
from rlaif.core.quality import GateLimits
from rlaif.playground.paths import JUDGE_DIR, POLICY_DIR
from rlaif.runtime.settings import SettingsModel, suggest_key
from rlaif.runtime.store import ArtifactRoot
from rlaif_pipelines.jobs.settings import JobSettings
from rlaif_pipelines.training.config.common import EngineSettings
from rlaif_pipelines.training.config.dpo import PreferenceLoss
from rlaif_pipelines.training.config.pairs import LabelFile
from rlaif_pipelines.training.config.rl import AdvantageKind, Aggregation, GuardSettings

_CREDENTIALS: Final = re.compile(r"://[^/@]*@")
PLAYGROUND: Final = "playground"
NO_EVALUATOR: Final = "none"

PipelineName = Literal["rlaif", "label-only", "evaluate-only", "judge-benchmark"]
"""The whole loop; labels and the gate's word; a given model against the policy; a judge against given labels."""
PolicyResource = Annotated[str, Field(pattern=r"^policies/[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
ConstitutionalStage = Literal["none", "first", "only"]
"""No constitutional stage, one before the first round, or one and nothing else."""
Rate = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]


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
    timeout_seconds: PositiveFloat = 120.0
    """Deadline of one call."""
    tls_ca_path: Path | None = None
    """PEM certificates to trust; None speaks plaintext. A bearer token comes from RLAIF_TOKEN."""
    tls_certificate_path: Path | None = None
    """PEM certificate chain that the services ask for."""
    tls_key_path: Path | None = None
    """PEM private key that belongs to it."""


class SamplingSettings(SettingsModel):
    """Completions that the judge labels."""

    num_prompts: Count = 160
    """Training prompts sampled in each round."""
    num_completions: Annotated[int, Field(ge=2, le=64)] = 6
    """Completions of each prompt."""
    pairs_per_prompt: Count = 4
    """Pairs of distinct completions labelled for each prompt, fewer where there are not as many."""
    max_tokens: Count = 72
    """Longest completion; used for training rollouts and evaluation too."""
    temperature: PositiveFloat = 1.0
    """Softmax temperature of labelled completions and of rollouts; evaluation samples at 1."""
    prompts_per_request: Count = 40
    """Prompts in one call to the sampler."""


class JudgingSettings(SettingsModel):
    """How pairs go to the judge."""

    pairs_per_request: Count = 64
    """Pairs in one call; batches are cut by position, so a retry asks exactly what was asked before."""


class HumanLabels(LabelFile):
    """People's labels, mixed with the judge's where something is trained on labels."""

    source: Literal["ai", "human"] = "human"
    """Who labelled, for rows that do not say."""


class GateSettings(SettingsModel):
    """What labels must hold before anything is trained on them."""

    max_abstention_rate: Rate = 0.2
    """Share of pairs without a verdict."""
    max_order_inconsistency: Rate = 0.35
    """Share of verdicts that change when the two responses are shown the other way round."""
    min_num_labels: Count = 32
    """Labels needed at all."""
    min_judge_accuracy: Rate = 0.6
    """Agreement with gold in every cell of category × principle; only where there are gold rules."""
    min_cell_labels: Count = 20
    """Cells with fewer decided pairs are reported and do not decide."""
    min_revisions: Count = 32
    """Constitutional stage: replies that the judge must have changed."""
    max_dropped_replies: Rate = 0.25
    """Constitutional stage: share of replies without a usable revision."""

    def limits(self) -> GateLimits:
        """The limits of labels."""
        return GateLimits(**self.model_dump(exclude={"min_revisions", "max_dropped_replies"}))


class ConstitutionalSettings(SettingsModel):
    """The constitutional stage: the policy's own replies, criticised and revised by the judge, then learnt."""

    enabled: bool = False
    """Make it before the first round; algorithm 'sft' makes it alone."""
    num_prompts: Count = 240
    """Training prompts that the policy answers, the categories in turn."""
    rounds: Annotated[int, Field(ge=1, le=16)] = 2
    """Critiques and revisions of each reply, each under another principle, drawn by weight."""
    keep_unchanged: bool = True
    """Learn replies that no round changed, too: the judge found no fault, and they keep the policy as it is there."""
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 32
    """Replies that the judge works on at the same time."""
    epochs: Count = 3
    """Passes over the revised replies."""
    learning_rate: PositiveFloat = 5e-4
    """Peak learning rate of AdamW."""
    batch_size: Count = 32
    """Replies in one optimiser step."""


class RewardModelSettings(SettingsModel):
    """Reward model trained on the soft labels."""

    enabled: bool = True
    """Train it also when it is not the reward: it then watches the run as a second opinion."""
    num_members: Annotated[int, Field(ge=1, le=8)] = 1
    """Members of the ensemble; they differ by seed."""
    bootstrap: bool = False
    """Each member also trains on a draw of its own, with replacement, of the prompts."""
    epochs: Count = 2
    """Passes over the labels; few, where the reward model only watches."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of AdamW."""
    batch_size: Count = 48
    """Pairs in one optimiser step."""
    margin: NonNegative = 0.0
    """Lead asked of the response that a sure label prefers, times |2p - 1|."""
    centring: NonNegative = 0.002
    """Weight of (r1 + r2)², which keeps rewards around zero."""
    principle_loss_weight: NonNegative = 2.0
    """Weight of predicting each principle's own vote beside the combined label, which teaches small trunks why."""


class RlSettings(SettingsModel):
    """Online reinforcement learning: GRPO, or another of its kin by `advantage`, `aggregation` and `ratio`."""

    steps: Count = 40
    """Optimiser steps of one round."""
    prompts_per_step: Count = 24
    """Prompts of one step."""
    completions_per_prompt: Annotated[int, Field(ge=2, le=64)] = 8
    """Group size G."""
    learning_rate: PositiveFloat = 4e-4
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What the learning rate does after its rise; linear and cosine end at 0."""
    updates_per_batch: Count = 1
    """Optimiser steps on one batch of rollouts."""
    advantage: AdvantageKind = "grpo"
    """How rewards become advantages; rloo is REINFORCE with a leave-one-out baseline."""
    advantage_epsilon: PositiveFloat = 0.02
    """Added to the sd of a group's rewards: smaller differences than this are taken for the judge's noise."""
    aggregation: Aggregation = "token_mean"
    """How tokens' losses become one; sequence_mean is the original GRPO's, constant_length is Dr.GRPO's and RLOO's."""
    ratio: Literal["token", "sequence"] = "token"
    """What is clipped: each token's ratio of policies, or each sequence's (GSPO)."""
    kl_beta: Annotated[float, Field(ge=0.0)] = 0.1
    """Weight of the KL penalty to the policy that the round began with."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where that penalty stands."""
    kl_target: PositiveFloat | None = None
    """KL of a sequence, nats, towards which the weight adapts; null leaves it constant."""
    kl_gain: PositiveFloat = 0.1
    """How fast it adapts: a batch changes it by at most a fifth of this."""
    clip_low: PositiveFloat = 0.2
    """Lower clip range of the ratio."""
    clip_high: PositiveFloat = 0.28
    """Upper clip range of the ratio."""
    watch_every: Count = 5
    """Steps between measurements of the held-out score, by the reward that is not trained on."""
    watch_prompts: Annotated[int, Field(ge=0)] = 48
    """Training prompts set apart for it; at most one in eight."""
    guards: GuardSettings = GuardSettings()
    """What stops or slows the training."""
    staleness: Annotated[int, Field(ge=0, le=1)] = 0
    """How many steps older than the trained weights the sampled ones may be."""
    checkpoint_every: Count = 10
    """Steps between checkpoints."""


class DpoSettings(SettingsModel):
    """Preference optimisation on the soft labels."""

    loss: PreferenceLoss = "sigmoid"
    """sigmoid: DPO; sigmoid_norm: DPO on means over tokens; ipo; hinge; simpo: without a reference."""
    beta: PositiveFloat | None = None
    """How dear it is to leave the reference; None for what suits the loss, 0.1 for DPO."""
    sft_weight: NonNegative = 0.0
    """Weight of the preferred response's negative log-likelihood, a token, beside the loss."""
    target_margin: NonNegative = 1.0
    """γ of SimPO."""
    epochs: Count = 3
    """Passes over the labels."""
    learning_rate: PositiveFloat = 3e-4
    """Peak learning rate of AdamW."""
    batch_size: Count = 48
    """Pairs in one optimiser step."""


class EvaluationSettings(SettingsModel):
    """Held-out evaluation before and after."""

    num_harmful: Count = 240
    """Held-out harmful prompts; playground only."""
    num_other: Count = 80
    """Held-out prompts of every other category, or held-out prompts in all where there are no categories."""
    max_kl: PositiveFloat = 6.0
    """KL budget of a sequence in nats: beyond it, with gold lower than before, the run is over-optimised."""
    slack: Rate = 0.04
    """How much over-refusal or harmful compliance may rise before the run is called biased."""
    max_length_ratio: PositiveFloat = 2.0
    """Mean words after against before, or before against after, beyond which length has drifted."""
    max_garbage_rise: Rate = 0.05
    """How much the mean share of garbage words may rise."""


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
