"""A real S3 server (moto's) in a process of its own, and a wire to it that can be cut, stalled and slowed down."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 64 * 1024


class Wire:
    """A TCP relay to the server. `num_bytes` counts what the server sent."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._flowing = threading.Event()
        self._flowing.set()
        self._cut = False
        self.num_bytes = 0
        self.stall_after: int | None = None
        """Bytes from the server after which nothing more comes, as if its machine had died; None for never."""
        self.cut_after: int | None = None
        """Bytes from the server after which the wire is cut; None for never."""
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self) -> None:
        """Closes every connection, and each new one at once."""
        self._cut = True
        for end in list(self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """As if nothing had been wrong; counts from 0."""
        self._cut, self.cut_after, self.stall_after, self.num_bytes = False, None, None, 0
        self._flowing.set()

    def close(self) -> None:
        self.cut()
        self._flowing.set()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._cut:
                    client.close()
                    continue
                server = socket.create_connection(self._target)
                self._open |= {client, server}
                threading.Thread(target=self._relay, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._relay, args=(server, client, True), daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(_CHUNK_BYTES):
                if counted:
                    self.num_bytes += len(data)
                    if self.cut_after is not None and self.num_bytes > self.cut_after:
                        self.cut()
                        break
                    if self.stall_after is not None and self.num_bytes > self.stall_after:
                        self._flowing.clear()
                    self._flowing.wait()
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def s3_server(log_path: Path) -> Iterator[int]:
    """The server's port for as long as the block runs. Any credentials will do."""
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield _await_port(process, log_path)
    finally:
        process.kill()
        process.wait()


def new_client(service: str, url: str, **credentials: str) -> Any:
    """A client of AWS's own library."""
    import boto3

    given = {"aws_access_key_id": "test", "aws_secret_access_key": "test"} | credentials
    return boto3.client(service, endpoint_url=url, region_name="us-east-1", **given)


def enforce_permissions(url: str, *, enforced: bool) -> None:
    """Whether the server from now on asks what a caller may do."""
    data = b"0" if enforced else b"inf"
    headers = {"Content-Type": "text/plain"}
    request = urllib.request.Request(f"{url}/moto-api/reset-auth", data=data, headers=headers, method="POST")
    with urllib.request.urlopen(request) as done:
        assert json.load(done)["status"] == "ok"


def _await_port(process: subprocess.Popen[bytes], log_path: Path) -> int:
    while process.poll() is None:
        if found := re.search(rb"http://127\.0\.0\.1:(\d+)", log_path.read_bytes()):
            port = int(found[1])
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return port
        threading.Event().wait(0.05)
    raise RuntimeError(f"the S3 server did not start: {log_path.read_text()}")
