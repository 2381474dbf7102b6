"""Reward models of several components in a real service: their sums, aggregations, normalisations and reloads."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from judge_fakes import CONSTITUTION, MemoryLedger, ScriptedEngine, serve_judge
from reward_fixtures import ask, reference_value, write_reward_model
from rlaif.cli.addresses import Announcement
from rlaif.cli.services import StackSettings, service_config
from rlaif.client.reward import JUDGE, ModelReference, RewardClient
from rlaif.core.conversation import Message
from rlaif.core.errors import InvalidInputError, PreconditionError, SettingsError
from rlaif.core.reward_normalisation import Normalisation, fit_normalisation
from rlaif.reward.process import make_service
from rlaif.reward.settings import RewardSettings
from rlaif.runtime.artifacts import folder_digest
from rlaif.runtime.server import serving
from rlaif.runtime.settings import ClientSettings, ListenSettings
from rlaif.runtime.store import open_store
from rlaif.runtime.telemetry import REGISTRY
from rlaif.v1 import conversation_pb2, reward_service_pb2, reward_service_pb2_grpc

ASK = (Message("user", "How do I boil an egg?"),)
NAME = "rewardModels/helpful"
RESPONSES = ["Put it into hot water.", "I would rather not say.", "Water, water, water, water!", ""]
INPUTS = [(ASK, response) for response in RESPONSES]


def script(context: str, question: str) -> Sequence[float]:
    if "Reply: Mumble" in context:
        return [0.001] * 10
    return [0.02] * 6 + [0.82] + [0.02] * 3


# Expected score 0.02 * (55 - 7) + 0.82 * 7 = 6.7.
JUDGED = 2 * (6.7 - 1) / 9 - 1


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folders = [tmp_path_factory.mktemp(f"member{seed}") for seed in range(3)]
    return [str(write_reward_model(folder, seed=seed)) for seed, folder in enumerate(folders)]


@asynccontextmanager
async def running(
    components: Sequence[Mapping[str, Any]], *, judge: ClientSettings | None = None, **settings: Any
) -> AsyncIterator[ClientSettings]:
    reward = RewardSettings.model_validate(
        {
            "judge": judge,
            "engine": {"num_threads": 1, "max_batch_tokens": 64},
            "reward_models": {"helpful": {"components": list(components)}},
            **settings,
        }
    )
    async with serving(make_service(reward), ListenSettings(metrics_address=None)) as server:
        yield ClientSettings(target=server.address, timeout_seconds=30)


async def test_a_reward_is_the_weighted_sum_of_its_named_components(members: list[str]):
    components = [
        {"kind": "reward_model", "name": "quality", "members": members[:1], "weight": 2.0},
        {"kind": "judge", "weight": 0.5},
        {"kind": "length_penalty", "limit": 4, "per_unit": 0.25, "cap": 10},
        {"kind": "repetition_penalty", "ngram_size": 1, "weight": 3},
    ]
    async with (
        serve_judge(ScriptedEngine(script), MemoryLedger()) as judge,
        running(components, judge=judge) as settings,
    ):
        results = await ask(settings, lambda c: c.score(NAME, INPUTS, constitution=CONSTITUTION.name))
        state = await ask(settings, lambda c: c.get_reward_model(NAME))
    qualities = [reference_value(Path(members[0]), ASK, response) for response in RESPONSES]
    # Words 5, 5, 4, 0; repeated words: "water," twice of four ("water!" is another word), none elsewhere.
    lengths, repetitions = [-0.25, -0.25, 0.0, 0.0], [0.0, 0.0, -2 / 4, 0.0]
    for result, quality, length, repetition in zip(results, qualities, lengths, repetitions, strict=True):
        assert result.components == pytest.approx(
            {"quality": quality, "judge": JUDGED, "length_penalty": length, "repetition_penalty": repetition}, abs=1e-5
        )
        assert result.value == pytest.approx(2 * quality + 0.5 * JUDGED + length + 3 * repetition, abs=1e-5)
        assert [term.weight for term in result.terms] == [2.0, 0.5, 1.0, 3.0]
    assert [(each.component, each.kind, each.weight) for each in state.components] == [
        ("quality", "reward_model", 2.0),
        ("judge", "judge", 0.5),
        ("length_penalty", "length_penalty", 1.0),
        ("repetition_penalty", "repetition_penalty", 3.0),
    ]
    assert [member.digest for member in state.components[0].members] == [folder_digest(Path(members[0]))]


async def test_tokens_are_counted_by_the_trained_components_tokenizer(members: list[str]):
    from transformers import AutoTokenizer

    penalty = {"kind": "length_penalty", "unit": "tokens", "limit": 0, "per_unit": 1, "cap": 1000}
    async with running([{"kind": "reward_model", "members": members[:1]}, penalty]) as settings:
        results = await ask(settings, lambda c: c.score(NAME, INPUTS))
    tokenizer = AutoTokenizer.from_pretrained(members[0])
    counted = [len(tokenizer(response, add_special_tokens=False)["input_ids"]) for response in RESPONSES]
    assert [-result.components["length_penalty"] for result in results] == counted


@pytest.mark.parametrize("aggregation", ["mean", "worst_case", "uncertainty_weighted"])
async def test_an_ensemble_is_aggregated_as_its_settings_say(members: list[str], aggregation: str):
    weight = {"variance_weight": 0.5} if aggregation == "uncertainty_weighted" else {}
    component = {"kind": "reward_model", "members": members, "aggregation": aggregation, **weight}
    async with running([component]) as settings:
        (result,) = await ask(settings, lambda c: c.score(NAME, INPUTS[:1]))
        state = (await ask(settings, lambda c: c.get_reward_model(NAME))).components[0]
    values = [reference_value(Path(folder), *INPUTS[0]) for folder in members]
    mean = sum(values) / 3
    variance = sum((value - mean) ** 2 for value in values) / 3
    expected = {"mean": mean, "worst_case": min(values), "uncertainty_weighted": mean - 0.5 * variance}[aggregation]
    assert result.value == pytest.approx(expected, abs=1e-5)
    assert result.spread == pytest.approx(variance**0.5, abs=1e-5)
    assert (state.aggregation, state.variance_weight) == (aggregation, weight.get("variance_weight", 0.0))


# Of the three inputs of the test below: the judge scores the one that is too long for the other component.
OUTCOMES = {("counted", "scored"): 2, ("counted", "too_long"): 1, ("judge", "scored"): 2, ("judge", "abstained"): 1}


def counted(component: str, outcome: str) -> float:
    labels = {"component": component, "outcome": outcome}
    return REGISTRY.get_sample_value("rlaif_reward_rewards_total", labels) or 0.0


async def test_one_failed_component_leaves_no_reward_and_is_named(members: list[str]):
    components = [{"kind": "reward_model", "name": "counted", "members": members[:1]}, {"kind": "judge"}]
    before = {outcome: counted(*outcome) for outcome in OUTCOMES}
    async with (
        serve_judge(ScriptedEngine(script), MemoryLedger()) as judge,
        running(components, judge=judge) as settings,
    ):
        abstained, too_long, whole = await ask(
            settings,
            lambda c: c.score(
                NAME, [(ASK, "Mumble"), (ASK, "egg " * 200), (ASK, "Ten minutes.")], constitution=CONSTITUTION.name
            ),
        )
        with pytest.raises(InvalidInputError) as caught:
            await ask(settings, lambda c: c.score(NAME, INPUTS))
    assert (abstained.value, abstained.failure_reason, abstained.failed_component) == (None, "ABSTAINED", "judge")
    assert list(abstained.components) == ["counted"]
    assert (too_long.value, too_long.failure_reason, too_long.failed_component) == (None, "TOO_LONG", "counted")
    assert whole.value is not None
    assert caught.value.field == "constitution"
    assert {outcome: counted(*outcome) - before[outcome] for outcome in OUTCOMES} == OUTCOMES


async def test_a_judge_that_is_away_fails_the_call_and_is_no_number(members: list[str]):
    async with serve_judge(ScriptedEngine(script), MemoryLedger()) as judge:
        gone = judge
    message = conversation_pb2.Message(role=conversation_pb2.ROLE_USER, content="How?")
    request = reward_service_pb2.ScoreResponsesRequest(
        reward_model=NAME,
        inputs=[reward_service_pb2.ScoredInput(messages=[message], response="So.")],
        constitution=CONSTITUTION.name,
    )
    components = [{"kind": "reward_model", "members": members[:1]}, {"kind": "judge"}]
    # A channel without our client's retries.
    async with (
        running(components, judge=gone) as settings,
        grpc.aio.insecure_channel(settings.target) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await reward_service_pb2_grpc.RewardServiceStub(channel).ScoreResponses(request, timeout=25)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def fit(settings: ClientSettings, name: str, folder: Path, **options: Any) -> tuple[Path, Normalisation]:
    """A normalisation fitted on 60 replies, as a file."""
    inputs = [(ASK, f"Boil it {number} minutes{'!' * (number % 5)}") for number in range(60)]
    results = await ask(settings, lambda c: c.score_many(name, inputs, **options))
    terms = [result.terms[0] for result in results]
    (source,) = {term.source_sha256 for term in terms}
    fitted = fit_normalisation(
        [term.raw_value for term in terms],
        source_sha256=source,
        reference_sha256="0" * 64,
        component="judge" if name == JUDGE else "reward_model",
    )
    path = folder / "normalisation.json"
    path.write_text(json.dumps(fitted.to_json()))
    return path, fitted


async def test_a_normalised_component_is_told_and_applied_to_value_and_spread(members: list[str], tmp_path: Path):
    component = {"kind": "reward_model", "members": members[:2], "weight": 0.5}
    async with running([component]) as settings:
        path, fitted = await fit(settings, NAME, tmp_path)
        raw = await ask(settings, lambda c: c.score(NAME, INPUTS))
        assert (await ask(settings, lambda c: c.get_reward_model(NAME))).components[0].normalisation is None
    async with running([{**component, "normalisation": str(path)}]) as settings:
        scaled = await ask(settings, lambda c: c.score(NAME, INPUTS))
        state = (await ask(settings, lambda c: c.get_reward_model(NAME))).components[0]
    assert state.normalisation is not None
    assert (state.normalisation.mean, state.normalisation.sd) == (fitted.mean, fitted.sd)
    assert state.normalisation.num_inputs == 60
    for before, after in zip(raw, scaled, strict=True):
        expected = (before.components["reward_model"] - fitted.mean) / fitted.sd
        assert after.components["reward_model"] == pytest.approx(expected)
        assert after.value == pytest.approx(0.5 * expected)
        assert after.spread == pytest.approx(before.spread / fitted.sd)
        assert after.terms[0].raw_value == before.components["reward_model"]


async def test_a_normalisation_of_other_members_is_refused(members: list[str], tmp_path: Path):
    component = {"kind": "reward_model", "members": members[:2]}
    async with running([component]) as settings:
        path, _ = await fit(settings, NAME, tmp_path)
    for stale in (
        {**component, "members": members[1:]},
        {**component, "members": members[:1]},
        {**component, "aggregation": "worst_case"},
    ):
        with pytest.raises(SettingsError, match="stale"):
            async with running([{**stale, "normalisation": str(path)}]):
                pass
    async with running([{**component, "normalisation": str(path)}], allowed_roots=members) as settings:
        before = await ask(settings, lambda c: c.score(NAME, INPUTS))
        with pytest.raises(PreconditionError, match="stale"):
            await ask(settings, lambda c: c.load_reward_model(NAME, [ModelReference(members[2])]))
        assert await ask(settings, lambda c: c.score(NAME, INPUTS)) == before


async def test_a_judges_normalisation_is_bound_to_weights_template_and_constitution(tmp_path: Path):
    def by_length(context: str, question: str) -> Sequence[float]:
        score = len(context) % 5
        return [0.82 if index == score else 0.02 for index in range(10)]

    component = {"kind": "judge"}
    async with serve_judge(ScriptedEngine(by_length), MemoryLedger()) as judge:
        async with running([component], judge=judge) as settings:
            path, fitted = await fit(settings, JUDGE, tmp_path, constitution=CONSTITUTION.name, batch_size=4)
            (raw,) = await ask(settings, lambda c: c.score(JUDGE, INPUTS[:1], constitution=CONSTITUTION.name))
        async with running([{**component, "normalisation": str(path)}], judge=judge) as settings:
            (scaled,) = await ask(settings, lambda c: c.score(NAME, INPUTS[:1], constitution=CONSTITUTION.name))
    assert scaled.value == pytest.approx((raw.value - fitted.mean) / fitted.sd)
    async with (
        serve_judge(ScriptedEngine(by_length, digest="e" * 64), MemoryLedger()) as other,
        running([{**component, "normalisation": str(path)}], judge=other) as settings,
    ):
        with pytest.raises(PreconditionError, match="stale") as caught:
            await ask(settings, lambda c: c.score(NAME, INPUTS[:1], constitution=CONSTITUTION.name))
    assert caught.value.reason == "STALE_NORMALISATION"


async def test_loading_replaces_the_members_of_a_component_and_leaves_the_rest(members: list[str]):
    components = [
        {"kind": "reward_model", "name": "one", "members": members[:1], "weight": 2},
        {"kind": "reward_model", "name": "two", "members": members[1:], "aggregation": "worst_case"},
        {"kind": "repetition_penalty"},
    ]
    async with running(components) as settings:
        state = await ask(settings, lambda c: c.load_reward_model(NAME, [ModelReference(members[2])], component="one"))
        (result,) = await ask(settings, lambda c: c.score(NAME, INPUTS[:1]))
        cases = [
            ({"members": [ModelReference(members[2])]}, "component"),
            ({"members": [ModelReference(members[2])], "component": "repetition_penalty"}, "component"),
            ({"members": [ModelReference(members[2])], "component": "two"}, "members"),
        ]
        for arguments, field in cases:
            with pytest.raises(InvalidInputError) as caught:
                await ask(settings, lambda c, arguments=arguments: c.load_reward_model(NAME, **arguments))
            assert caught.value.field == field
    assert [member.uri for member in state.members] == [members[2], *members[1:]]
    one, lowest = (
        reference_value(Path(members[2]), *INPUTS[0]),
        min(reference_value(Path(folder), *INPUTS[0]) for folder in members[1:]),
    )
    assert result.value == pytest.approx(2 * one + lowest, abs=1e-5)


async def test_only_allowed_places_are_loaded_from(members: list[str], tmp_path: Path):
    elsewhere = shutil.copytree(members[0], tmp_path / "elsewhere")
    async with running([{"kind": "reward_model", "members": members[:1]}]) as settings:
        for uri in (str(elsewhere), "s3://bucket/model", "org/name"):
            with pytest.raises(InvalidInputError, match="allowed_roots") as caught:
                await ask(settings, lambda c, uri=uri: c.load_reward_model("rewardModels/new", [ModelReference(uri)]))
            assert (caught.value.field, caught.value.reason) == ("members[0].uri", "URI_NOT_ALLOWED")
        # What the settings name may be loaded under another name.
        await ask(settings, lambda c: c.load_reward_model("rewardModels/new", [ModelReference(members[0])]))
    async with running([{"kind": "reward_model", "members": members[:1]}], artifact_root=str(tmp_path)) as settings:
        await ask(settings, lambda c: c.load_reward_model("rewardModels/new", [ModelReference(str(elsewhere))]))


async def test_members_of_object_storage_are_fetched_and_checked(
    members: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path))
    store = open_store("memory://reward-members")
    uri, digest = store.publish_model(
        "policies/run", "reward-model/0", write=lambda folder: shutil.copytree(members[1], folder, dirs_exist_ok=True)
    )
    components = [{"kind": "reward_model", "members": members[:1]}]
    async with running(components, artifact_root="memory://reward-members") as settings:
        state = await ask(settings, lambda c: c.load_reward_model(NAME, [ModelReference(uri, digest)]))
        (result,) = await ask(settings, lambda c: c.score(NAME, INPUTS[:1]))
        with pytest.raises(InvalidInputError, match=digest) as caught:
            await ask(settings, lambda c: c.load_reward_model(NAME, [ModelReference(uri, "0" * 64)]))
        assert (caught.value.field, caught.value.reason) == ("members[0].digest", "DIGEST_MISMATCH")
        with pytest.raises(InvalidInputError, match="allowed_roots"):
            await ask(settings, lambda c: c.load_reward_model(NAME, [ModelReference(f"{uri}/../../other")]))
    assert state.members == (ModelReference(uri, folder_digest(Path(members[1]))),)
    assert result.value == pytest.approx(reference_value(Path(members[1]), *INPUTS[0]), abs=1e-5)


async def test_the_services_of_a_run_may_load_what_the_run_trains(members: list[str], tmp_path: Path):
    stack = StackSettings(
        folder=tmp_path,
        policy="policy",
        policy_name="policies/run",
        judge="judge",
        constitution="playground",
        template="compact",
        num_threads=1,
    )
    config = service_config(stack, "reward", {"judge": Announcement("judge", "127.0.0.1:1", None, 1)})
    trained = shutil.copytree(members[0], tmp_path / "models" / "reward-model" / "0")
    published = shutil.copytree(members[1], tmp_path / "artifacts" / "policies" / "run" / "models" / "0")
    reward = RewardSettings.model_validate(config)
    async with serving(make_service(reward), ListenSettings(metrics_address=None)) as server:
        settings = ClientSettings(target=server.address, timeout_seconds=30)
        references = [ModelReference(str(folder)) for folder in (trained, published)]
        state = await ask(settings, lambda c: c.load_reward_model("rewardModels/distilled", references))
        with pytest.raises(InvalidInputError, match="allowed_roots"):
            await ask(settings, lambda c: c.load_reward_model("rewardModels/distilled", [ModelReference(members[0])]))
    assert len(state.members) == 2


async def test_a_pickle_checkpoint_is_refused(members: list[str], tmp_path: Path):
    folder = shutil.copytree(members[0], tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    async with running([{"kind": "reward_model", "members": members[:1]}], allowed_roots=[str(tmp_path)]) as settings:
        with pytest.raises(InvalidInputError, match="pickle") as caught:
            await ask(settings, lambda c: c.load_reward_model(NAME, [ModelReference(str(folder))]))
    assert caught.value.field == "members[0].uri"


async def test_calls_in_flight_finish_on_the_members_they_began_with(members: list[str]):
    async with running([{"kind": "reward_model", "members": members[:1]}], allowed_roots=members) as settings:
        wanted = {
            folder: (await ask(settings, lambda c, f=folder: _load_and_score(c, f)))[0].value for folder in members
        }
        stop = asyncio.Event()

        def score(client: RewardClient) -> list[float | None]:
            # Several turns, so that reloads fall between them.
            return [result.value for result in client.score(NAME, INPUTS[:1] * 40)]

        async def keep_scoring() -> list[list[float | None]]:
            seen = []
            while not stop.is_set():
                seen.append(await ask(settings, score))
            return seen

        scoring = [asyncio.create_task(keep_scoring()) for _ in range(3)]
        for folder in members * 3:
            await ask(settings, lambda c, f=folder: c.load_reward_model(NAME, [ModelReference(f)]))
        stop.set()
        calls = [call for seen in await asyncio.gather(*scoring) for call in seen]
    assert calls
    for call in calls:
        # A batch holds 40 equal inputs: every value of a call is of one member.
        assert len({round(value, 4) for value in call if value is not None}) == 1
        assert any(call[0] == pytest.approx(value, abs=1e-4) for value in wanted.values())


def _load_and_score(client: RewardClient, folder: str) -> Any:
    client.load_reward_model(NAME, [ModelReference(folder)])
    return client.score(NAME, INPUTS[:1])
