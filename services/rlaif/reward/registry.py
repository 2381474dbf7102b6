"""The reward models a replica serves, by resource name; a name is swapped to other weights in one step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from google.protobuf.timestamp_pb2 import Timestamp

from rlaif.core.canonical import digest
from rlaif.core.errors import (
    CorruptionError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
    RlaifError,
    SettingsError,
    UnsupportedError,
)
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
from rlaif.reward.records import LoadRecord, LoadRecords, Loads
from rlaif.reward.roots import AllowedRoots
from rlaif.reward.running import Running, open_running
from rlaif.reward.scoring import Component, Source
from rlaif.reward.settings import JUDGE_ID, RESOURCE_ID, RewardSettings
from rlaif.reward.trained import TrainedEnsemble, source_sha256
from rlaif.runtime.logging import EventLogger

_PREFIX = "rewardModels/"
JUDGE_NAME = f"{_PREFIX}{JUDGE_ID}"

# How long storage may take to give a record where there is something to serve without it, and is left alone if not.
_PATIENCE_SECONDS, _PAUSE_SECONDS = 5.0, 30.0

_log = EventLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One reward model, what it was built from, and since when it is served."""

    recipe: Recipe
    settings: RecipeSettings
    trained: Mapping[str, Component]
    """Its trained components by name."""
    load_time: Timestamp
    loads: Loads = field(default_factory=dict)
    """What was loaded into it since the settings, by component."""


