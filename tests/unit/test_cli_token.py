"""`rlaif token`: the token goes to its holder, the row to the services, and neither where the other belongs."""

from __future__ import annotations

import io
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from rlaif.cli import main
from rlaif.runtime.tokens import find_token, parse_tokens


def test_a_new_token_is_shown_once_beside_a_row_that_knows_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.execute(["token", "new", "training", "--role", "trainer", "--role", "reader"]) == 0
    shown = capsys.readouterr()
    token = shown.err.strip().rpartition(" ")[2]
    assert token.startswith("rlaif_")
    assert token not in shown.out
    (row,) = parse_tokens(shown.out.encode(), source="standard output")
    assert (row.name, sorted(row.roles)) == ("training", ["reader", "trainer"])
    assert row.sha256 == sha256(token.encode()).hexdigest()
    assert find_token(token, [row]) is row
    assert find_token(token + "x", [row]) is None


def test_tokens_are_new_each_time_and_rows_append(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("123", "null", "a@b.example"):
        assert main.execute(["token", "new", name, "--role", "caller"]) == 0
    rows = parse_tokens(capsys.readouterr().out.encode(), source="standard output")
    assert [row.name for row in rows] == ["123", "null", "a@b.example"]
    assert len({row.sha256 for row in rows}) == 3


def test_a_token_can_go_to_a_file_that_its_owner_alone_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "token"
    arguments = ["token", "new", "judge", "--role", "trainer", "--token-file", str(path)]
    assert main.execute(arguments) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert path.stat().st_mode & 0o777 == 0o600
    assert main.execute(arguments) == 2
    assert "cannot write" in capsys.readouterr().err

    # What made the token does not matter: the row of one that exists is the same.
    assert main.execute(["token", "new", "judge", "--role", "trainer", "--existing", str(path)]) == 0
    assert capsys.readouterr().out == shown.out
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(path.read_bytes())))
    assert main.execute(["token", "new", "judge", "--role", "trainer", "--existing", "-"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(shown.out)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("new judge", "Missing option '--role'"),
        ("new judge --role king", "'king'"),
        ("new -judge- --role admin", "No such option"),
        ("new two+words --role admin", "name must be 1 to 63 letters"),
        ("new judge --role admin --existing /absent", "--existing: cannot read /absent"),
        ("new judge --role admin --existing a --token-file b", "exclude each other"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.execute(["token", *arguments.split()]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
