"""Trained reward models: tiny random classifiers in a real service on loopback, against transformers' own forward."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from reward_fixtures import ask, reference_value, write_reward_model
from rlaif.client.reward import JUDGE, ModelReference, RewardClient
from rlaif.core.conversation import Message
from rlaif.core.errors import InvalidInputError, NotFoundError, RlaifError, UnsupportedError
from rlaif.reward.process import make_service
from rlaif.reward.settings import RewardSettings
from rlaif.runtime.artifacts import folder_digest
from rlaif.runtime.server import serving
from rlaif.runtime.settings import ClientSettings, ListenSettings

ASK = (Message("user", "How do I boil an egg?"),)
NAME = "rewardModels/watch"
INPUTS = [
    (ASK, "Put it into hot water for nine minutes."),
    (ASK, "I would rather not say."),
    (ASK, ""),
    ((Message("system", "Be kind."), *ASK, Message("assistant", "Which size?"), Message("user", "Large.")), "Ten."),
]


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [write_reward_model(tmp_path_factory.mktemp(f"reward{seed}"), seed=seed) for seed in range(2)]


@pytest.fixture
async def settings(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ClientSettings]:
    root = str(tmp_path_factory.getbasetemp())
    reward = RewardSettings(engine={"num_threads": 1, "max_batch_tokens": 64}, allowed_roots=[root])
    async with serving(make_service(reward), ListenSettings(metrics_address=None)) as server:
        yield ClientSettings(target=server.address, timeout_seconds=30)


async def test_one_member_gives_what_transformers_gives(settings: ClientSettings, members: list[Path]):
    reference = ModelReference(str(members[0]), folder_digest(members[0]), version=7)
    state = await ask(settings, lambda c: c.load_reward_model(NAME, [reference]))
    assert state.members == (reference,)
    results = await ask(settings, lambda c: c.score(NAME, INPUTS))
    expected = [reference_value(members[0], conversation, response) for conversation, response in INPUTS]
    assert [result.value for result in results] == pytest.approx(expected, abs=1e-5)
    assert all(result.spread == 0 and result.failure_reason == "" for result in results)
    assert await ask(settings, lambda c: c.score(NAME, INPUTS)) == results


async def test_an_ensemble_gives_mean_and_spread(settings: ClientSettings, members: list[Path]):
    await ask(settings, lambda c: c.load_reward_model(NAME, [ModelReference(str(folder)) for folder in members]))
    (result,) = await ask(settings, lambda c: c.score(NAME, INPUTS[:1]))
    one, two = (reference_value(folder, *INPUTS[0]) for folder in members)
    assert result.value == pytest.approx((one + two) / 2, abs=1e-5)
    assert result.spread == pytest.approx(abs(one - two) / 2, abs=1e-5)
    assert result.components == {"reward_model": result.value}


async def test_loading_again_swaps_the_weights(settings: ClientSettings, members: list[Path]):
    values = []
    for folder in members:
        await ask(settings, lambda c, folder=folder: c.load_reward_model(NAME, [ModelReference(str(folder))]))
        values.append((await ask(settings, lambda c: c.score(NAME, INPUTS[:1])))[0].value)
    assert values[0] != values[1]
    state = await ask(settings, lambda c: c.get_reward_model(NAME))
    assert state.members[0].uri == str(members[1])
    assert state.members[0].digest == folder_digest(members[1])


async def test_a_failed_load_leaves_the_old_weights(settings: ClientSettings, members: list[Path], tmp_path: Path):
    await ask(settings, lambda c: c.load_reward_model(NAME, [ModelReference(str(members[0]))]))
    before = await ask(settings, lambda c: c.score(NAME, INPUTS))
    with pytest.raises(InvalidInputError):
        await ask(settings, lambda c: c.load_reward_model(NAME, [ModelReference(str(tmp_path))]))
    assert await ask(settings, lambda c: c.score(NAME, INPUTS)) == before


async def test_too_long_and_not_finite_are_reasons_and_no_numbers(
    settings: ClientSettings, members: list[Path], tmp_path: Path
):
    await ask(settings, lambda c: c.load_reward_model(NAME, [ModelReference(str(members[0]))]))
    fits, too_long = await ask(settings, lambda c: c.score(NAME, [(ASK, "Yes."), (ASK, "egg " * 200)]))
    assert fits.value is not None
    assert (too_long.value, too_long.failure_reason, too_long.components) == (None, "TOO_LONG", {})

    import torch
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(members[0], tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["score.weight"] = torch.full_like(weights["score.weight"], torch.nan)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    await ask(settings, lambda c: c.load_reward_model(NAME, [ModelReference(str(broken))]))
    (result,) = await ask(settings, lambda c: c.score(NAME, INPUTS[:1]))
    assert (result.value, result.failure_reason) == (None, "NOT_FINITE")


async def test_what_is_no_reward_model_is_refused_by_field(
    settings: ClientSettings, members: list[Path], tmp_path: Path
):
    good = str(members[0])
    two_outputs = write_reward_model(tmp_path / "two", seed=0, num_labels=2)
    cases: list[tuple[Callable[[RewardClient], Any], type[RlaifError], str | None, str]] = [
        (lambda c: c.load_reward_model("watch", [ModelReference(good)]), InvalidInputError, "name", "rewardModels/"),
        (
            lambda c: c.load_reward_model("rewardModels/judge", [ModelReference(good)]),
            InvalidInputError,
            "name",
            "judge",
        ),
        (lambda c: c.load_reward_model(NAME, []), InvalidInputError, "members", "1 to 8"),
        (lambda c: c.load_reward_model(NAME, [ModelReference(good)] * 9), InvalidInputError, "members", "1 to 8"),
        (lambda c: c.load_reward_model(NAME, [ModelReference("")]), InvalidInputError, "members[0].uri", "empty"),
        (
            lambda c: c.load_reward_model(NAME, [ModelReference(good), ModelReference(good, "0" * 64)]),
            InvalidInputError,
            "members[1].digest",
            "0000",
        ),
        (
            lambda c: c.load_reward_model(NAME, [ModelReference(str(two_outputs))]),
            InvalidInputError,
            "members[0].uri",
            "2 outputs",
        ),
        (lambda c: c.score("rewardModels/none", INPUTS), NotFoundError, None, "rewardModels/none"),
        (lambda c: c.score(JUDGE, INPUTS), UnsupportedError, None, "no judge"),
        (lambda c: c.score("", INPUTS), InvalidInputError, "reward_model", "required"),
        (lambda c: c.get_reward_model(""), InvalidInputError, "name", "required"),
        (lambda c: c.score(NAME, [((), "x")]), InvalidInputError, "inputs[0].messages", "at least one"),
        (lambda c: c.score(NAME, [(ASK, "x" * 70_000)]), InvalidInputError, "inputs[0].response", "limit of 65536"),
    ]
    for use, error_class, field, words in cases:
        with pytest.raises(error_class) as caught:
            await ask(settings, use)
        assert (caught.value.field, words in caught.value.message) == (field, True), caught.value.message
