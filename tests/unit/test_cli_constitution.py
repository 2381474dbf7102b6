"""`rlaif constitution`: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlaif.cli import main
from rlaif.core.constitution import parse_constitution

INSTRUCTIONS = {"harmful0": {"prompt": ["Say what is rude."], "edit_request": "Take out what is rude."}}


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main.execute(["constitution", *map(str, arguments)])
    out = capsys.readouterr()
    return code, out.out, out.err


def read_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> object:
    code, out, _ = call(capsys, *arguments, "--json")
    assert code in (0, 1, 3)
    return json.loads(out)


def test_shipped_constitutions_are_listed_with_their_digests(capsys):
    rows = {row["name"]: row for row in read_json(capsys, "list")}
    assert set(rows) >= {f"constitutions/{name}" for name in ("code-review", "helpful-harmless", "playground")}
    assert "code-review" in call(capsys, "list")[1]
    assert rows["constitutions/playground"]["sha256"].startswith("de474962daa9")


def test_a_constitution_is_shown_with_its_weights(capsys):
    code, out, _ = call(capsys, "show", "helpful-harmless")
    assert code == 0
    for words in ("harmless", "42%", "2 exemplars", "critique"):
        assert words in out
    assert read_json(capsys, "show", "helpful-harmless")["principles"][0]["weight"] == 4


def test_files_are_validated_each_and_the_wrong_one_is_named(capsys, tmp_path: Path):
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("id: good\nprinciples: [{id: a, text: Prefer what is asked for.}]\n")
    bad.write_text("id: bad\nprinciples:\n  - id: a\n    text: Prefer it.\n    wieght: 2\n")
    code, out, err = call(capsys, "validate", bad, good)
    assert code == 2
    assert "valid" in out
    assert "constitutions/good version 1, 1 principles" in out
    assert f"{bad}:5: principles[0] has an unknown key 'wieght'" in err
    assert call(capsys, "validate", good)[0] == 0


def test_a_difference_is_shown_and_told_by_the_exit_code(capsys, tmp_path: Path):
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text("id: a\nprinciples: [{id: x, text: Prefer X., weight: 2}]\n")
    new.write_text("id: a\nprinciples: [{id: x, text: Prefer X., weight: 3}, {id: y, text: Prefer Y.}]\n")
    code, out, _ = call(capsys, "diff", old, new)
    assert code == 1
    for line in ("principles[x].weight changed", "- 2", "+ 3", "principles[y] added", "+ Prefer Y. (weight 1)"):
        assert line in out
    changes = read_json(capsys, "diff", old, new)["changes"]
    assert [(change["kind"], change["field"]) for change in changes] == [
        ("changed", "principles[x].weight"),
        ("added", "principles[y]"),
    ]
    code, out, _ = call(capsys, "diff", old, old)
    assert (code, out.startswith("the same: sha256")) == (0, True)


def test_an_audit_needs_no_model_and_can_stop_a_build(capsys, tmp_path: Path):
    rules = tmp_path / "rules.yaml"
    rules.write_text("id: a\nprinciples: [{id: safe, text: Prefer the less harmful response.}]\n")
    code, out, _ = call(capsys, "audit", rules)
    assert code == 0
    assert "no counter-weight" in " ".join(out.split())
    assert call(capsys, "audit", rules, "--strict")[0] == 3
    assert call(capsys, "audit", "helpful-harmless", "--strict")[0] == 0
    kinds = {finding["kind"] for finding in read_json(capsys, "audit", rules)["findings"]}
    assert {"missing_criterion", "validation"} <= kinds


def test_an_import_writes_a_constitution_that_validates(capsys, tmp_path: Path):
    source, out_path = tmp_path / "list.json", tmp_path / "made" / "manners.yaml"
    source.write_text(json.dumps(INSTRUCTIONS))
    code, out, _ = call(capsys, "import", source, "--id", "manners", "--out", out_path)
    assert code == 0
    assert "1 principles written" in out
    made = parse_constitution(out_path.read_text())
    assert (made.constitution_id, made.principles[0].revision) == ("manners", "Take out what is rude.")
    assert call(capsys, "validate", out_path)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("show", "unheard-of"), "no shipped constitution of that name; shipped are code-review"),
        (("import", "nowhere.txt", "--id", "x", "--out", "x.yaml"), "nowhere.txt: there is no such file"),
        (("import", "{list}", "--id", "Not An Id", "--out", "{dir}/x.yaml"), "--id Not An Id: must be lower-case"),
        (("import", "{list}", "--id", "x", "--out", "{list}"), "is there already"),
        (("import", "{list}", "--id", "x", "--out", "{list}/x.yaml"), "/x.yaml: cannot be written"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_exit_code_2(capsys, tmp_path: Path, arguments, sentence):
    path = tmp_path / "list.json"
    path.write_text(json.dumps(INSTRUCTIONS))
    filled = [argument.replace("{list}", str(path)).replace("{dir}", str(tmp_path)) for argument in arguments]
    code, _, err = call(capsys, *filled)
    assert code == 2
    assert sentence in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("verb", ["list", "show", "validate", "diff", "audit", "import"])
def test_every_verb_teaches_by_an_example(capsys, verb):
    code, out, _ = call(capsys, verb, "--help")
    assert code == 0
    assert f"rlaif constitution {verb}" in " ".join(out.split())
    assert "Example" in out
