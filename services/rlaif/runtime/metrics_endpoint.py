"""The HTTP endpoint Prometheus reads. On the event loop, not in a thread: it costs nothing while nobody asks."""

from __future__ import annotations

import asyncio

from prometheus_client.exposition import choose_encoder

from rlaif.runtime.telemetry import REGISTRY

_READ_SECONDS = 5.0
_MAX_HEADER_BYTES = 16 * 1024


async def serve_metrics(*, host: str, port: int) -> tuple[int, asyncio.Server]:
    """Serves GET /metrics; gives the bound port and the server to close. OSError when the port is taken."""
    server = await asyncio.start_server(_answer, host, port, limit=_MAX_HEADER_BYTES)
    return server.sockets[0].getsockname()[1], server


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        async with asyncio.timeout(_READ_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
        status, content_type, body = _respond(head.decode("latin-1"))
        lines = [
            f"HTTP/1.1 {status}",
            f"Content-Type: {content_type}",
            f"Content-Length: {len(body)}",
            "Connection: close",
        ]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await writer.drain()
    except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass  # A peer that does not speak HTTP, or left.
    finally:
        writer.close()


def _respond(head: str) -> tuple[str, str, bytes]:
    request, *headers = head.split("\r\n")
    method, _, rest = request.partition(" ")
    if method != "GET":
        return "405 Method Not Allowed", "text/plain", b"only GET\n"
    if rest.partition(" ")[0].partition("?")[0] != "/metrics":
        return "404 Not Found", "text/plain", b"metrics are at /metrics\n"
    accept = next((line.partition(":")[2].strip() for line in headers if line.lower().startswith("accept:")), "")
    encode, content_type = choose_encoder(accept)
    return "200 OK", content_type, encode(REGISTRY)
