"""The cache on this machine's disk: once, resumed, bounded, and nothing in use is taken away."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlaif.core.errors import CorruptionError, SettingsError, UnavailableError
from rlaif.runtime import artifact_cache
from rlaif.runtime.artifact_cache import ArtifactCache, RemoteFile

NAME = "model.safetensors"
MEBIBYTE = 1024 * 1024

HOLDER = """
import sys
from pathlib import Path
from rlaif.runtime.artifact_cache import ArtifactCache, RemoteFile
files = [RemoteFile("model.safetensors", 10, tag=sys.argv[2])]
ArtifactCache(Path(sys.argv[1]), 100).fetch("s3://b/m", files, read=lambda *_: b"0123456789", check=lambda _: None)
print("held", flush=True)
sys.stdin.read()
"""


class Source:
    """A model of one file; remembers which ranges were asked for, and fails when told to."""

    def __init__(self, data: bytes, *, known: bool = True) -> None:
        self.data, self.ranges = data, list[tuple[int, int]]()
        sha256 = hashlib.sha256(data).hexdigest()
        self.files = [RemoteFile(NAME, len(data), sha256 if known else "", "" if known else sha256)]
        self.fails: Callable[[int], Exception | None] = lambda start: None

    def read(self, name: str, start: int, end: int) -> bytes:
        assert name == NAME
        if (error := self.fails(start)) is not None:
            raise error
        self.ranges.append((start, end))
        return self.data[start:end]

    def fetch(self, cache: ArtifactCache, check: Callable[[Path], None] = lambda folder: None) -> Path:
        return cache.fetch("s3://bucket/model", self.files, read=self.read, check=check)


@pytest.fixture(autouse=True)
def nothing_held() -> Iterator[None]:
    yield
    for lock in artifact_cache._held.values():
        lock.release()
    artifact_cache._held.clear()


def cache_of(tmp_path: Path, *, max_bytes: int = 1000 * MEBIBYTE) -> ArtifactCache:
    return ArtifactCache(tmp_path / "cache", max_bytes)


def entries(cache: ArtifactCache) -> set[bytes]:
    return {(folder / NAME).read_bytes() for folder in cache.root.iterdir() if (folder / NAME).is_file()}


def test_what_was_fetched_is_not_fetched_again(tmp_path: Path) -> None:
    source, cache = Source(b"0123456789"), cache_of(tmp_path)
    assert (source.fetch(cache) / NAME).read_bytes() == source.data
    assert source.fetch(cache) == source.fetch(cache)
    assert source.ranges == [(0, 10)]


def test_an_interrupted_fetch_goes_on_where_it_stopped(tmp_path: Path) -> None:
    source, cache = Source(os.urandom(20 * MEBIBYTE)), cache_of(tmp_path)
    source.fails = lambda start: UnavailableError("gone") if start >= 16 * MEBIBYTE else None
    with pytest.raises(UnavailableError, match="gone"):
        source.fetch(cache)
    source.fails, source.ranges = lambda start: None, []
    assert (source.fetch(cache) / NAME).read_bytes() == source.data
    assert source.ranges == [(16 * MEBIBYTE, 20 * MEBIBYTE)]


def test_a_part_with_wrong_bytes_is_fetched_anew(tmp_path: Path) -> None:
    source, cache = Source(os.urandom(10 * MEBIBYTE)), cache_of(tmp_path)
    source.fails = lambda start: UnavailableError("gone") if start else None
    with pytest.raises(UnavailableError):
        source.fetch(cache)
    (part,) = cache.root.glob("*.part")
    (part / NAME).write_bytes(b"\0" * MEBIBYTE)
    source.fails = lambda start: None
    assert (source.fetch(cache) / NAME).read_bytes() == source.data


def test_bytes_that_are_not_those_published_are_refused_and_both_digests_named(tmp_path: Path) -> None:
    source, cache = Source(b"0123456789"), cache_of(tmp_path)
    source.data = b"0123456780"
    with pytest.raises(CorruptionError) as caught:
        source.fetch(cache)
    for data in (b"0123456789", b"0123456780"):
        assert hashlib.sha256(data).hexdigest() in caught.value.message
    assert not entries(cache)


def test_a_file_that_shrinks_while_it_is_fetched_is_told(tmp_path: Path) -> None:
    source, cache = Source(b"0123456789"), cache_of(tmp_path)
    source.data = b"01234"
    with pytest.raises(UnavailableError, match="changed while it was fetched"):
        source.fetch(cache)


def test_the_least_recently_used_is_evicted_first(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, max_bytes=40)
    sources = [Source(bytes([65 + number]) * 10) for number in range(5)]
    for number, source in enumerate(sources[:4]):
        folder = source.fetch(cache)
        os.utime(folder.with_name(f"{folder.name}.lock"), (number, number))
    folder = sources[0].fetch(cache)  # used again; this process now holds A and D
    os.utime(folder.with_name(f"{folder.name}.lock"), (4, 4))
    sources[4].fetch(cache)
    assert entries(cache) == {source.data for source in (sources[0], *sources[2:])}


def test_what_this_process_fetched_last_is_never_evicted(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, max_bytes=25)
    first, second, third = (Source(letter * 10) for letter in (b"a", b"b", b"c"))
    folder = first.fetch(cache)
    second.fetch(cache)
    with pytest.raises(UnavailableError, match="the rest is in use") as caught:
        third.fetch(cache)
    assert caught.value.reason == "CACHE_FULL"
    assert entries(cache) == {first.data, second.data}
    assert artifact_cache.is_held(folder)


def test_what_another_process_uses_is_not_evicted_until_it_ends(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, max_bytes=15)
    cache.root.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(cache.root), "one"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        source = Source(b"abcdefghij")
        with pytest.raises(UnavailableError, match="the rest is in use"):
            source.fetch(cache)
        holder.stdin.close()
        assert holder.wait() == 0
    source.fetch(cache)
    assert entries(cache) == {source.data}


def test_a_model_larger_than_the_cache_is_refused_before_it_is_fetched(tmp_path: Path) -> None:
    source = Source(b"0123456789")
    with pytest.raises(SettingsError, match="RLAIF_CACHE_MAX_BYTES"):
        source.fetch(cache_of(tmp_path, max_bytes=9))
    assert source.ranges == []


def test_a_disk_without_room_is_told_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=9))
    source, cache = Source(b"0123456789"), cache_of(tmp_path)
    with pytest.raises(UnavailableError, match="does not fit the disk") as caught:
        source.fetch(cache)
    assert caught.value.reason == "DISK_FULL"
    assert source.ranges == []
    assert not list(cache.root.glob("*.part"))


def test_a_disk_that_fills_up_leaves_nothing_half_written(tmp_path: Path) -> None:
    program = """
