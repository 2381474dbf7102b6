"""What a run publishes outside its folder, and models that users name by URI."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest

from rlaif.cli.inputs import find_model
from rlaif.cli.published import check_unpublished, remove_published
from rlaif.cli.run_inputs import check_inputs
from rlaif.core.errors import InvalidInputError, SettingsError
from rlaif.runtime.store import open_store
from rlaif_pipelines.context import RunContext
from rlaif_pipelines.settings import RunSettings, ServiceAddresses, make_settings
from rlaif_pipelines.stages.prepare import create_run


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["memory", "folder"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{uuid.uuid4().hex}/runs" if request.param == "memory" else str(tmp_path / "published")


def write_model(folder: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")


def settings_of(root: str | None, out: Path) -> RunSettings:
    return make_settings({"out": out, "artifact_root": root})


def test_a_policy_that_another_run_published_is_not_taken_for_ones_own(root: str, tmp_path: Path) -> None:
    settings = settings_of(root, tmp_path / "run")
    check_unpublished(settings)
    open_store(root).publish_version(settings.policy_name, version=4, write=write_model)
    with pytest.raises(InvalidInputError, match=f"version 4 of {settings.policy_name}") as caught:
        check_unpublished(settings)
    assert caught.value.field == "--artifact-root"
    check_unpublished(make_settings({"out": tmp_path, "artifact_root": root, "seed": 1}))
    check_unpublished(settings_of(None, tmp_path))


def test_a_restart_removes_what_the_folders_run_published_and_nothing_else(root: str, tmp_path: Path) -> None:
    settings, store = settings_of(root, tmp_path / "run"), open_store(root)
    for policy in (settings.policy_name, "policies/other"):
        store.publish_version(policy, version=1, write=write_model)
    remove_published(tmp_path / "empty")
    assert store.list_versions(settings.policy_name) == [1]
    create_run(settings, ServiceAddresses())
    remove_published(tmp_path / "run")
    assert store.list_versions(settings.policy_name) == []
    assert store.list_versions("policies/other") == [1]
    (tmp_path / "run" / "run.json").write_text("{")
    remove_published(tmp_path / "run")


def test_where_models_are_published_shapes_neither_the_name_of_the_policy_nor_a_run_in_its_folder(
    root: str, tmp_path: Path
) -> None:
    inside, outside = settings_of(None, tmp_path), settings_of(root, tmp_path)
    assert inside.policy_name == outside.policy_name
    for settings, expected in ((inside, str(tmp_path / "artifacts")), (outside, root)):
        assert RunContext(tmp_path, settings, ServiceAddresses()).artifact_root == expected


def test_a_run_from_before_this_setting_is_continued(tmp_path: Path) -> None:
    create_run(settings_of(None, tmp_path), ServiceAddresses())
    record = json.loads((tmp_path / "run.json").read_text())
    del record["settings"]["artifact_root"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert RunContext.load(tmp_path).artifact_root == str(tmp_path / "artifacts")


def test_a_folder_to_publish_to_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given in ("published", f"file://{tmp_path}/published"):
        checked = check_inputs({"out": tmp_path / "run", "artifact_root": given}, changes=[])
        assert checked.settings.artifact_root == str(tmp_path / "published")


@pytest.mark.parametrize("given", ["ftp://host/x", "s3://", "s3://key:secret@bucket/x"])
def test_a_wrong_place_to_publish_to_is_told(tmp_path: Path, given: str) -> None:
    with pytest.raises(SettingsError, match="artifact_root") as caught:
        check_inputs({"out": tmp_path / "run", "artifact_root": given}, changes=[])
    assert "secret" not in caught.value.message


def test_a_model_on_object_storage_is_looked_at_but_not_fetched(tmp_path: Path) -> None:
    store = open_store(f"memory://{uuid.uuid4().hex}")
    uri, _ = store.publish_model("policies/x", "judge", write=write_model)
    found = find_model(uri, option="--judge", playground=tmp_path)
    assert (found.uri, found.local) == (uri, True)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]
    broken, _ = store.publish_model("policies/x", "broken", write=lambda folder: (folder / "a.safetensors").touch())
    with pytest.raises(InvalidInputError, match=r"--judge .*: has no config\.json and no tokenizer"):
        find_model(broken, option="--judge", playground=tmp_path)
    with pytest.raises(InvalidInputError, match=r"--policy memory://.* holds nothing"):
        find_model(f"{store.root}/nothing", option="--policy", playground=tmp_path)
