"""Files that may be replaced while a process runs: whatever is in them, the last good value stays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from rlaif.core.errors import SettingsError
from rlaif.runtime.watched_files import FreshFiles, WatchedFiles


def number(contents: Mapping[str, bytes]) -> int:
    """As a parser that fails with errors of its own."""
    return int(contents["number_path"])


def test_what_a_parser_did_not_foresee_leaves_the_old_value_and_repeats_nothing_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "number"
    path.write_text("1")
    files = WatchedFiles({"number_path": path}, number)
    path.write_text("hush")
    with pytest.raises(SettingsError) as caught:
        files.refresh()
    assert caught.value.message == f"{path} cannot be used: ValueError"
    assert files.value == 1
    path.write_text("2")
    assert files.refresh()
    assert files.value == 2


def test_a_client_goes_on_with_the_last_good_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlaif.runtime.watched_files._LOOK_SECONDS", 0)
    path = tmp_path / "number"
    path.write_text("1")
    fresh = FreshFiles(WatchedFiles({"number_path": path}, number))
    for content, value in (("hush", 1), ("2", 2), ("", 2)):
        path.write_text(content)
        assert fresh.value() == value
    path.unlink()
    assert fresh.value() == 2