import resource, signal, sys
from pathlib import Path
from rlaif.core.errors import UnavailableError
from rlaif.runtime.artifact_cache import ArtifactCache, RemoteFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
files = [RemoteFile("config.json", 2, tag="1"), RemoteFile("model.safetensors", 4 << 20, tag="1")]
read = lambda name, start, end: b" " * (end - start)
try:
    ArtifactCache(Path(sys.argv[1]), 1 << 30).fetch("s3://b/m", files, read=read, check=lambda _: None)
except UnavailableError as error:
    print(error.reason, error.message)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("DISK_FULL s3://b/m does not fit the disk of the cache")
    assert len(done.stdout.splitlines()) == 1
    assert [path.suffix for path in tmp_path.iterdir() if path.is_dir()] == []


def test_other_faults_of_the_disk_stay_what_they_are(tmp_path: Path) -> None:
    source = Source(b"0123456789")
    source.fails = lambda start: OSError(errno.EIO, "Input/output error")
    with pytest.raises(OSError, match="Input/output"):
        source.fetch(cache_of(tmp_path))


def test_a_killed_publisher_leaves_nothing_once_another_publishes(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom rlaif.runtime.artifact_cache import ArtifactCache\n"
        "with ArtifactCache(Path(sys.argv[1]), 1).outgoing() as folder:\n"
        "    (folder / 'model.safetensors').write_text('x')\n    os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(cache.root)], check=False).returncode == -9
    assert len(list(cache.root.glob("publishing-*"))) == 2
    with cache.outgoing() as folder, cache.outgoing() as other:
        assert folder != other
        assert {path for path in cache.root.glob("publishing-*") if path.is_dir()} == {folder, other}
    assert not list(cache.root.glob("publishing-*"))


@pytest.mark.parametrize("text", ["0", "-1", "1GB", "1.5", "²"])
def test_a_wrong_size_of_the_cache_is_told(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("RLAIF_CACHE_MAX_BYTES", text)
    with pytest.raises(SettingsError, match="RLAIF_CACHE_MAX_BYTES"):
        ArtifactCache.of_environment()


def test_a_cache_folder_that_cannot_be_made_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(SettingsError, match="RLAIF_CACHE"):
        Source(b"x").fetch(ArtifactCache.of_environment())


def test_the_content_names_an_entry_wherever_it_lies(tmp_path: Path) -> None:
    cache, known, unknown = cache_of(tmp_path), Source(b"0123456789"), Source(b"0123456789", known=False)
    folders = {
        cache.fetch(uri, source.files, read=source.read, check=lambda folder: None)
        for uri in ("s3://one/model", "s3://two/model")
        for source in (known, unknown)
    }
    # With SHA-256 known one entry serves both addresses; without, each address has its own.
    assert len(folders) == 3
    assert json.dumps(known.ranges) == "[[0, 10]]"
