"""The reward models a replica serves, by resource name; a name is swapped to other weights in one step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from rlaif.core.canonical import digest
from rlaif.core.errors import InvalidInputError, NotFoundError, UnsupportedError
from rlaif.engine.protocol import ModelIdentity
from rlaif.reward.scoring import Component, Reward, RewardSource, ScoredInput
from rlaif.reward.settings import RewardEngineSettings
from rlaif.runtime.context import current_trace_id
from rlaif.runtime.revision import service_revision
from rlaif.v1 import provenance_pb2

if TYPE_CHECKING:
    from rlaif.engine.reward_model import RewardEnsemble, RewardModelEngine

JUDGE_NAME = "rewardModels/judge"
_NAME = re.compile(r"rewardModels/[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Entry:
    """One reward model and since when it is served."""

    name: str
    source: RewardSource
    load_time: Timestamp


class TrainedRewardModel:
    """An ensemble of sequence classifiers: the mean over its members is the reward."""

    component = "reward_model"

    def __init__(self, name: str, *, engine: RewardModelEngine, ensemble: RewardEnsemble) -> None:
        self._engine = engine
        self._ensemble = ensemble
        self._model = _model_reference(name, ensemble.identities)

    @property
    def members(self) -> Sequence[ModelIdentity]:
        """Weights of the members."""
        return self._ensemble.identities

    async def score(self, inputs: Sequence[ScoredInput], *, constitution: str) -> list[Reward]:
        """One reward an input; the constitution is in the weights already and not looked at."""
        estimates = await self._engine.score(
            self._ensemble, [(scored.conversation, scored.response) for scored in inputs]
        )
        provenance = provenance_pb2.Provenance(
            model=self._model, service_revision=service_revision(), trace_id=current_trace_id()
        )
        provenance.create_time.GetCurrentTime()
        return [
            Reward((), failure_reason=estimate.failure_reason or "NOT_FINITE", provenance=provenance)
            if estimate.mean is None
            else Reward((Component(self.component, estimate.mean, spread=estimate.spread),), provenance=provenance)
            for estimate in estimates
        ]


class RewardRegistry:
    """Serves reward models by name. The engine, and with it torch, is opened when the first one is loaded."""

    def __init__(self, settings: RewardEngineSettings, *, judge: RewardSource | None, max_members: int) -> None:
        self._settings = settings
        self._max_members = max_members
        self._engine: RewardModelEngine | None = None
        self._entries: dict[str, Entry] = {}
        if judge is not None:
            self._entries[JUDGE_NAME] = _entry(JUDGE_NAME, judge)

    def get(self, name: str, *, field: str) -> Entry:
        """The reward model of that name; NotFoundError says which there are."""
        if not name:
            raise InvalidInputError(
                'the name of a reward model, "rewardModels/{reward_model}", is required', field=field
            )
        if name in self._entries:
            return self._entries[name]
        if name == JUDGE_NAME:
            raise UnsupportedError(f"no judge is set up behind {JUDGE_NAME}", reason="NO_JUDGE")
        raise NotFoundError(
            f"no reward model {name!r} is loaded; there are {', '.join(self._entries) or 'none'}",
            metadata={"resource_type": "rlaif.v1.RewardModel", "resource_name": name},
        )

    async def load(self, name: str, members: Sequence[ModelIdentity]) -> Entry:
        """Loads the members, then serves them under the name; calls in flight finish on what was there before."""
        if not _NAME.fullmatch(name):
            raise InvalidInputError(f'{name!r} is not of the form "rewardModels/{{reward_model}}"', field="name")
        if name == JUDGE_NAME:
            raise InvalidInputError(f"{JUDGE_NAME} is the judge and cannot be loaded", field="name")
        if not 1 <= len(members) <= self._max_members:
            raise InvalidInputError(
                f"{len(members)} members are outside the limits of 1 to {self._max_members}", field="members"
            )
        for index, member in enumerate(members):
            if not member.uri:
                raise InvalidInputError("the model's uri is empty", field=f"members[{index}].uri")
        engine = self._open_engine()
        ensemble = await engine.load(members)
        self._entries[name] = _entry(name, TrainedRewardModel(name, engine=engine, ensemble=ensemble))
        return self._entries[name]

    def close(self) -> None:
        """Ends the engine's thread."""
        if self._engine is not None:
            self._engine.close()

    def _open_engine(self) -> RewardModelEngine:
        if self._engine is None:
            from rlaif.engine.reward_model import RewardModelEngine, RewardModelOptions

            settings = self._settings
            self._engine = RewardModelEngine(
                RewardModelOptions(
                    device=settings.device, dtype=settings.dtype, max_batch_tokens=settings.max_batch_tokens
                ),
                num_threads=settings.num_threads,
            )
        return self._engine


def _entry(name: str, source: RewardSource) -> Entry:
    now = Timestamp()
    now.GetCurrentTime()
    return Entry(name, source, now)


def _model_reference(name: str, identities: Sequence[ModelIdentity]) -> provenance_pb2.ModelRef:
    """The one member, or the ensemble under its name with a digest over its members' digests."""
    if len(identities) == 1:
        only = identities[0]
        return provenance_pb2.ModelRef(uri=only.uri, digest=only.digest, version=only.version)
    return provenance_pb2.ModelRef(uri=name, digest=digest([identity.digest for identity in identities]))
