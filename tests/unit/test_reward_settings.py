"""How reward models are described, what is refused, and from where one may be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlaif.core.errors import InvalidInputError, SettingsError
from rlaif.reward.recipes import TrainedSettings
from rlaif.reward.roots import AllowedRoots
from rlaif.reward.settings import RewardSettings
from rlaif.runtime.settings import load_settings

RECIPE = """
judge: {target: "127.0.0.1:1"}
reward_models:
  plain: [one, two]
  helpful:
    components:
      - {kind: reward_model, name: quality, members: [one, two], aggregation: uncertainty_weighted, variance_weight: 1}
      - {kind: judge, weight: 0.5}
      - {kind: length_penalty, unit: tokens, limit: 200, per_unit: 0.01, cap: 1}
      - {kind: repetition_penalty, weight: 2}
"""


def read(tmp_path: Path, text: str) -> RewardSettings:
    path = tmp_path / "reward.yaml"
    path.write_text(text)
    return load_settings(RewardSettings, path)


def test_a_recipe_and_its_short_form_are_read(tmp_path: Path):
    settings = read(tmp_path, RECIPE)
    (plain,) = settings.reward_models["plain"].components
    assert plain == TrainedSettings(kind="reward_model", name="reward_model", members=["one", "two"])
    helpful = settings.reward_models["helpful"].components
    assert [(each.name, each.weight) for each in helpful] == [
        ("quality", 1.0),
        ("judge", 0.5),
        ("length_penalty", 1.0),
        ("repetition_penalty", 2.0),
    ]


TRAINED = "{kind: reward_model, members: [a, b]}"


@pytest.mark.parametrize(
    ("components", "words"),
    [
        ("[]", "at least 1 item"),
        ("[{kind: magic}]", "magic"),
        ("[{kind: reward_model}]", "members is required"),
        ("[{kind: reward_model, members: []}]", "at least 1 item"),
        ("[{kind: reward_model, members: ['']}]", "at least 1 character"),
        ("[{kind: reward_model, members: [a, b, c, d, e, f, g, h, i]}]", "at most 8 items"),
        ("[{kind: reward_model, members: [a], agregation: mean}]", "did you mean aggregation?"),
        ("[{kind: reward_model, members: [a, b], weight: .nan}]", "finite"),
        ("[{kind: reward_model, members: [a, b], weight: .inf}]", "finite"),
        ("[{kind: reward_model, members: [a], aggregation: worst_case}]", "needs 2 or more members"),
        ("[{kind: reward_model, members: [a, b], aggregation: uncertainty_weighted}]", "needs a variance_weight"),
        ("[{kind: reward_model, members: [a, b], variance_weight: 0.5}]", "not of mean"),
        ("[{kind: reward_model, members: [a, b], name: 'No Good'}]", "pattern"),
        (f"[{TRAINED}, {TRAINED}]", "2 components are named reward_model"),
        ("[{kind: judge}, {kind: judge, name: again}]", "two components are the judge"),
        ("[{kind: judge, aggregation: mean}]", "unknown key"),
        ("[{kind: length_penalty, limit: 5, per_unit: 0.1}]", "cap is required"),
        ("[{kind: length_penalty, limit: 5, per_unit: -0.1, cap: 1}]", "greater than 0"),
        ("[{kind: length_penalty, limit: 5, per_unit: .nan, cap: 1}]", "per_unit"),
        ("[{kind: length_penalty, limit: 5, per_unit: 0.1, cap: 1, weight: -1}]", "makes the penalty a bonus"),
        ("[{kind: length_penalty, limit: 5, per_unit: 0.1, cap: 1, unit: tokens}]", "needs a reward_model component"),
        ("[{kind: length_penalty, limit: 5, per_unit: 0.1, cap: 1, normalisation: n.json}]", "unknown key"),
        ("[{kind: repetition_penalty, ngram_size: 0}]", "greater than or equal to 1"),
    ],
)
def test_wrong_components_are_refused_by_what_is_wrong(tmp_path: Path, components: str, words: str):
    text = f"judge: {{target: '127.0.0.1:1'}}\nreward_models: {{helpful: {{components: {components}}}}}\n"
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, text)
    assert words in caught.value.message
    assert "reward_models.helpful" in caught.value.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("reward_models: {judge: [a]}", "judge is the direct judge"),
        ("reward_models: {'a/b': [a]}", "is no name"),
        ("reward_models: {x: {components: [{kind: judge}]}}", "no judge is set"),
    ],
)
def test_wrong_reward_models_are_refused(tmp_path: Path, text: str, words: str):
    with pytest.raises(SettingsError, match=words):
        read(tmp_path, text)


def test_only_what_is_below_a_root_may_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root, other = tmp_path / "root", tmp_path / "other"
    (root / "model").mkdir(parents=True)
    (other / "model").mkdir(parents=True)
    (root / "link").symlink_to(other / "model")
    monkeypatch.chdir(tmp_path)
    roots = AllowedRoots([str(root), "s3://bucket/models/", "org/name", "relative"])
    for allowed in (
        str(root),
        f"{root}/model",
        f"file://{root}/model",
        "./root/model",
        "root/model",
        "s3://bucket/models/one",
        "org/name",
        "relative/one",
    ):
        roots.check(allowed, field="members[0].uri")
    for refused in (
        f"{other}/model",
        f"{root}/../other/model",
        f"{root}/link",
        f"{root}-2/model",
        "other/model",
        "s3://bucket/models-2/one",
        "s3://bucket/models/../secrets",
        "s3://bucket/models/%2e%2e/secrets",
        "s3://other/models/one",
        "org/name-2",
        "org/other",
        "/etc",
        "",
    ):
        with pytest.raises(InvalidInputError) as caught:
            roots.check(refused, field="members[0].uri")
        assert caught.value.field == "members[0].uri"
        assert caught.value.reason == "URI_NOT_ALLOWED"
        assert "allowed_roots" in caught.value.message


def test_without_roots_nothing_may_be_loaded(tmp_path: Path):
    with pytest.raises(InvalidInputError, match="none"):
        AllowedRoots([]).check(str(tmp_path), field="members[0].uri")
