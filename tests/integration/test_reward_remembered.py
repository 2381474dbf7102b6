"""Loaded reward models are remembered on shared storage: a restart and other replicas of the service serve them too."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from reward_fixtures import ask, reference_value, write_reward_model
from rlaif.client.reward import ModelReference
from rlaif.core.conversation import Message
from rlaif.core.errors import (
    CorruptionError,
    DeadlineError,
    NotFoundError,
    PreconditionError,
    RlaifError,
    UnavailableError,
)
from rlaif.reward.process import make_service
from rlaif.reward.settings import RewardSettings
from rlaif.runtime.artifacts import folder_digest
from rlaif.runtime.server import serving
from rlaif.runtime.settings import ClientSettings, ListenSettings, load_settings
from rlaif.runtime.store import open_store
from rlaif.runtime.telemetry import REGISTRY

NAME = "rewardModels/distilled"
INPUT = ((Message("user", "How do I boil an egg?"),), "Put it into hot water.")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed in range(3):
        write_reward_model(tmp_path / f"member{seed}", seed=seed)
    return tmp_path


@asynccontextmanager
async def replica(root: Path | str, **settings: Any) -> AsyncIterator[ClientSettings]:
    reward = RewardSettings.model_validate(
        {
            "engine": {"num_threads": 1},
            "artifact_root": str(root),
            "remember_loads": True,
            "refresh_seconds": 0.05,
            **settings,
        }
    )
    async with serving(make_service(reward), ListenSettings(metrics_address=None)) as server:
        yield ClientSettings(target=server.address, timeout_seconds=60)


async def load(service: ClientSettings, *folders: Path, name: str = NAME, component: str = "") -> None:
    members = [ModelReference(str(folder)) for folder in folders]
    await ask(service, lambda client: client.load_reward_model(name, members, component=component))


async def value(service: ClientSettings, name: str = NAME) -> float:
    (result,) = await ask(service, lambda client: client.score(name, [INPUT]))
    return float(result.value)


async def uris(service: ClientSettings, name: str = NAME) -> list[str]:
    return [member.uri for member in (await ask(service, lambda client: client.get_reward_model(name))).members]


async def test_a_restart_keeps_what_was_loaded(root: Path):
    async with replica(root) as service:
        await load(service, root / "member0", root / "member1")
        before = await value(service)
    async with replica(root) as service:
        assert await value(service) == before
        assert await uris(service) == [str(root / "member0"), str(root / "member1")]
        with pytest.raises(NotFoundError, match="rewardModels/other"):
            await value(service, "rewardModels/other")


async def test_replicas_agree_from_when_a_load_has_returned(root: Path):
    async with replica(root) as one, replica(root) as other:
        for member in (0, 1, 2):
            await load(one if member != 1 else other, root / f"member{member}")
            expected = pytest.approx(reference_value(root / f"member{member}", *INPUT), abs=1e-5)
            assert await value(other) == expected
            assert await value(one) == expected


async def test_a_replica_loads_once_for_all_who_ask_also_when_the_first_of_them_leaves(root: Path):
    async with replica(root) as service:
        await load(service, root / "member0")
    before = _loads()
    async with replica(root) as service:
        with pytest.raises(DeadlineError):
            await ask(service, lambda client: client.score(NAME, [INPUT], timeout_seconds=0.01))
        # More would take all threads of a small machine, of which the service needs one too.
        values = await asyncio.gather(*(value(service) for _ in range(4)))
    assert len(set(values)) == 1
    assert _loads() == before + 1


def _loads() -> float:
    return REGISTRY.get_sample_value("rlaif_reward_model_loads_total") or 0.0


async def test_a_load_that_fails_changes_no_replica(root: Path):
    async with replica(root) as one, replica(root) as other:
        await load(one, root / "member0")
        before = await value(one)
        with pytest.raises(RlaifError, match="member9"):
            await load(one, root / "member1", root / "member9")
        assert [await value(one), await value(other)] == [before, before]
        # What could not be written down is not served.
        shutil.rmtree(root / "rewardModels")
        (root / "rewardModels").write_text("in the way")
        with pytest.raises(UnavailableError, match="write access below artifact_root"):
            await load(one, root / "member1")
        assert await value(one) == before


def _record(root: Path, **changes: Any) -> str:
    digest = folder_digest(root / "member0")
    member = {"uri": str(root / "member0"), "digest": digest, "version": 0} | changes
    return json.dumps({"name": NAME, "loads": {"reward_model": [member]}})


async def test_a_bad_record_is_told_to_who_asks_and_replaced_by_the_next_load(root: Path, tmp_path: Path):
    path = root / "rewardModels" / "distilled.json"
    path.parent.mkdir()
    elsewhere = shutil.copytree(root / "member0", tmp_path.parent / f"{tmp_path.name}-elsewhere")
    cases = [
        ("{", CorruptionError, "does not say what was loaded"),
        ("[]", CorruptionError, "does not say what was loaded"),
        (json.dumps({"name": "rewardModels/other", "loads": {}}), CorruptionError, "rewardModels/other"),
        (json.dumps({"name": NAME, "loads": {}}), CorruptionError, "no members"),
        (json.dumps({"name": NAME, "loads": {"A b": []}}), CorruptionError, "no component"),
        (_record(root, digest=""), CorruptionError, "has no digest"),
        (_record(root, digest="0" * 64), PreconditionError, "has the digest"),
        (_record(root, uri=str(root / "gone")), PreconditionError, "gone"),
        (_record(root, uri=str(elsewhere)), PreconditionError, "allowed_roots"),
        (_record(root).replace("[{", "[null, {"), CorruptionError, "does not say what was loaded"),
    ]
    async with replica(root) as service:
        await load(service, root / "member1", name="rewardModels/sound")
        for text, error, words in cases:
            path.write_text(text)
            with pytest.raises(error, match=words):
                await value(service)
            assert await uris(service, "rewardModels/sound") == [str(root / "member1")]
        path.write_text(_record(root))
        assert await uris(service) == [str(root / "member0")]
        path.write_text("{")
        assert await uris(service) == [str(root / "member0")]
        await load(service, root / "member2")
    async with replica(root) as service:
        assert await uris(service) == [str(root / "member2")]


async def test_storage_that_is_away_keeps_nobody_from_what_is_loaded(root: Path):
    async with replica(root) as service:
        await load(service, root / "member0")
        record = root / "rewardModels" / "distilled.json"
        record.unlink()
        record.mkdir()
        assert await uris(service) == [str(root / "member0")]
    async with replica(root) as service:
        with pytest.raises(UnavailableError, match="cannot be read"):
            await uris(service)


async def test_what_was_loaded_into_components_of_the_settings_is_kept_for_each(root: Path):
    components = [
        {"kind": "reward_model", "name": "one", "members": [str(root / "member0")]},
        {"kind": "reward_model", "name": "two", "members": [str(root / "member0")], "weight": 2},
    ]
    described = {"reward_models": {"distilled": {"components": components}}}
    async with replica(root, **described) as one, replica(root, **described) as other:
        await load(one, root / "member1", component="one")
        await load(other, root / "member2", component="two")
        assert await value(one) == await value(other)
    async with replica(root, **described) as service:
        assert await uris(service) == [str(root / "member1"), str(root / "member2")]
        first, second = (reference_value(root / f"member{member}", *INPUT) for member in (1, 2))
        assert await value(service) == pytest.approx(first + 2 * second, abs=1e-5)
    # A component that the settings have no longer is left out, and one that they alone described is not guessed.
    async with replica(root, reward_models={"distilled": {"components": components[:1]}}) as service:
        assert await uris(service) == [str(root / "member1")]
    async with replica(root) as service:
        with pytest.raises(PreconditionError, match="one, two are no longer in reward_models"):
            await uris(service)


async def test_object_storage_remembers_too(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))
    store = open_store("memory://remembered")
    uri, digest = store.publish_model(
        "policies/run", "reward", write=lambda folder: shutil.copytree(root / "member1", folder, dirs_exist_ok=True)
    )
    async with replica("memory://remembered") as service:
        with pytest.raises(NotFoundError, match=NAME):
            await uris(service)
        await ask(service, lambda client: client.load_reward_model(NAME, [ModelReference(uri, digest, 7)]))
    async with replica("memory://remembered") as service:
        (member,) = (await ask(service, lambda client: client.get_reward_model(NAME))).members
        assert member == ModelReference(uri, digest, 7)


def test_records_need_a_place(tmp_path: Path):
    path = tmp_path / "reward.yaml"
    path.write_text("remember_loads: true\n")
    with pytest.raises(RlaifError, match="remember_loads needs artifact_root"):
        load_settings(RewardSettings, path)
