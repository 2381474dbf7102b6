from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import Field

from rlaif.core.errors import SettingsError
from rlaif.runtime.settings import (
    ClientSettings,
    ListenSettings,
    SettingsModel,
    load_settings,
    read_token,
    settings_from_command_line,
)


class ExampleSettings(SettingsModel):
    listen: ListenSettings = ListenSettings()
    peers: dict[str, ClientSettings] = Field(default_factory=dict)
    model: str


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "example.yaml"
    path.write_text(text)
    return path


def test_an_override_wins_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "model: a\nlisten: {drain_seconds: 5}\n")
    settings = load_settings(ExampleSettings, path, ["model=b", "listen.address=0.0.0.0:1", "peers.x.target=host:1"])
    assert settings.model == "b"
    assert settings.listen.drain_seconds == 5
    assert settings.listen.address == "0.0.0.0:1"
    assert settings.peers["x"].target == "host:1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("listen: {adress: x}\nmodel: a", "unknown key listen.adress; did you mean address?"),
        ("peers: {x: {target: h, zzz: 1}}\nmodel: a", "unknown key peers.x.zzz; known keys: target, tls_ca_path"),
        ("{}", "model is required"),
        ("model: a\nlisten: {drain_seconds: -1}", "listen.drain_seconds: Input should be greater than or equal to 0"),
        ("model: a\nlisten: {default_deadline_seconds: .nan}", "listen.default_deadline_seconds"),
        ("model: a\nmodel: b", "line 1: key 'model' is given twice"),
        ("model: [", "line 1"),
        ("- a", "must hold keys and values"),
    ],
)
def test_wrong_settings_name_file_key_and_fix(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        load_settings(ExampleSettings, path)
    assert str(path) in caught.value.message
    assert message in caught.value.message


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent\.yaml does not exist"):
        load_settings(ExampleSettings, tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"model: \xe9")
    with pytest.raises(SettingsError, match="not UTF-8"):
        load_settings(ExampleSettings, tmp_path / "latin.yaml")


@pytest.mark.parametrize("override", ["model", "=x", "model.deep=1", "model=[", "model=2026-13-45", "listen=3"])
def test_wrong_overrides_are_refused(override: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError):
        load_settings(ExampleSettings, write(tmp_path, "model: a"), [override])


def test_the_token_comes_from_file_or_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLAIF_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("RLAIF_TOKEN", "from-environment")
    assert read_token(None) == "from-environment"
    (tmp_path / "token").write_text("from-file\n")
    assert read_token(tmp_path / "token") == "from-file"
    (tmp_path / "token").write_text("")
    with pytest.raises(SettingsError, match="printable ASCII"):
        read_token(tmp_path / "token")
    with pytest.raises(SettingsError, match="cannot read"):
        read_token(tmp_path / "absent")


def test_wrong_settings_end_the_process_with_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        settings_from_command_line(ExampleSettings, program="example", arguments=["--config", str(tmp_path / "no")])
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"example: settings file {tmp_path / 'no'} does not exist\n"


def test_a_process_that_does_not_serve_yet_ends_when_told_to_even_as_the_first_of_a_container() -> None:
    program = """
import sys
from rlaif.runtime.settings import ListenSettings, settings_from_command_line
settings_from_command_line(ListenSettings, program="toy")
print("still importing", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # as the kernel does for the first process, unless it handles the signal
        preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"still importing\n"
        process.terminate()
        try:
            assert process.wait(timeout=30) == 128 + signal.SIGTERM
        finally:
            process.kill()
