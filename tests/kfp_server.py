"""The Kubeflow Pipelines API of `kfp_api` as a real HTTP server on loopback.

`PYTHONPATH=tests python tests/kfp_server.py --port 8888` serves one to try commands by hand.
"""

from __future__ import annotations

import argparse
import json
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.message import Message
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from kfp_api import Answer, PipelinesApi, RefusedError, Request, plain
from kfp_workflow import WORKFLOW, Snapshot

_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 503: 14}
"""Of gRPC, by HTTP status."""


@contextmanager
def serving(api: PipelinesApi, *, port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """The API's address for as long as the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def do_DELETE(self) -> None:
            self._serve()

        def log_request(self, *_: Any) -> None:
            pass

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer = api.fault(self.command, parts.path)
            if answer is None:
                answer = self._answer(parts.path, dict(parse_qsl(parts.query)), data)
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        def _answer(self, path: str, query: Mapping[str, str], data: bytes) -> Answer:
            try:
                body = _body(self.headers, data)
                found = api.answer(
                    Request(
                        self.command, path, query, {name.title(): value for name, value in self.headers.items()}, body
                    )
                )
            except RefusedError as refused:
                text = {"code": _CODES.get(refused.status, 2), "message": refused.message, "details": []}
                return Answer(refused.status, json.dumps(text).encode())
            if isinstance(found, Answer):
                return found
            return Answer(200, json.dumps(plain(found)).encode())

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign] # clients that leave
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _body(headers: Message, data: bytes) -> Any:
    kind = headers.get("Content-Type", "")
    if kind.startswith("multipart/form-data"):
        message = BytesParser().parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + data)
        return {
            part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
            for part in message.get_payload()  # type: ignore[union-attr]
        }
    return json.loads(data) if data else None


def main() -> None:
    """Serve one until interrupted, whose runs take a few looks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8888)
    parser.add_argument("--token", default="")
    parser.add_argument("--end", default="SUCCEEDED", choices=["SUCCEEDED", "FAILED", "never"])
    options = parser.parse_args()
    api = PipelinesApi(token=options.token)
    names = ("prepare", "load-prompts", "sample-baseline", "sample", "label", "quality-gate")
    script = [
        Snapshot("RUNNING", {**dict.fromkeys(names[:number], "SUCCEEDED"), names[number]: "RUNNING"})
        for number in range(len(names))
    ]
    if options.end == "SUCCEEDED":
        script.append(Snapshot("SUCCEEDED", dict.fromkeys(names, "SUCCEEDED")))
    elif options.end == "FAILED":
        tasks = dict.fromkeys(names[:4], "SUCCEEDED") | {"label": "FAILED"}
        script = [*script[:5], Snapshot("FAILED", tasks)]
        for number in range(1001, 1100):
            api.logs[f"{WORKFLOW}-system-container-impl-{number}"] = "Traceback\nUnavailableError: judge is gone\n"
    api.script = script
    with serving(api, port=options.port) as address:
        print(address, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
