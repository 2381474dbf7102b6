"""The reward models a replica serves, by resource name; a name is swapped to other weights in one step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from rlaif.core.canonical import digest
from rlaif.core.errors import InvalidInputError, NotFoundError, SettingsError, UnsupportedError
from rlaif.core.reward_normalisation import Normalisation
from rlaif.engine.protocol import ModelIdentity
from rlaif.reward.metrics import RewardMetrics
from rlaif.reward.normalising import check_fresh, read_normalisation
from rlaif.reward.penalties import LengthPenalty, RepetitionPenalty, count_words
from rlaif.reward.recipe import Recipe
from rlaif.reward.recipes import (
    AnyComponent,
    JudgedSettings,
    LengthPenaltySettings,
    RecipeSettings,
    RepetitionPenaltySettings,
    TrainedSettings,
)
from rlaif.reward.roots import AllowedRoots
from rlaif.reward.scoring import Component, Source
from rlaif.reward.settings import JUDGE_ID, RESOURCE_ID, RewardSettings
from rlaif.reward.trained import TrainedEnsemble, source_sha256
from rlaif.runtime.batching import Batcher

if TYPE_CHECKING:
    from rlaif.engine.reward_model import EncodedInput, RewardModelEngine

_PREFIX = "rewardModels/"
JUDGE_NAME = f"{_PREFIX}{JUDGE_ID}"


@dataclass(frozen=True)
class Entry:
    """One reward model, what it was built from, and since when it is served."""

    recipe: Recipe
    settings: RecipeSettings
    trained: Mapping[str, Component]
    """Its trained components by name."""
    load_time: Timestamp


@dataclass(frozen=True)
class _Running:
    """The engine and the queue in front of it."""

    engine: RewardModelEngine
    batcher: Batcher[EncodedInput, tuple[float, ...]]


class RewardRegistry:
    """Serves reward models by name. The engine, and with it torch, is opened when the first one is loaded."""

    def __init__(self, settings: RewardSettings, *, judge: Source | None, metrics: RewardMetrics) -> None:
        self._settings = settings
        self._judge = judge
        self._metrics = metrics
        self._roots = AllowedRoots(_roots(settings))
        self._running: _Running | None = None
        self._loading = asyncio.Lock()
        self._entries: dict[str, Entry] = {}
        if judge is not None:
            only_judge = RecipeSettings(components=[JudgedSettings(kind="judge")])
            self._entries[JUDGE_NAME] = self._entry(JUDGE_NAME, only_judge, {}, {})

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

    async def start(self) -> None:
        """Loads what the settings name. SettingsError and InvalidInputError say which of it is wrong."""
        for name, recipe in self._settings.reward_models.items():
            place = f"reward_models.{name}"
            fitted = dict(_normalisations(recipe, place=place))
            trained = {}
            for component in recipe.components:
                if isinstance(component, TrainedSettings):
                    members = [ModelIdentity(uri, digest="") for uri in component.members]
                    trained[component.name] = await self._load(
                        component, members, fitted.get(component.name), place=f"{place}.{component.name}"
                    )
            self._entries[_PREFIX + name] = self._entry(_PREFIX + name, recipe, trained, fitted)

    async def load(self, name: str, members: Sequence[ModelIdentity], *, component: str = "") -> Entry:
        """Loads the members, then serves them under the name; calls in flight finish on what was there before.

        Where the settings describe the name, they take the place of the members of its `component`.
        """
        if not name.startswith(_PREFIX) or not RESOURCE_ID.fullmatch(name.removeprefix(_PREFIX)):
            raise InvalidInputError(f'{name!r} is not of the form "rewardModels/{{reward_model}}"', field="name")
        if name == JUDGE_NAME:
            raise InvalidInputError(f"{JUDGE_NAME} is the judge and cannot be loaded", field="name")
        self._check_members(members)
        async with self._loading:
            current = self._entries.get(name) if name.removeprefix(_PREFIX) in self._settings.reward_models else None
            recipe = current.settings if current else RecipeSettings(components=[_plain(members)])
            replaced = _replaced(recipe, name=name, component=component, num_members=len(members))
            fitted = _fitted(current)
            loaded = await self._load(replaced, members, fitted.get(replaced.name), place=replaced.name)
            trained = {**(current.trained if current else {}), replaced.name: loaded}
            self._entries[name] = self._entry(name, recipe, trained, fitted)
            return self._entries[name]

    async def close(self) -> None:
        """Ends the work that was accepted, then the engine's threads."""
        if self._running is not None:
            await self._running.batcher.close()
            await asyncio.to_thread(self._running.engine.close)

    def _check_members(self, members: Sequence[ModelIdentity]) -> None:
        most = self._settings.limits.max_members
        if not 1 <= len(members) <= most:
            raise InvalidInputError(f"{len(members)} members are outside the limits of 1 to {most}", field="members")
        for index, member in enumerate(members):
            field = f"members[{index}].uri"
            if not member.uri:
                raise InvalidInputError("the model's uri is empty", field=field)
            self._roots.check(member.uri, field=field)

    async def _load(
        self,
        settings: TrainedSettings,
        members: Sequence[ModelIdentity],
        fitted: Normalisation | None,
        *,
        place: str,
    ) -> Component:
        running = self._open()
        ensemble = await running.engine.load(members)
        source = source_sha256(ensemble.identities, settings.rule)
        if fitted is not None:
            check_fresh(fitted, source_sha256=source, place=place)
        return Component(
            name=settings.name,
            kind="reward_model",
            weight=settings.weight,
            source=TrainedEnsemble(
                ensemble,
                aggregation=settings.rule,
                engine=running.engine,
                batcher=running.batcher,
                sort=self._settings.mix_requests,
            ),
            normalisation=fitted,
            members=ensemble.identities,
            aggregation=settings.rule,
            source_sha256=source,
        )

    def _entry(
        self,
        name: str,
        settings: RecipeSettings,
        trained: Mapping[str, Component],
        fitted: Mapping[str, Normalisation],
    ) -> Entry:
        components = tuple(
            trained[component.name]
            if isinstance(component, TrainedSettings)
            else self._component(component, trained, fitted)
            for component in settings.components
        )
        now = Timestamp()
        now.GetCurrentTime()
        return Entry(Recipe(name, components), settings, trained, now)

    def _component(
        self,
        settings: JudgedSettings | LengthPenaltySettings | RepetitionPenaltySettings,
        trained: Mapping[str, Component],
        fitted: Mapping[str, Normalisation],
    ) -> Component:
        source: Source
        if isinstance(settings, JudgedSettings):
            assert self._judge is not None, "settings with a judge as a component name a judge"
            source = self._judge
        elif isinstance(settings, RepetitionPenaltySettings):
            source = RepetitionPenalty(settings)
        elif settings.unit == "words":
            source = LengthPenalty(settings, measure=count_words)
        else:
            tokenizing = next(iter(trained.values())).source
            assert isinstance(tokenizing, TrainedEnsemble)
            source = LengthPenalty(settings, measure=tokenizing.count_response_tokens)
        return Component(
            name=settings.name,
            kind=settings.kind,
            weight=settings.weight,
            source=source,
            normalisation=fitted.get(settings.name),
            parameters_sha256=digest(settings.model_dump(mode="json")),
        )

    def _open(self) -> _Running:
        if self._running is None:
            from rlaif.engine.reward_model import RewardModelEngine, RewardModelOptions

            options = self._settings.engine
            engine = RewardModelEngine(
                RewardModelOptions(
                    device=options.device, dtype=options.dtype, max_batch_tokens=options.max_batch_tokens
                ),
                num_threads=options.num_threads,
            )
            batcher = self._batcher(engine)
            self._metrics.queue_tokens.set_function(lambda: batcher.size_queued)
            self._metrics.queue_limit.set(self._settings.queue.max_queue_tokens)
            self._running = _Running(engine, batcher)
        return self._running

    def _batcher(self, engine: RewardModelEngine) -> Batcher[EncodedInput, tuple[float, ...]]:
        metrics, queue, mix = self._metrics, self._settings.queue, self._settings.mix_requests

        async def execute(inputs: Sequence[EncodedInput]) -> Sequence[tuple[float, ...]]:
            start = time.perf_counter()
            values = await engine.score(inputs, repeatable=not mix)
            metrics.batch_seconds.observe(time.perf_counter() - start)
            metrics.batch_inputs.observe(len(inputs))
            metrics.batch_tokens.observe(sum(each.num_tokens for each in inputs))
            return values

        return Batcher(
            execute,
            mix=mix,
            max_batch_size=queue.max_batch_tokens,
            max_delay_seconds=queue.max_delay_milliseconds / 1000,
            max_queue_size=queue.max_queue_tokens,
            # A request that is a batch of its own is never cut: its floats are those of the whole.
            max_turn_size=queue.max_batch_tokens if mix else None,
            size_of=lambda encoded: encoded.num_tokens,
            unit="tokens",
            on_wait=metrics.queue_wait_seconds.observe,
        )


