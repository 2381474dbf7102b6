"""The store on a real S3 server, over a wire that fails as wires do."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from adapter_fixtures import write_adapter
from model_fixtures import model_folder as model_folder
from model_fixtures import other_model_folder as other_model_folder
from rlaif.client.sampler import SamplerClient
from rlaif.core.conversation import Message
from rlaif.core.errors import (
    CorruptionError,
    ForbiddenError,
    NotFoundError,
    RlaifError,
    UnauthenticatedError,
    UnavailableError,
)
from rlaif.runtime import objects
from rlaif.runtime.artifacts import PublishedVersion, folder_digest
from rlaif.runtime.server import serving
from rlaif.runtime.settings import ClientSettings, ListenSettings
from rlaif.runtime.store import ArtifactStore, fetch_model, open_store
from rlaif.sampler.process import make_service
from rlaif.sampler.settings import SamplerSettings
from rlaif_pipelines.training.config.common import PublishSettings
from rlaif_pipelines.training.config.rl import RlTraining
from rlaif_pipelines.training.model import open_base
from rlaif_pipelines.training.publishing import publish_adapter
from rlaif_pipelines.training.rl import train
from s3_server import Wire, enforce_permissions, new_client, s3_server
from training_fakes import FakeRewards, prompt, write_lines

POLICY = "policies/run-1"
MEBIBYTE = 1024 * 1024

FETCH = """
import sys
from rlaif.runtime.store import fetch_model
print(fetch_model(sys.argv[1], digest=sys.argv[2]))
"""


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with s3_server(tmp_path_factory.mktemp("s3") / "server.log") as port:
        yield port


@pytest.fixture
def wire(port: int) -> Iterator[Wire]:
    wire = Wire(port)
    yield wire
    wire.close()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def environment(wire: Wire, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As a pod has it: credentials and endpoint in the environment."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": wire.url,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "RLAIF_CACHE": str(cache),
        "RLAIF_STORE_TIMEOUT_SECONDS": "20",
    }.items():
        monkeypatch.setenv(name, value)
    objects.forget_connections()
    yield
    objects.forget_connections()


@pytest.fixture
def bucket(port: int) -> str:
    name = f"b{uuid.uuid4().hex}"
    new_client("s3", f"http://127.0.0.1:{port}").create_bucket(Bucket=name)
    return name


@pytest.fixture
def root(environment: None, bucket: str) -> str:
    return f"s3://{bucket}/runs"


@pytest.fixture
def store(root: str) -> ArtifactStore:
    return open_store(root)


def writer(weights: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        (folder / "tokenizer.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(weights)

    return write


def copier(source: Path) -> Callable[[Path], Any]:
    return lambda folder: shutil.copytree(source, folder, dirs_exist_ok=True)


def start_fetch(uri: str, digest: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", FETCH, uri, digest], stdout=subprocess.PIPE, text=True)


def test_a_version_is_published_read_and_fetched(store: ArtifactStore, root: str) -> None:
    assert store.read_desired(POLICY) is None
    weights = os.urandom(3 * MEBIBYTE)
    published = store.publish_version(POLICY, version=12, write=writer(weights))
    assert published.uri.startswith(f"{root}/{POLICY}/versions/00000012/")
    assert store.read_desired(POLICY) == published
    folder = store.fetch(published.uri, digest=published.digest)
    assert (folder / "model.safetensors").read_bytes() == weights
    assert folder_digest(folder) == published.digest
    assert store.list_versions(POLICY) == [12]


def test_a_file_of_several_parts_arrives_whole(store: ArtifactStore) -> None:
    weights = os.urandom(MEBIBYTE) * 60  # s3fs sends more than 50 MiB in parts
    published = store.publish_version(POLICY, version=1, write=writer(weights))
    folder = store.fetch(published.uri, digest=published.digest)
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).digest() == hashlib.sha256(weights).digest()


def test_two_trainers_publish_side_by_side_and_neither_sees_the_other(root: str) -> None:
    policies = ("policies/one", "policies/two")

    def train(policy: str) -> None:
        store = open_store(root)
        for version in range(6):
            store.publish_version(policy, version=version, write=writer(f"{policy} {version}".encode()))
            store.remove_versions_before(policy, version - 1)

    def follow(policy: str) -> list[bytes]:
        store, seen = open_store(root), list[bytes]()
        while not seen or not seen[-1].endswith(b" 5"):
            desired = store.read_desired(policy)
            if desired is not None:
                folder = store.fetch(desired.uri, digest=desired.digest)
                seen.append((folder / "model.safetensors").read_bytes())
                assert seen[-1] == f"{policy} {desired.version}".encode()
        return seen

    with ThreadPoolExecutor() as pool:
        trainers = [pool.submit(train, policy) for policy in policies]
        followers = [pool.submit(follow, policy) for policy in policies]
        for future in trainers:
            future.result()
        for policy, future in zip(policies, followers, strict=True):
            assert all(text.startswith(policy.encode()) for text in future.result())
    assert [open_store(root).list_versions(policy) for policy in policies] == [[4, 5], [4, 5]]


def test_replacing_a_version_leaves_a_fetch_of_the_old_one_alone(store: ArtifactStore, wire: Wire) -> None:
    old = os.urandom(12 * MEBIBYTE)
    first = store.publish_version(POLICY, version=1, write=writer(old))
    wire.mend()
    wire.cut_after = 9 * MEBIBYTE
    with pytest.raises(UnavailableError):
        store.fetch(first.uri, digest=first.digest)
    wire.mend()
    second = store.publish_version(POLICY, version=1, write=writer(os.urandom(MEBIBYTE)))
    assert second.uri != first.uri
    assert (store.fetch(first.uri, digest=first.digest) / "model.safetensors").read_bytes() == old


def test_a_fetch_killed_half_way_goes_on_where_it_was(store: ArtifactStore, wire: Wire, cache: Path) -> None:
    published = store.publish_version(POLICY, version=1, write=writer(os.urandom(40 * MEBIBYTE)))
    wire.mend()
    wire.stall_after = 26 * MEBIBYTE
    with start_fetch(published.uri, published.digest) as child:
        while not (parts := [*cache.glob("*.part/model.safetensors")]) or parts[0].stat().st_size < 16 * MEBIBYTE:
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
    kept = parts[0].stat().st_size
    wire.mend()
    folder = fetch_model(published.uri, digest=published.digest)
    assert folder_digest(folder) == published.digest
    assert wire.num_bytes < 40 * MEBIBYTE - kept + MEBIBYTE


def test_two_processes_fetch_the_same_model_once(store: ArtifactStore, wire: Wire) -> None:
    published = store.publish_version(POLICY, version=1, write=writer(os.urandom(24 * MEBIBYTE)))
    wire.mend()
    with start_fetch(published.uri, published.digest) as one, start_fetch(published.uri, published.digest) as other:
        folders = {child.communicate()[0] for child in (one, other)}
    assert len(folders) == 1
    assert folder_digest(Path(folders.pop().strip())) == published.digest
    assert wire.num_bytes < 25 * MEBIBYTE


def test_a_server_that_goes_away_is_an_error_and_once_back_the_fetch_goes_on(store: ArtifactStore, wire: Wire) -> None:
    published = store.publish_version(POLICY, version=1, write=writer(os.urandom(40 * MEBIBYTE)))
    wire.mend()
    wire.cut_after = 20 * MEBIBYTE
    with pytest.raises(UnavailableError, match=rf"{published.uri}/model\.safetensors: the store cannot be reached"):
        store.fetch(published.uri, digest=published.digest)
    for use in (
        lambda: store.fetch(published.uri, digest=published.digest),
        lambda: store.read_desired(POLICY),
        lambda: store.publish_version(POLICY, version=2, write=writer(b"x")),
    ):
        with pytest.raises(UnavailableError) as caught:
            use()
        assert "\n" not in caught.value.message
    wire.mend()
    assert store.read_desired(POLICY) == published
    assert folder_digest(store.fetch(published.uri, digest=published.digest)) == published.digest
    assert wire.num_bytes < 33 * MEBIBYTE


def test_a_server_that_stops_answering_is_an_error_within_the_deadline(
    store: ArtifactStore, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = store.publish_version(POLICY, version=1, write=writer(b"weights"))
    monkeypatch.setenv("RLAIF_STORE_TIMEOUT_SECONDS", "1")
    impatient = open_store(store.root)
    wire.stall_after = 0
    for use in (
        lambda: impatient.read_desired(POLICY),
        lambda: impatient.fetch(published.uri),
        lambda: impatient.publish_version(POLICY, version=2, write=writer(b"x")),
        lambda: impatient.list_versions(POLICY),
    ):
        with pytest.raises(UnavailableError):
            use()
    wire.mend()
    assert store.read_desired(POLICY) == published


def test_an_object_that_was_altered_is_refused(store: ArtifactStore, port: int, bucket: str, cache: Path) -> None:
    published = store.publish_version(POLICY, version=1, write=writer(b"weights"))
    client = new_client("s3", f"http://127.0.0.1:{port}")
    key = f"{published.uri.removeprefix(f's3://{bucket}/')}/model.safetensors"
    client.put_object(Bucket=bucket, Key=key, Body=b"wEights")
    with pytest.raises(CorruptionError) as caught:
        store.fetch(published.uri, digest=published.digest)
    for data in (b"weights", b"wEights"):
        assert hashlib.sha256(data).hexdigest() in caught.value.message
    assert not list(cache.glob("*/model.safetensors"))
    client.put_object(Bucket=bucket, Key=key, Body=b"weights")
    assert folder_digest(store.fetch(published.uri, digest=published.digest)) == published.digest


def test_a_model_copied_there_by_other_tools_is_fetched(
    environment: None, port: int, bucket: str, model_folder: Path
) -> None:
    client = new_client("s3", f"http://127.0.0.1:{port}")
    for path in model_folder.iterdir():
        client.upload_file(str(path), bucket, f"models/tiny/{path.name}")
    client.put_object(Bucket=bucket, Key="models/tiny/training_args.bin", Body=b"pickle")
    for folder in ("models/", "models/tiny/", "models/tiny/old/"):
        client.put_object(Bucket=bucket, Key=folder, Body=b"")
    folder = fetch_model(f"s3://{bucket}/models/tiny", digest=folder_digest(model_folder))
    assert folder_digest(folder) == folder_digest(model_folder)
    assert not (folder / "training_args.bin").exists()
    assert open_base(f"s3://{bucket}/models/tiny").digest == folder_digest(model_folder)


def test_a_missing_bucket_and_a_missing_model_are_not_found(environment: None, root: str) -> None:
    missing = open_store("s3://there-is-no-such-bucket/runs")
    for use in (
        lambda: missing.read_desired(POLICY),
        lambda: missing.publish_version(POLICY, version=1, write=writer(b"x")),
        lambda: missing.list_versions(POLICY),
        lambda: missing.fetch("s3://there-is-no-such-bucket/model"),
    ):
        with pytest.raises(NotFoundError, match="bucket does not exist"):
            use()
    with pytest.raises(NotFoundError, match="holds nothing"):
        fetch_model(f"{root}/model")


def test_who_may_not_is_told_so(
    tmp_path_factory: pytest.TempPathFactory, environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(tmp_path_factory.mktemp("s3") / "server.log") as port:
        url = f"http://127.0.0.1:{port}"
        new_client("s3", url).create_bucket(Bucket="models")
        iam = new_client("iam", url)
        iam.create_user(UserName="nobody")
        key = iam.create_access_key(UserName="nobody")["AccessKey"]
        enforce_permissions(url, enforced=True)
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        objects.forget_connections()
        store = open_store("s3://models/runs")
        for use in (
            lambda: store.read_desired(POLICY),
            lambda: store.publish_version(POLICY, version=1, write=writer(b"x")),
            lambda: store.fetch("s3://models/m"),
        ):
            with pytest.raises(ForbiddenError, match=r"s3://models/.*: access denied") as caught:
                use()
            assert key["SecretAccessKey"] not in caught.value.message


def test_without_credentials_nothing_is_tried(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    objects.forget_connections()
    with pytest.raises(UnauthenticatedError, match="no credentials"):
        open_store(root).read_desired(POLICY)


def test_credentials_in_a_mounted_file_and_an_endpoint_in_settings_do(
    root: str, wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    mounted = tmp_path / "credentials"
    mounted.write_text("[default]\naws_access_key_id = test\naws_secret_access_key = test\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(mounted))
    objects.forget_connections()
    store = open_store(root, storage_options={"endpoint_url": wire.url})
    published = store.publish_version(POLICY, version=1, write=writer(b"weights"))
    assert store.read_desired(POLICY) == published


async def test_a_replica_follows_the_versions_that_a_trainer_publishes(
    root: str, store: ArtifactStore, wire: Wire, model_folder: Path, other_model_folder: Path
) -> None:
    base = await in_thread(lambda: store.publish_version("policies/base", version=0, write=copier(model_folder)))
    settings = SamplerSettings.model_validate(
        {
            "model": base.uri,
            "policy": POLICY,
            "artifact_root": root,
            "sync_poll_seconds": 3600.0,
            "engine": {"num_threads": 1},
            "listen": ListenSettings(metrics_address=None),
        }
    )
    async with serving(make_service(settings), settings.listen) as server:
        target = ClientSettings(target=server.address)
        first = await asks(target, lambda client: client.get_policy(POLICY))
        assert (first.version, first.digest) == (0, folder_digest(model_folder))
        published = await in_thread(lambda: store.publish_version(POLICY, version=3, write=copier(other_model_folder)))
        state = await asks(target, lambda client: client.load_policy(POLICY, min_version=3))
        assert (state.version, state.digest) == (3, published.digest)
        assert {each.policy_version for each in await asks(target, sample)} == {3}

        await in_thread(lambda: store.publish_version(POLICY, version=4, write=copier(model_folder)))
        wire.cut()
        with pytest.raises(RlaifError):
            await asks(target, lambda client: client.load_policy(POLICY, timeout_seconds=3))
        assert {each.policy_version for each in await asks(target, sample)} == {3}
        wire.mend()
        assert (await asks(target, lambda client: client.load_policy(POLICY, min_version=4))).version == 4


async def test_a_training_waits_for_a_store_that_is_away_and_leaves_what_is_needed(
    root: str, wire: Wire, model_folder: Path, tmp_path: Path
) -> None:
    sampler = SamplerSettings.model_validate(
        {
            "model": str(model_folder),
            "policy": POLICY,
            "artifact_root": root,
            "engine": {"num_threads": 1},
            "listen": ListenSettings(metrics_address=None),
        }
    )

    def away(call: int, index: int) -> str:
        if (call, index) == (3, 0):
            wire.cut()
            threading.Timer(1.0, wire.mend).start()
        return ""

    async with serving(make_service(sampler), sampler.listen) as server:
        training = RlTraining.model_validate(
            {
                "out": tmp_path / "out",
                "policy": str(model_folder),
                "publish": {"artifact_root": root, "policy": POLICY},
                "prompts": write_lines(tmp_path / "prompts.jsonl", [prompt(number) for number in range(8)]),
                "sampler": {"target": server.address, "timeout_seconds": 5.0},
                "rewards": {"target": "unused"},
                "reward": {"name": "rewardModels/fake"},
                "num_steps": 5,
                "prompts_per_step": 2,
                "group_size": 4,
                "quorum": 2,
                "max_tokens": 8,
                "guards": {"kl": {"limit": None}},
                "engine": {"num_threads": 1, "attention": "eager"},
                "failures": {"outage_seconds": 60.0, "pause_seconds": 0.1},
            }
        )

        def run() -> dict[str, Any]:
            with SamplerClient(training.sampler) as client:
                return train(training, sampler=client, rewards=FakeRewards(fails=away))

        results = await in_thread(run)
        served = await asks(training.sampler, lambda client: client.get_policy(POLICY))
    store = open_store(root)
    assert (results["version"], served.version) == (5, 5)
    assert results["digest"] == served.digest == folder_digest(tmp_path / "out" / "model")
    assert store.read_desired(POLICY) == PublishedVersion(POLICY, 5, served.uri, served.digest)
    assert store.list_versions(POLICY) == [0, 4, 5]


async def test_a_replica_puts_on_an_adapter_that_is_published_and_refuses_that_of_another_base(
    root: str, model_folder: Path, other_model_folder: Path, tmp_path: Path
) -> None:
    adapter = await in_thread(lambda: write_adapter(tmp_path / "adapter", base=model_folder, seed=3))
    (adapter / "base.json").unlink()
    sampler = SamplerSettings.model_validate(
        {
            "model": str(model_folder),
            "policy": POLICY,
            "artifact_root": root,
            "sync_poll_seconds": 3600.0,
            "engine": {"num_threads": 1},
            "listen": ListenSettings(metrics_address=None),
        }
    )
    publishing = PublishSettings(artifact_root=root, policy=POLICY)

    def publish(version: int, base: Path) -> PublishedVersion:
        opened = open_base(str(base))
        return publish_adapter(version=version, settings=publishing, base=opened, write=copier(adapter))

    async with serving(make_service(sampler), sampler.listen) as server:
        target = ClientSettings(target=server.address)
        plain = await asks(target, sample)
        published = await in_thread(lambda: publish(1, model_folder))
        state = await asks(target, lambda client: client.load_policy(POLICY, min_version=1))
        assert (state.version, state.digest) == (1, published.digest)
        adapted = await asks(target, sample)
        assert {each.policy_version for each in adapted} == {1}
        assert [each.logprobs for each in adapted] != [each.logprobs for each in plain]

        await in_thread(lambda: publish(2, other_model_folder))
        with pytest.raises(RlaifError) as caught:
            await asks(target, lambda client: client.load_policy(POLICY, min_version=2, timeout_seconds=10))
        assert caught.value.reason == "ADAPTER_BASE_MISMATCH"
        assert [each.logprobs for each in await asks(target, sample)] == [each.logprobs for each in adapted]


def test_the_cache_holds_what_it_may_and_fetches_again_what_it_let_go(
    store: ArtifactStore, wire: Wire, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLAIF_CACHE_MAX_BYTES", str(3 * MEBIBYTE + 1000))
    versions = [
        store.publish_version(POLICY, version=version, write=writer(os.urandom(MEBIBYTE))) for version in range(5)
    ]
    for published in versions:
        store.fetch(published.uri, digest=published.digest)
        assert sum(path.stat().st_size for path in cache.rglob("*.safetensors")) <= 3 * MEBIBYTE
    wire.mend()
    store.fetch(versions[4].uri, digest=versions[4].digest)
    assert wire.num_bytes == 0
    assert folder_digest(store.fetch(versions[0].uri, digest=versions[0].digest)) == versions[0].digest
    assert wire.num_bytes > MEBIBYTE


def test_an_adapter_is_published_with_the_base_it_belongs_to(root: str, model_folder: Path) -> None:
    base = open_base(str(model_folder))

    def write(folder: Path) -> None:
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
        (folder / "adapter_model.safetensors").write_bytes(b"lora")

    settings = PublishSettings(artifact_root=root, policy=POLICY)
    published = publish_adapter(version=5, settings=settings, base=base, write=write)
    folder = fetch_model(published.uri, digest=published.digest)
    assert json.loads((folder / "base.json").read_text()) == {"digest": base.digest}
    assert not list(folder.glob("model*.safetensors"))


async def in_thread(work: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(work)


async def asks(target: ClientSettings, use: Callable[[SamplerClient], Any]) -> Any:
    def run() -> Any:
        with SamplerClient(target) as client:
            return use(client)

    return await asyncio.to_thread(run)


def sample(client: SamplerClient) -> list[Any]:
    batch = client.sample(POLICY, [(Message("user", "Hi"),)], num_completions=2, max_tokens=6, seed=1)
    return [completion for completions in batch.completions for completion in completions]
