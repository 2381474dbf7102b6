"""Weight synchronisation: what stands in its way is told, nothing hangs, and a replica that stays behind says so."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from adapter_fixtures import write_adapter
from model_fixtures import model_folder as model_folder
from model_fixtures import other_model_folder as other_model_folder
from model_fixtures import write_model
from rlaif.client.sampler import SampledBatch, SamplerClient
from rlaif.core.conversation import Message
from rlaif.core.errors import CorruptionError, DeadlineError, PreconditionError, RlaifError
from rlaif.engine.protocol import GenerateRequest
from rlaif.engine.settings import EngineSettings
from rlaif.runtime.artifacts import folder_digest, version_folder
from rlaif.runtime.server import serving
from rlaif.runtime.settings import ClientSettings
from rlaif.runtime.telemetry import REGISTRY
from rlaif.sampler.servicer import SamplerServicer
from sampler_fixtures import POLICY, ask, publish, sampler_process, settings_for, until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@asynccontextmanager
async def sampler(model: Path, root: Path, **settings: object) -> AsyncIterator[tuple[SamplerServicer, ClientSettings]]:
    values = settings_for(model, root, **settings)
    servicer, service = sampler_process(values)
    async with serving(service, values.listen) as server:
        yield servicer, ClientSettings(target=server.address)


def sample(client: SamplerClient, **options: Any) -> SampledBatch:
    values = {"num_completions": 2, "max_tokens": 6, "seed": 1} | options
    return client.sample(POLICY, [(Message("user", "Hi"),)], **values)


def corrupt(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\1\2\3")


async def health_of(target: ClientSettings) -> int:
    async with grpc.aio.insecure_channel(target.target) as channel:
        return (await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())).status


async def until_health(target: ClientSettings, status: int) -> None:
    async with asyncio.timeout(60):
        while await health_of(target) != status:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_replica_that_stays_behind_is_not_ready_until_it_has_caught_up(
    model_folder: Path,
    other_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("rlaif.runtime.server._READINESS_SECONDS", 0.02)
    caplog.set_level("INFO")
    times = {"sync_poll_seconds": 0.02, "sync_deadline_seconds": 3.0}
    async with sampler(model_folder, tmp_path, **times) as (servicer, target):
        sync = servicer.parts.sync
        assert (sync.unready(), sync.behind_seconds, await health_of(target)) == ("", 0.0, SERVING)
        publish(tmp_path, other_model_folder, version=1)
        await until(lambda: sync.identity.version == 1)
        publish(tmp_path, model_folder, version=2)
        folder = version_folder(tmp_path, POLICY, version=2)
        whole = (folder / "model.safetensors").read_bytes()
        corrupt(folder)
        publish_again = tmp_path / POLICY / "desired.json"
        desired = json.loads(publish_again.read_text())
        publish_again.write_text(json.dumps(desired | {"version": 3, "digest": "0" * 64}))

        # Behind, it serves on and refuses only what needs more; past the deadline it is not ready.
        await until(lambda: sync.desired_version == 3)
        assert sync.unready() == ""
        with pytest.raises(PreconditionError) as caught:
            await ask(target, lambda client: sample(client, min_policy_version=3))
        assert caught.value.reason == "POLICY_VERSION_BEHIND"
        await until_health(target, NOT_SERVING)
        assert sync.behind_seconds > 3.0
        assert "version 3 was published" in sync.unready()
        assert "digest" in sync.unready()
        assert (await ask(target, sample)).completions[0][0].policy_version in (1, 2)
        assert REGISTRY.get_sample_value("rlaif_sampler_policy_behind_seconds") > 3.0  # type: ignore[operator]
        failures = REGISTRY.get_sample_value("rlaif_sampler_policy_sync_failures_total", {"reason": "DATA_CORRUPTION"})
        assert failures is not None
        assert failures >= 1

        (folder / "model.safetensors").write_bytes(whole)
        publish_again.write_text(json.dumps(desired | {"version": 3}))
        await until_health(target, SERVING)
        await until(lambda: sync.identity.version == 3)
        assert sync.behind_seconds == 0.0
    not_ready = [record for record in caplog.records if record.getMessage() == "service is not ready"]
    assert len(not_ready) == 1
    assert "was published with digest" in not_ready[0].rlaif_fields["cause"]  # type: ignore[attr-defined]
    assert any(record.getMessage() == "service is ready again" for record in caplog.records)
    failed = [record.rlaif_fields["error"] for record in caplog.records if record.getMessage() == "policy not synced"]  # type: ignore[attr-defined]
    assert len(failed) == len(set(failed))


def another_architecture(root: Path, base: Path) -> None:
    publish(root, write_model(root / "deep", num_hidden_layers=1), version=1)


def another_base(root: Path, base: Path) -> None:
    folder = write_adapter(root / "adapter", base=base)
    (folder / "base.json").write_text(json.dumps({"digest": "1" * 64}))
    publish(root, folder, version=1)


def pickled(root: Path, base: Path) -> None:
    publish(root, base, version=1)
    folder = version_folder(root, POLICY, version=1)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def spoiled(spoil: Callable[[Path], object]) -> Callable[[Path, Path], None]:
    def publish_spoiled(root: Path, base: Path) -> None:
        publish(root, base, version=1)
        spoil(version_folder(root, POLICY, version=1))

    return publish_spoiled


def undigested(root: Path, base: Path) -> None:
    publish(root, base, version=1)
    (root / POLICY / "desired.json").write_text('{"version": "one"}')


CAUSES: dict[str, tuple[Callable[[Path, Path], None], type[RlaifError], str, str]] = {
    "digest mismatch": (spoiled(corrupt), CorruptionError, "DATA_CORRUPTION", "was published with digest"),
    "no weights": (
        spoiled(lambda folder: (folder / "model.safetensors").unlink()),
        PreconditionError,
        "NO_WEIGHTS",
        "holds no .safetensors",
    ),
    "pickle": (pickled, PreconditionError, "NO_WEIGHTS", r"pickle.*save them as safetensors"),
    "no folder": (spoiled(shutil.rmtree), PreconditionError, "POLICY_NOT_LOADABLE", "does not exist"),
    "another architecture": (another_architecture, PreconditionError, "POLICY_NOT_LOADABLE", "another architecture"),
    "adapter of another base": (another_base, PreconditionError, "ADAPTER_BASE_MISMATCH", "was opened with"),
    "garbage": (undigested, CorruptionError, "DATA_CORRUPTION", "is not a published version"),
}


async def test_load_policy_tells_what_is_wrong_with_a_version_and_the_old_one_is_served_on(
    model_folder: Path, tmp_path: Path
) -> None:
    for name, (spoil, kind, reason, sentence) in CAUSES.items():
        root = tmp_path / name
        root.mkdir()
        async with sampler(model_folder, root) as (_, target):
            before = await ask(target, sample)
            await asyncio.to_thread(spoil, root, model_folder)
            with pytest.raises(kind, match=sentence) as caught:
                await ask(target, lambda client: client.load_policy(POLICY, min_version=1))
            assert caught.value.reason == reason, name
            assert await ask(target, sample) == before, name
            # Published again as it should be, it is served.
            publish(root, model_folder, version=2)
            assert (await ask(target, lambda client: client.load_policy(POLICY, min_version=2))).version == 2


async def test_adapters_and_full_weights_follow_each_other(
    model_folder: Path, other_model_folder: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter", base=model_folder)
    async with sampler(model_folder, tmp_path) as (_, target):
        said = {0: await ask(target, sample)}
        for version, folder in enumerate((adapter, other_model_folder, adapter, model_folder), start=1):
            digest = publish(tmp_path, folder, version=version)
            state = await ask(target, lambda client, version=version: client.load_policy(POLICY, min_version=version))
            assert (state.version, state.digest) == (version, digest)
            said[version] = await ask(target, sample)
            assert said[version].completions[0][0].policy_version == version
    tokens = {version: [c.token_ids for c in batch.completions[0]] for version, batch in said.items()}
    assert tokens[0] == tokens[4]
    assert tokens[1] == tokens[3]
    assert len({str(tokens[version]) for version in (0, 1, 2)}) == 3


async def test_load_policy_says_at_its_deadline_what_it_waited_for(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sampler(model_folder, tmp_path) as (servicer, target):

        def load(client: SamplerClient) -> Any:
            return client.load_policy(POLICY, min_version=5, timeout_seconds=1.0)

        with pytest.raises(DeadlineError, match="the newest version published is 0") as caught:
            await ask(target, load)
        assert caught.value.reason == "POLICY_VERSION_BEHIND"
        publish(tmp_path, model_folder, version=3)
        with pytest.raises(DeadlineError, match="the newest version published is 3"):
            await ask(target, load)
        assert servicer.parts.sync.identity.version == 3

        def gone(*_: object) -> None:
            raise OSError("the disk has gone away")

        monkeypatch.setattr(type(servicer.parts.sync._store), "read_desired", gone)
        with pytest.raises(DeadlineError, match="the disk has gone away"):
            await ask(target, load)


async def test_storage_that_hangs_is_an_error_and_is_asked_again_once_it_answers(
    model_folder: Path, other_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sampler(model_folder, tmp_path, sync_deadline_seconds=0.2) as (servicer, target):
        answers, asked = threading.Event(), 0
        store = type(servicer.parts.sync._store)
        whole = store.read_desired

        def hang(self: Any, policy: str) -> Any:
            nonlocal asked
            asked += 1
            answers.wait(60)
            return whole(self, policy)

        monkeypatch.setattr(store, "read_desired", hang)
        publish(tmp_path, other_model_folder, version=1)
        with pytest.raises(DeadlineError, match="reading what is published has not ended"):
            await ask(target, lambda client: client.load_policy(POLICY, min_version=1, timeout_seconds=2.0))
        # No second thread waits beside the first.
        assert asked == 1
        assert (await ask(target, sample)).completions[0][0].policy_version == 0
        answers.set()
        assert (await ask(target, lambda client: client.load_policy(POLICY, min_version=1))).version == 1


@pytest.mark.parametrize("continuous", [False, True])
async def test_requests_in_flight_finish_on_the_old_version_and_say_so(
    model_folder: Path, other_model_folder: Path, tmp_path: Path, continuous: bool
) -> None:
    engine = EngineSettings(num_threads=1, continuous_batching=continuous)
    async with sampler(model_folder, tmp_path, engine=engine) as (servicer, target):
        long = {"num_completions": 16, "max_tokens": 200, "temperature": 5.0}
        expected = [await ask(target, lambda client: sample(client, **long)), await ask(target, sample)]
        running = asyncio.create_task(ask(target, lambda client: sample(client, **long)))
        await until(lambda: servicer.parts.engine.usage.running_completions > 0)
        publish(tmp_path, other_model_folder, version=1)
        state = await ask(target, lambda client: client.load_policy(POLICY, min_version=1))
        assert state.version == 1
        old = await running
        new = await ask(target, sample)
    assert {completion.policy_version for group in old.completions for completion in group} == {0}
    assert [[c.token_ids for c in group] for group in old.completions] == [
        [c.token_ids for c in group] for group in expected[0].completions
    ]
    assert {completion.policy_version for group in new.completions for completion in group} == {1}
    assert new.completions != expected[1].completions


async def test_a_swap_that_waits_too_long_lets_the_others_go_on_and_is_tried_again(
    model_folder: Path, other_model_folder: Path, tmp_path: Path
) -> None:
    async with sampler(model_folder, tmp_path, sync_deadline_seconds=0.3) as (servicer, target):
        queue = servicer.parts.queue
        inside, leave = asyncio.Event(), asyncio.Event()

        async def occupy() -> None:
            async with queue._gate.reading():
                inside.set()
                await leave.wait()

        occupied = asyncio.create_task(occupy())
        await inside.wait()
        publish(tmp_path, other_model_folder, version=1)
        with pytest.raises(DeadlineError, match=r"requests in flight did not end within 0\.3 s"):
            await servicer.parts.sync.look()
        # Nobody waits behind the swap any more, though the request that held it up is still there.
        waiting = asyncio.create_task(queue.sample([GenerateRequest((9, 10), 1, 2)]))
        leave.set()
        assert (await waiting).identity.version == 0
        await occupied
        assert (await ask(target, lambda client: client.load_policy(POLICY, min_version=1))).version == 1


async def test_a_caller_who_goes_away_does_not_stop_the_swap(
    model_folder: Path, other_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sampler(model_folder, tmp_path) as (servicer, _):
        sync, started, goes_on = servicer.parts.sync, threading.Event(), threading.Event()
        store = type(sync._store)
        whole = store.fetch

        def slow(self: Any, *arguments: Any, **options: Any) -> Any:
            started.set()
            goes_on.wait(60)
            return whole(self, *arguments, **options)

        monkeypatch.setattr(store, "fetch", slow)
        digest = publish(tmp_path, other_model_folder, version=1)
        looks = [asyncio.create_task(sync.look()) for _ in range(3)]
        await asyncio.to_thread(started.wait, 60)
        looks[0].cancel()
        goes_on.set()
        await asyncio.gather(*looks, return_exceptions=True)
        await until(lambda: sync.identity.version == 1)
        assert sync.identity.digest == digest == folder_digest(other_model_folder)
