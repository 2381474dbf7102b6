from __future__ import annotations

from pathlib import Path

import pytest

from rlaif.core.errors import CorruptionError, InvalidInputError, NotFoundError
from rlaif.runtime import artifacts

POLICY = "policies/run-1"


def write_model(folder: Path, *, weights: bytes = b"weights") -> None:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "tokenizer.json").write_text("{}")


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    artifacts.atomic_write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        artifacts.atomic_write_text(path, "\ud800")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_a_failed_folder_write_leaves_the_old_folder_and_no_rest(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "part").write_text("half")
        raise OSError(28, "No space left on device")

    artifacts.atomic_write_folder(tmp_path / "model", write_model)
    with pytest.raises(OSError, match="No space"):
        artifacts.atomic_write_folder(tmp_path / "model", fail)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    assert not (tmp_path / "model" / "part").exists()


def test_the_digest_follows_weights_config_and_tokenizer_only(tmp_path: Path) -> None:
    write_model(tmp_path)
    digest = artifacts.folder_digest(tmp_path)
    assert len(digest) == 64
    (tmp_path / "training.json").write_text("{}")
    assert artifacts.folder_digest(tmp_path) == digest
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    with_template = artifacts.folder_digest(tmp_path)
    assert with_template != digest
    (tmp_path / "model.safetensors").write_bytes(b"other")
    assert artifacts.folder_digest(tmp_path) != with_template


def test_a_folder_without_weights_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"no \.safetensors file"):
        artifacts.folder_digest(tmp_path)
    with pytest.raises(NotFoundError):
        artifacts.folder_digest(tmp_path / "absent")


def test_a_published_version_is_what_replicas_read(tmp_path: Path) -> None:
    assert artifacts.read_desired(tmp_path, POLICY) is None
    published = artifacts.publish_version(tmp_path, POLICY, version=3, write=write_model)
    assert artifacts.read_desired(tmp_path, POLICY) == published
    assert Path(published.uri) == artifacts.version_folder(tmp_path, POLICY, version=3)
    assert published.digest == artifacts.folder_digest(Path(published.uri))


def test_a_policy_store_can_be_moved(tmp_path: Path) -> None:
    artifacts.publish_version(tmp_path / "here", POLICY, version=0, write=write_model)
    (tmp_path / "here").rename(tmp_path / "there")
    desired = artifacts.read_desired(tmp_path / "there", POLICY)
    assert desired is not None
    assert artifacts.folder_digest(Path(desired.uri)) == desired.digest


def test_publishing_a_version_again_replaces_it(tmp_path: Path) -> None:
    first = artifacts.publish_version(tmp_path, POLICY, version=1, write=write_model)
    second = artifacts.publish_version(
        tmp_path, POLICY, version=1, write=lambda folder: write_model(folder, weights=b"other")
    )
    assert first.digest != second.digest
    assert [entry.name for entry in Path(second.uri).parent.iterdir()] == ["00000001"]


@pytest.mark.parametrize("policy", ["policies/../x", "run", "policies/", "policies/a/b", "policies/.hidden"])
def test_a_policy_name_cannot_leave_the_store(tmp_path: Path, policy: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        artifacts.read_desired(tmp_path, policy)
    assert caught.value.field == "policy"


def test_a_broken_pointer_is_corruption(tmp_path: Path) -> None:
    artifacts.atomic_write_text(tmp_path / POLICY / "desired.json", '{"policy": ')
    with pytest.raises(CorruptionError, match=r"desired\.json"):
        artifacts.read_desired(tmp_path, POLICY)
