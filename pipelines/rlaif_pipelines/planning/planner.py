"""Makes the plan of a run: its work, on the GPUs that its models need or that were given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from rlaif.core.errors import InvalidInputError
from rlaif_pipelines.planning import memory
from rlaif_pipelines.planning.assumptions import sentences
from rlaif_pipelines.planning.hardware import Hardware
from rlaif_pipelines.planning.models import PlannedModel
from rlaif_pipelines.planning.plan import SECONDS_AN_HOUR, Plan, RoleRow, StageRow
from rlaif_pipelines.planning.timing import Group, Training, seconds
from rlaif_pipelines.planning.work import Lengths, Load, Role, loads
from rlaif_pipelines.settings import RunSettings

GPU_ROLES: Final[Sequence[Role]] = ("sampler", "judge", "reward", "evaluator", "trainer")


@dataclass(frozen=True)
class Assumed:
    """What no setting says."""

    storage_bytes_per_second: float = 1e9
    """Of the volume or store through which each step's weights reach the sampler."""
    pipeline_flops: float = 5e11
    """Of the pod that computes the KL of the evaluation, float32."""


@dataclass(frozen=True)
class Planner:
    """What a plan is made from."""

    settings: RunSettings
    models: Mapping[Role, PlannedModel]
    """Of sampler and judge, and of the evaluator where there is one that can be looked at."""
    lengths: Lengths
    num_principles: int
    hardware: Hardware
    gpu: str
    given_gpus: Mapping[Role, int]
    """Numbers of GPUs that the user set."""
    price: float | None = None
    """Dollars a GPU and hour, where the table's is not it."""
    assumed: Assumed = Assumed()
    remarks: tuple[str, ...] = ()

    def plan(self) -> Plan:
        """The plan; InvalidInputError names the role whose model does not fit, and how many GPUs it needs."""
        work = list(
            loads(
                self.settings,
                lengths=self.lengths,
                num_principles=self.num_principles,
                second_judge="evaluator" in self.models,
            )
        )
        groups = {role: self._group(role, work) for role in GPU_ROLES if any(_asks(load, role) for load in work)}
        stages = [self._row(load, groups) for load in work]
        publish = self._publish_seconds(work)
        wall = publish + sum(self._stage_seconds(rows) for rows in _by_stage(stages))
        price = self.hardware.gpu(self.gpu).usd_per_hour if self.price is None else self.price
        held = sum(group.gpus for group in groups.values())
        return Plan(
            labels=sum(load.num_labels for load in work),
            roles=tuple(self._role(role, group, work) for role, group in groups.items()),
            stages=tuple(stages),
            publish_seconds=publish,
            wall_seconds=wall,
            usd=held * wall / SECONDS_AN_HOUR * price,
            assumptions=tuple(sentences(self, price=price)),
        )

    def model(self, role: Role) -> PlannedModel:
        """What a role runs; the policy trains and is the trunk of the reward model."""
        return self.models["sampler" if role in ("trainer", "reward") else role]

    def _group(self, role: Role, work: Sequence[Load]) -> Group:
        model, gpu = self.model(role), self.hardware.gpu(self.gpu)
        shape, given, longest = model.architecture, self.given_gpus.get(role), self._longest(role, work)
        try:
            if role == "trainer":
                engine, reference = self.settings.engine, self._has_reference
                fewest = memory.fewest_training(shape, gpu, engine, has_reference=reference, longest=longest)
            else:
                fewest = memory.fewest_serving(shape, gpu, sequence=longest)
        except InvalidInputError as error:
            raise InvalidInputError(f"{role}: {model.name}: {error.message}", field="--gpu") from None
        if given is not None and given < fewest:
            raise InvalidInputError(
                f"--gpus {role}={given}: {model.name} needs {fewest} of {self.gpu} at least", field="--gpus"
            )
        if role == "trainer":
            return Group(self.gpu, gpu, model.name, shape, gpus_each=given or fewest)
        replicas, left = divmod(given or fewest, fewest)
        if left:
            raise InvalidInputError(
                f"--gpus {role}={given}: a replica of {model.name} takes {fewest} of {self.gpu}, so give a multiple",
                field="--gpus",
            )
        return Group(self.gpu, gpu, model.name, shape, gpus_each=fewest, replicas=replicas)

    @property
    def _has_reference(self) -> bool:
        return self.settings.algorithm == "grpo" and self.settings.pipeline == "rlaif"

    def _longest(self, role: Role, work: Iterable[Load]) -> float:
        return max([1.0, *(load.sequence for load in work if load.role == role)])

    def _role(self, role: Role, group: Group, work: Sequence[Load]) -> RoleRow:
        longest = self._longest(role, work)
        if role == "trainer":
            found = memory.trained(
                group.architecture,
                self.settings.engine,
                gpus=group.gpus,
                has_reference=self._has_reference,
                longest=longest,
            )
        else:
            found = memory.served(group.architecture, group.gpu, gpus=group.gpus_each, sequence=longest)
        share = found.total / group.gpu.memory_bytes
        return RoleRow(role, group.model, group.gpu_name, group.gpus, group.replicas, found, share)

    def _row(self, load: Load, groups: Mapping[Role, Group]) -> StageRow:
        if load.role == "pipeline":
            flops = self.model("sampler").architecture.forward_flops(load.sequence / 2)
            took, gpus = load.prefill * flops / self.assumed.pipeline_flops, 0
        elif _asks(load, load.role):
            engine = self.settings.engine
            how = Training(checkpointing=engine.gradient_checkpointing, adapter=engine.lora is not None)
            group = groups[load.role]
            took, gpus = seconds(load, group, self.hardware, training=how), group.gpus
        else:
            took, gpus = 0.0, 0
        return StageRow(
            load.stage, load.role, gpus, round(load.prefill), round(load.decode), round(load.training), took
        )

    def _stage_seconds(self, rows: Sequence[StageRow]) -> float:
        """Of one stage's roles: one after the other, because each waits for what the one before made.

        With staleness 1 a step's rollouts are made while the step before trains, so the longer of both counts.
        """
        training = sum(row.seconds for row in rows if row.role == "trainer")
        others = sum(row.seconds for row in rows if row.role != "trainer")
        if self.settings.rl.staleness == 1 and rows[0].stage.startswith("train"):
            return max(training, others)
        return training + others

    def _publish_seconds(self, work: Iterable[Load]) -> float:
        """Each step's weights are written once and read once, in float32 or as they are trained."""
        steps = sum(load.steps for load in work if load.role == "trainer")
        engine, shape = self.settings.engine, self.model("sampler").architecture
        weight_bytes = 2 if engine.precision == "bfloat16" else 4
        weights = shape.adapter_parameters(engine.lora.rank) if engine.lora else shape.num_parameters
        return steps * 2 * weight_bytes * weights / self.assumed.storage_bytes_per_second


def _asks(load: Load, role: Role) -> bool:
    return load.role == role and bool(load.prefill or load.decode or load.training)


def _by_stage(rows: Iterable[StageRow]) -> Iterator[list[StageRow]]:
    return (list(group) for _, group in groupby(rows, key=lambda row: row.stage))
