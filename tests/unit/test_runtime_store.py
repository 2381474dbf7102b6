"""The store's promises on a folder and on object storage (fsspec's own, in memory)."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from rlaif.core.errors import CorruptionError, InvalidInputError, NotFoundError, SettingsError
from rlaif.runtime.artifacts import folder_digest
from rlaif.runtime.objects import ObjectStore
from rlaif.runtime.store import (
    ArtifactRoot,
    ArtifactStore,
    StorageOptions,
    fetch_model,
    is_remote,
    list_model_files,
    open_store,
)

POLICY = "policies/run-1"


def write_model(folder: Path, *, weights: bytes = b"weights") -> None:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("# Policy")


def writer(weights: bytes) -> Callable[[Path], None]:
    return lambda folder: write_model(folder, weights=weights)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def memory_root() -> str:
    return f"memory://{uuid.uuid4().hex}/runs"


@pytest.fixture(params=["folder", "file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, memory_root: str) -> ArtifactStore:
    roots = {"folder": str(tmp_path / "runs"), "file": f"file://{tmp_path}/runs", "memory": memory_root}
    return open_store(roots[request.param])


def test_a_published_version_is_read_and_fetched_whole(store: ArtifactStore) -> None:
    assert store.read_desired(POLICY) is None
    assert store.list_versions(POLICY) == []
    published = store.publish_version(POLICY, version=3, write=write_model)
    assert store.read_desired(POLICY) == published
    assert (published.policy, published.version) == (POLICY, 3)
    folder = store.fetch(published.uri, digest=published.digest)
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert folder_digest(folder) == published.digest
    assert fetch_model(published.uri) == folder


def test_a_wrong_digest_is_named_beside_the_right_one(store: ArtifactStore) -> None:
    published = store.publish_version(POLICY, version=1, write=write_model)
    with pytest.raises(CorruptionError, match="was published with digest") as caught:
        store.fetch(published.uri, digest="0" * 64)
    assert "0" * 64 in caught.value.message
    assert published.digest in caught.value.message


def test_old_versions_go_but_those_kept_and_the_desired_one_stay(store: ArtifactStore) -> None:
    for version in (0, 1, 2, 3, 5):
        store.publish_version(POLICY, version=version, write=writer(b"%d" % version))
    store.publish_version(POLICY, version=1, write=writer(b"again"))
    store.remove_versions_before(POLICY, 5, kept={2})
    assert store.list_versions(POLICY) == [1, 2, 5]
    store.remove_policy(POLICY)
    assert store.list_versions(POLICY) == []
    assert store.read_desired(POLICY) is None
    store.remove_policy(POLICY)


def test_models_beside_the_policy_are_fetched_like_versions(store: ArtifactStore) -> None:
    uri, digest = store.publish_model(POLICY, "reward_model/0", write=write_model)
    assert (store.fetch(uri, digest=digest) / "config.json").read_text() == "{}"
    store.remove_policy(POLICY)
    with pytest.raises(NotFoundError):
        open_store(uri).fetch(uri)


@pytest.mark.parametrize("name", ["..", "../x", "/x", "a//b", "", ".hidden", "a/../b"])
def test_a_model_name_cannot_leave_its_policy(store: ArtifactStore, name: str) -> None:
    with pytest.raises(InvalidInputError):
        store.publish_model(POLICY, name, write=write_model)


@pytest.mark.parametrize("policy", ["policies/../x", "run", "policies/", "policies/a/b", "policies/.hidden"])
def test_a_policy_name_cannot_leave_the_store(store: ArtifactStore, policy: str) -> None:
    for use in (store.read_desired, store.list_versions, store.remove_policy):
        with pytest.raises(InvalidInputError) as caught:
            use(policy)
        assert caught.value.field == "policy"


def test_a_write_that_fails_publishes_nothing(store: ArtifactStore, cache: Path) -> None:
    def fail(folder: Path) -> None:
        write_model(folder)
        raise OSError(5, "Input/output error")

    before = store.publish_version(POLICY, version=1, write=write_model)
    with pytest.raises(OSError, match="Input/output"):
        store.publish_version(POLICY, version=2, write=fail)
    assert store.read_desired(POLICY) == before
    assert store.list_versions(POLICY) == [1]
    assert not list(cache.glob("publishing-*"))


def test_an_adapter_is_identified_by_its_configuration_and_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"lora")
    digests = {folder_digest(tmp_path)}
    for name, text in (
        ("base.json", "{}"),
        ("adapter_config.json", '{"r": 8}'),
        ("adapter_config.json", '{"r": 4}'),
        ("base.json", '{"digest": "1"}'),
    ):
        (tmp_path / name).write_text(text)
        digests.add(folder_digest(tmp_path))
    assert len(digests) == 4  # base.json alone does not make an adapter


def test_the_digest_of_a_full_model_is_what_it_always_was(tmp_path: Path) -> None:
    write_model(tmp_path)
    expected = hashlib.sha256()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        expected.update(f"{name}\0{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}\n".encode())
    (tmp_path / "base.json").write_text("{}")
    assert folder_digest(tmp_path) == expected.hexdigest()


def test_an_adapter_travels_with_its_configuration_and_base(memory_root: str) -> None:
    def write(folder: Path) -> None:
        for name in ("adapter_config.json", "adapter_model.safetensors", "base.json"):
            (folder / name).write_text(name)

    published = open_store(memory_root).publish_version(POLICY, version=1, write=write)
    folder = fetch_model(published.uri, digest=published.digest)
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
    ]


def test_remote_versions_lie_under_their_content_and_the_pointer_comes_last(memory_root: str) -> None:
    store = open_store(memory_root)
    first = store.publish_version(POLICY, version=7, write=write_model)
    again = store.publish_version(POLICY, version=7, write=write_model)
    other = store.publish_version(POLICY, version=7, write=writer(b"other"))
    assert first == again
    assert other.uri != first.uri
    assert other.uri.startswith(f"{memory_root}/{POLICY}/versions/00000007/")
    manifest = json.loads(ObjectStore("memory").read(f"{other.uri}/manifest.json", start=0, end=9999))
    assert manifest["digest"] == other.digest
    assert [file["name"] for file in manifest["files"]] == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert manifest["files"][2] == {
        "name": "model.safetensors",
        "size_bytes": 5,
        "sha256": hashlib.sha256(b"other").hexdigest(),
    }
    # Who was told of the first before it was replaced still finds it.
    assert (fetch_model(first.uri, digest=first.digest) / "model.safetensors").read_bytes() == b"weights"


def test_only_what_a_model_needs_is_fetched(memory_root: str) -> None:
    published = open_store(memory_root).publish_version(POLICY, version=1, write=write_model)
    folder = fetch_model(published.uri)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


def put(uri: str, files: dict[str, bytes]) -> str:
    remote = ObjectStore("memory")
    for name, data in files.items():
        remote.write(f"{uri}/{name}", data)
    return uri


def test_a_folder_that_was_copied_there_without_a_manifest_works(memory_root: str, tmp_path: Path) -> None:
    write_model(tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    uri = put(f"{memory_root}/model", files | {"training_args.bin": b"pickle", "checkpoint/model.safetensors": b"old"})
    folder = fetch_model(uri, digest=folder_digest(tmp_path))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert list_model_files(uri) == ("config.json", "model.safetensors", "tokenizer.json")


def test_a_copied_folder_that_changed_is_fetched_again(memory_root: str) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"first"}
    assert (fetch_model(put(f"{memory_root}/model", files)) / "model.safetensors").read_bytes() == b"first"
    files["model.safetensors"] = b"other"
    assert (fetch_model(put(f"{memory_root}/model", files)) / "model.safetensors").read_bytes() == b"other"


def test_pickled_weights_are_refused(memory_root: str) -> None:
    uri = put(f"{memory_root}/model", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    with pytest.raises(InvalidInputError, match=r"only as pickle \(pytorch_model\.bin\)"):
        fetch_model(uri)
    with pytest.raises(InvalidInputError, match="is a pickle"):
        open_store(memory_root).publish_version(
            POLICY, version=1, write=lambda folder: (write_model(folder), (folder / "x.pt").touch())[0]
        )


def test_what_is_not_there_is_not_found(memory_root: str, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="holds nothing"):
        fetch_model(f"{memory_root}/nothing")
    with pytest.raises(NotFoundError, match="does not exist"):
        fetch_model(str(tmp_path / "nothing"))


@pytest.mark.parametrize("name", ["../../evil.json", "/etc/evil.json", "a/b.json", "..", "a\0.json", ""])
def test_a_manifest_that_leads_elsewhere_is_refused(memory_root: str, cache: Path, name: str) -> None:
    manifest = {"digest": "0" * 64, "files": [{"name": name, "size_bytes": 2, "sha256": "0" * 64}]}
    uri = put(f"{memory_root}/model", {"manifest.json": json.dumps(manifest).encode(), "evil.json": b"{}"})
    with pytest.raises(CorruptionError, match=r"manifest\.json"):
        fetch_model(uri)
    assert not cache.exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"digest": "1"}', '{"digest": "1", "files": [{"name": "a.json"}]}'])
def test_a_broken_manifest_is_corruption(memory_root: str, text: str) -> None:
    with pytest.raises(CorruptionError, match=r"manifest\.json"):
        fetch_model(put(f"{memory_root}/model", {"manifest.json": text.encode()}))


@pytest.mark.parametrize(
    "desired",
    [
        "",
        "{}",
        '{"policy": "policies/run-1", "version": 1, "uri": "../other", "digest": "1"}',
        '{"policy": "policies/run-1", "version": 1, "uri": "policies/run-1/versions/../../x", "digest": "1"}',
        '{"policy": "policies/run-1", "version": "x", "uri": "policies/run-1/versions/1/a", "digest": "1"}',
    ],
)
def test_a_broken_pointer_is_corruption(memory_root: str, desired: str) -> None:
    put(f"{memory_root}/{POLICY}", {"desired.json": desired.encode()})
    with pytest.raises(CorruptionError, match=r"desired\.json"):
        open_store(memory_root).read_desired(POLICY)


def test_bytes_that_changed_on_the_store_are_refused_and_not_kept(memory_root: str, cache: Path) -> None:
    published = open_store(memory_root).publish_version(POLICY, version=1, write=write_model)
    put(published.uri, {"model.safetensors": b"wEights"})
    with pytest.raises(CorruptionError) as caught:
        fetch_model(published.uri, digest=published.digest)
    for data in (b"weights", b"wEights"):
        assert hashlib.sha256(data).hexdigest() in caught.value.message
    put(published.uri, {"model.safetensors": b"weights"})
    assert folder_digest(fetch_model(published.uri)) == published.digest


def test_a_cached_copy_that_was_altered_is_fetched_again(memory_root: str) -> None:
    published = open_store(memory_root).publish_version(POLICY, version=1, write=write_model)
    folder = fetch_model(published.uri)
    (folder / "model.safetensors").write_bytes(b"wEights")
    assert (fetch_model(published.uri) / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize(
    ("root", "match"),
    [
        ("ftp://host/x", "is not understood"),
        ("s3://", "names no bucket"),
        ("s3://key:secret@bucket/x", "credentials do not belong"),
        ("s3://bucket/../x", "may hold no"),
        ("gs://bucket/x?y", "may hold no"),
    ],
)
def test_a_wrong_root_is_refused_before_anything_connects(root: str, match: str) -> None:
    with pytest.raises(InvalidInputError, match=match) as caught:
        open_store(root)
    assert "secret" not in caught.value.message
    assert caught.value.field == "artifact_root"
    with pytest.raises(InvalidInputError, match=match) as caught:
        fetch_model(root)
    assert caught.value.field == "model"
    with pytest.raises(ValidationError, match=match):
        TypeAdapter(ArtifactRoot).validate_python(root)


def test_settings_take_folders_and_uris(tmp_path: Path) -> None:
    adapter = TypeAdapter(ArtifactRoot)
    assert adapter.validate_python(tmp_path) == str(tmp_path)
    assert adapter.validate_python("s3://bucket/runs/") == "s3://bucket/runs"
    assert [is_remote(uri) for uri in ("s3://b/x", "gs://b", "memory://x", "file:///x", "/x", "org/model")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(
    "options",
    [{"key": "AKIA"}, {"secret": "x"}, {"token": "x"}, {"client_kwargs": {"aws_secret_access_key": "x"}}],
)
def test_secrets_in_settings_are_refused_by_name_only(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="looks like a secret") as caught:
        open_store("s3://bucket/x", storage_options=options)
    assert "AKIA" not in caught.value.message
    with pytest.raises(ValidationError, match="looks like a secret"):
        TypeAdapter(StorageOptions).validate_python(options)


def test_other_options_are_taken() -> None:
    options = {"endpoint_url": "http://127.0.0.1:9000", "s3_additional_kwargs": {"SSEKMSKeyId": "alias/models"}}
    assert TypeAdapter(StorageOptions).validate_python(options) == options


@pytest.mark.parametrize(("root", "package", "extra"), [("s3://b/x", "s3fs", "s3"), ("gs://b/x", "gcsfs", "gcs")])
def test_a_missing_library_is_told_with_the_extra_that_brings_it(root: str, package: str, extra: str) -> None:
    program = (
        f"import sys\nsys.modules[{package!r}] = None\nfrom rlaif.core.errors import SettingsError\n"
        f"from rlaif.runtime.store import open_store\n"
        f"try:\n    open_store({root!r}).read_desired({POLICY!r})\nexcept SettingsError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert f"needs {package}, which is not installed: pip install 'kube-rlaif[{extra}]'" in done.stdout


@pytest.mark.parametrize("modules", ["rlaif.client", "rlaif.runtime.store, rlaif.sampler.settings"])
def test_neither_clients_nor_settings_load_file_systems(modules: str) -> None:
    program = f"import sys, {modules}\nprint(*[name for name in ('fsspec', 's3fs', 'gcsfs') if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
