"""Certificates for tests: authorities, servers and clients, as files."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import trustme

from rlaif.runtime.settings import TlsSettings

YESTERDAY = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)


async def until(condition: Callable[[], bool], *, while_: Sequence[asyncio.Task[object]] = ()) -> None:
    """Returns once the condition holds; fails with the error of a task that ended before."""
    while not condition():
        for task in while_:
            if task.done():
                task.result()
                raise AssertionError("ended too early")
        await asyncio.sleep(0.005)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: Path
    key: Path

    def server(self, *, client_ca: Path | None = None) -> TlsSettings:
        return TlsSettings(certificate_path=self.certificate, key_path=self.key, client_ca_path=client_ca)

    def client(self) -> dict[str, Path]:
        return {"tls_certificate_path": self.certificate, "tls_key_path": self.key}


class Authority:
    """An authority of the test's own; its certificate lies in `path`."""

    def __init__(self, folder: Path, *, name: str = "ca") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.ca = trustme.CA()
        self.path = folder / f"{name}.pem"
        self.ca.cert_pem.write_to_path(self.path)

    def issue(self, name: str, *hosts: str, expired: bool = False) -> Pair:
        """A pair for `hosts` ("127.0.0.1" unless told) whose common name is `name`."""
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        for path, content in zip((pair.certificate, pair.key), self.make(name, *hosts, expired=expired), strict=True):
            path.write_bytes(content)
        return pair

    def make(self, name: str, *hosts: str, expired: bool = False) -> tuple[bytes, bytes]:
        """The PEM bytes of such a pair."""
        issued = self.ca.issue_cert(
            *(hosts or ("127.0.0.1",)), common_name=name, not_after=YESTERDAY if expired else None
        )
        return b"".join(blob.bytes() for blob in issued.cert_chain_pems), issued.private_key_pem.bytes()


class MountedSecret:
    """Files as the kubelet mounts a Secret: links through a link, which alone is swapped when the Secret changes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        folder.mkdir(parents=True)

    def write(self, **files: bytes) -> None:
        """New contents for all files at once; "tls_crt" stands for tls.crt."""
        self._number += 1
        version = self._folder / f"..{self._number}"
        version.mkdir()
        for name, content in files.items():
            (version / name.replace("_", ".")).write_bytes(content)
        link = self._folder / "..data_tmp"
        link.symlink_to(version.name)
        link.replace(self._folder / "..data")
        for name in files:
            path = self[name]
            if not path.is_symlink():
                path.symlink_to(f"..data/{path.name}")

    def __getitem__(self, name: str) -> Path:
        return self._folder / name.replace("_", ".")
