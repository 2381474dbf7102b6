"""The HTTP endpoint Prometheus reads. On the event loop, not in a thread: it costs nothing while nobody asks."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field

from prometheus_client.exposition import choose_encoder

from rlaif.core.errors import UnauthenticatedError
from rlaif.runtime.authentication import Authenticator
from rlaif.runtime.roles import METRICS_ROLES, one_of
from rlaif.runtime.telemetry import REGISTRY

_READ_SECONDS = 5.0
_WRITE_SECONDS = 30.0
_MAX_HEADER_BYTES = 16 * 1024
_MAX_READERS = 32


async def serve_metrics(
    *, host: str, port: int, context: ssl.SSLContext | None = None, readers: Authenticator | None = None
) -> tuple[int, asyncio.Server]:
    """Serves GET /metrics; gives the bound port and the server to close. OSError when the port is taken.

    With `readers`, to those alone who send a token of theirs with the role reader or admin.
    """
    endpoint = _Endpoint(readers)
    handshake = None if context is None else _READ_SECONDS
    server = await asyncio.start_server(
        endpoint.answer, host, port, limit=_MAX_HEADER_BYTES, ssl=context, ssl_handshake_timeout=handshake
    )
    return server.sockets[0].getsockname()[1], server


@dataclass(frozen=True)
class _Answer:
    status: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


class _Endpoint:
    def __init__(self, readers: Authenticator | None) -> None:
        self._readers = readers
        self._num_answering = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._num_answering += 1
        try:
            async with asyncio.timeout(_READ_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            answer = self._respond(head.decode("latin-1"))
            headers = {"Content-Type": "text/plain"} | answer.headers
            headers |= {"Content-Length": str(len(answer.body)), "Connection": "close"}
            lines = [f"HTTP/1.1 {answer.status}", *(f"{name}: {value}" for name, value in headers.items())]
            writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + answer.body)
            async with asyncio.timeout(_WRITE_SECONDS):
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # A peer that does not speak HTTP, or left.
        finally:
            self._num_answering -= 1
            writer.close()

    def _respond(self, head: str) -> _Answer:
        request, *lines = head.split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        method, _, rest = request.partition(" ")
        if method != "GET":
            return _Answer("405 Method Not Allowed", b"only GET\n")
        if rest.partition(" ")[0].partition("?")[0] != "/metrics":
            return _Answer("404 Not Found", b"metrics are at /metrics\n")
        if self._num_answering > _MAX_READERS:
            return _Answer("503 Service Unavailable", b"too many readers at once\n")
        if refusal := self._refuse(headers.get("authorization")):
            return refusal
        encode, content_type = choose_encoder(headers.get("accept", ""))
        return _Answer("200 OK", encode(REGISTRY), {"Content-Type": content_type})

    def _refuse(self, authorization: str | None) -> _Answer | None:
        if self._readers is None:
            return None
        try:
            reader = self._readers.identify(authorization)
        except UnauthenticatedError as error:
            return _Answer("401 Unauthorized", f"{error.message}\n".encode(), {"WWW-Authenticate": "Bearer"})
        if not reader.roles & METRICS_ROLES:
            sentence = f"{reader.actor} may not read /metrics: that needs the role {one_of(METRICS_ROLES)}\n"
            return _Answer("403 Forbidden", sentence.encode())
        return None