class RewardRegistry:
    """Serves reward models by name. The engine, and with it torch, is opened when the first one is loaded."""

    def __init__(self, settings: RewardSettings, *, judge: Source | None, metrics: RewardMetrics) -> None:
        self._settings = settings
        self._judge = judge
        self._metrics = metrics
        self._roots = AllowedRoots(_roots(settings))
        self._running: Running | None = None
        self._loading = asyncio.Lock()
        self._entries: dict[str, Entry] = {}
        self._records = _records(settings)
        self._looks: dict[str, asyncio.Task[None]] = {}
        self._looked: dict[str, float] = {}
        if judge is not None:
            only_judge = RecipeSettings(components=[JudgedSettings(kind="judge")])
            self._entries[JUDGE_NAME] = self._entry(JUDGE_NAME, only_judge, {}, {})

    async def get(self, name: str, *, field: str) -> Entry:
        """The reward model of that name; NotFoundError says which there are.

        With records, it is the one that was loaded last by any replica.
        """
        if not name:
            raise InvalidInputError(
                'the name of a reward model, "rewardModels/{reward_model}", is required', field=field
            )
        if self._records is not None and _is_loadable(name):
            await self._follow(name, self._records)
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

        Where the settings describe the name, they take the place of the members of its `component`. With records, no
        replica serves what was there before once this has returned.
        """
        if name == JUDGE_NAME:
            raise InvalidInputError(f"{JUDGE_NAME} is the judge and cannot be loaded", field="name")
        if not _is_loadable(name):
            raise InvalidInputError(f'{name!r} is not of the form "rewardModels/{{reward_model}}"', field="name")
        self._check_members(members)
        async with self._loading:
            recipe = self._described(name) or RecipeSettings(components=[_plain(members)])
            replaced = _replaced(recipe, name=name, component=component, num_members=len(members)).name
            entry = await self._loaded(name, recipe, {**await self._others(name), replaced: tuple(members)})
            began = time.monotonic()
            if self._records is not None:
                await asyncio.to_thread(self._records.write, LoadRecord(name, entry.loads))
            self._entries[name], self._looked[name] = entry, began
        if self._records is not None:
            # Until then another replica may hold on to the record that it has read before.
            await asyncio.sleep(self._settings.refresh_seconds)
        return entry

    async def close(self) -> None:
        """Ends the work that was accepted, then the engine's threads."""
        for look in self._looks.values():
            look.cancel()
        if self._running is not None:
            await self._running.close()

    async def _follow(self, name: str, records: LoadRecords) -> None:
        """Serves what the record names, as read within `refresh_seconds`. A caller who leaves stops nothing."""
        looked = self._looked.get(name)
        if looked is not None and time.monotonic() - looked < self._settings.refresh_seconds:
            return
        if name not in self._looks:
            look = self._looks[name] = asyncio.create_task(self._look(name, records))
            look.add_done_callback(lambda done: self._end_look(name, done))
        await asyncio.shield(self._looks[name])

    def _end_look(self, name: str, look: asyncio.Task[None]) -> None:
        del self._looks[name]
        # Marks its failure as seen: who waited for it may have gone.
        if not look.cancelled():
            look.exception()

    async def _look(self, name: str, records: LoadRecords) -> None:
        began = time.monotonic()
        # Storage that is away keeps nobody from what is loaded.
        patience = _PATIENCE_SECONDS if name in self._entries else None
        try:
            async with asyncio.timeout(patience):
                record = await asyncio.to_thread(records.read, name)
        except (RlaifError, TimeoutError) as error:
            if name not in self._entries:
                raise
            _log.error("record of a reward model not read", reward_model=name, error=str(error) or "it takes too long")
            self._looked[name] = began + _PAUSE_SECONDS
            return
        if not self._is_served(name, record):
            async with self._loading:
                # Another one may have been loaded meanwhile.
                began, record = time.monotonic(), await asyncio.to_thread(records.read, name)
                if record is not None and not self._is_served(name, record):
                    self._entries[name] = await self._recorded(record)
                    _log.info("reward model loaded", reward_model=name)
        if name in self._entries:
            self._looked[name] = began

    def _is_served(self, name: str, record: LoadRecord | None) -> bool:
        if record is None:
            return True
        served = self._entries[name].loads if name in self._entries else {}
        return all(served.get(component) == members for component, members in self._fitting(record).items())

    def _fitting(self, record: LoadRecord) -> Loads:
        """What the record names, less the components that the settings have no longer."""
        recipe = self._described(record.name)
        if recipe is None:
            return record.loads
        names = [each.name for each in recipe.components if isinstance(each, TrainedSettings)]
        return {component: members for component, members in record.loads.items() if component in names}

    async def _others(self, name: str) -> Loads:
        """What was loaded by any replica into the components of a reward model from the settings."""
        if self._records is None or self._described(name) is None:
            return {}
        try:
            record = await asyncio.to_thread(self._records.read, name)
        except CorruptionError as error:
            # It is about to be replaced.
            _log.error("record of a reward model not read", reward_model=name, error=error.message)
            return {}
        return self._fitting(record) if record else {}

    async def _recorded(self, record: LoadRecord) -> Entry:
        loads = self._fitting(record)
        try:
            recipe = self._described(record.name) or _alone(loads)
            return await self._loaded(record.name, recipe, loads)
        except (InvalidInputError, NotFoundError, SettingsError, CorruptionError) as error:
            raise PreconditionError(
                f"what was loaded last as {record.name} cannot be loaded here: {error.message}",
                reason="REWARD_MODEL_NOT_LOADABLE",
                field=record.name,
            ) from error

    def _described(self, name: str) -> RecipeSettings | None:
        return self._settings.reward_models.get(name.removeprefix(_PREFIX))

    async def _loaded(self, name: str, recipe: RecipeSettings, loads: Loads) -> Entry:
        """The entry with these members in their components; what is served stays as it is."""
        served = self._entries.get(name)
        kept = served if served and served.settings == recipe else None
        trained, now = (dict(kept.trained), dict(kept.loads)) if kept else ({}, {})
        fitted = _fitted(kept)
        for component, members in loads.items():
            if now.get(component) != members:
                self._check_members(members)
                replaced = _replaced(recipe, name=name, component=component, num_members=len(members))
                trained[component] = await self._load(replaced, members, fitted.get(component), place=component)
                now[component] = trained[component].members
                self._metrics.loads.inc()
        return replace(self._entry(name, recipe, trained, fitted), loads=now)

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
        if self._running is None:
            self._running = open_running(self._settings, metrics=self._metrics)
        running = self._running
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


def _is_loadable(name: str) -> bool:
    return name.startswith(_PREFIX) and name != JUDGE_NAME and bool(RESOURCE_ID.fullmatch(name.removeprefix(_PREFIX)))


def _records(settings: RewardSettings) -> LoadRecords | None:
    if not settings.remember_loads:
        return None
    assert settings.artifact_root is not None, "settings that remember loads have a root for them"
    return LoadRecords(settings.artifact_root)


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


def _plain(members: Sequence[ModelIdentity], *, name: str = "") -> AnyComponent:
    return TrainedSettings(kind="reward_model", name=name, members=[member.uri for member in members])


def _alone(loads: Loads) -> RecipeSettings:
    """A reward model of the only component that was loaded."""
    if len(loads) != 1:
        raise InvalidInputError(f"its components {', '.join(loads)} are no longer in reward_models of the settings")
    ((component, members),) = loads.items()
    return RecipeSettings(components=[_plain(members, name=component)])


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