def _roots(settings: RewardSettings) -> Iterator[str]:
    if settings.artifact_root is not None:
        yield settings.artifact_root
    yield from settings.allowed_roots
    for recipe in settings.reward_models.values():
        for component in recipe.components:
            if isinstance(component, TrainedSettings):
                yield from component.members


def _normalisations(recipe: RecipeSettings, *, place: str) -> Iterator[tuple[str, Normalisation]]:
    """(component, its normalisation) of those that name one."""
    for component in recipe.components:
        if isinstance(component, TrainedSettings | JudgedSettings) and component.normalisation is not None:
            where = f"{place}.{component.name}.normalisation"
            fitted = read_normalisation(component.normalisation, place=where)
            if fitted.component != component.kind:
                raise SettingsError(f"{where}: was fitted on a {fitted.component}, not a {component.kind}", field=where)
            yield component.name, fitted


def _fitted(entry: Entry | None) -> dict[str, Normalisation]:
    if entry is None:
        return {}
    return {each.name: each.normalisation for each in entry.recipe.components if each.normalisation is not None}


def _plain(members: Sequence[ModelIdentity]) -> AnyComponent:
    return TrainedSettings(kind="reward_model", members=[member.uri for member in members])


def _replaced(recipe: RecipeSettings, *, name: str, component: str, num_members: int) -> TrainedSettings:
    """The trained component whose members are replaced; InvalidInputError when that is not one."""
    trained = [each for each in recipe.components if isinstance(each, TrainedSettings)]
    names = ", ".join(each.name for each in trained) or "none"
    chosen = [each for each in trained if not component or each.name == component]
    if len(chosen) != 1:
        raise InvalidInputError(
            f"{component!r} does not name one trained component of {name}; there are {names}", field="component"
        )
    if chosen[0].aggregation != "mean" and num_members < 2:
        raise InvalidInputError(
            f"{chosen[0].name} is aggregated as {chosen[0].aggregation}, which needs 2 or more members",
            field="members",
        )
    return chosen[0]
