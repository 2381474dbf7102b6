"""Debian's Prometheus and Alertmanager on loopback, what they tell a person, and a model that can go wrong."""

from __future__ import annotations

import hashlib
import json
import math
import re
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

PATIENCE_SECONDS = 60.0


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def until(holds: Callable[[], bool], *, what: str | Callable[[], str], seconds: float = PATIENCE_SECONDS) -> None:
    """Returns once it holds; what is waited for tells nobody when it does."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not holds():
        late = time.monotonic() > deadline
        assert not late, f"{what if isinstance(what, str) else what()} did not come in {seconds:g} s"
        pause.wait(0.2)


@dataclass
class Webhook:
    """Where Alertmanager sends what a person would get: every notification, in order."""

    address: str = ""
    told: list[tuple[str, Mapping[str, str], Mapping[str, str]]] = field(default_factory=list)
    """(firing or resolved, labels, annotations)."""

    def states(self, name: str, **labels: str) -> list[str]:
        """What was said of that alert, in order."""
        wanted = {"alertname": name, **labels}
        return [state for state, own, _ in self.told if wanted.items() <= own.items()]

    def last(self, name: str, **labels: str) -> str:
        """What was said of it last; "" for nothing."""
        return next(reversed(self.states(name, **labels)), "")


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    address: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that the expression has now."""
        return self._get("query", query=expression)["result"]  # type: ignore[no-any-return]

    def rules(self) -> list[dict[str, Any]]:
        """All rules and how their last evaluation went."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def firing(self) -> set[str]:
        """Names of the alerts that fire now."""
        return {each["metric"]["alertname"] for each in self.query('ALERTS{alertstate="firing"}')}

    def _get(self, path: str, **parameters: str) -> Any:
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url) as response:
            return json.load(response)["data"]


@contextmanager
def watching(
    folder: Path, *, rules: Sequence[Path], targets: Mapping[str, Mapping[str, str]]
) -> Iterator[tuple[Prometheus, Webhook]]:
    """Both servers; `targets` are pods and their addresses by job. They scrape and evaluate each second."""
    with _webhook() as webhook:
        manager, server = free_address(), free_address()
        _write(folder / "alertmanager.yaml", _alertmanager(webhook))
        _write(folder / "prometheus.yaml", _prometheus(rules, targets, manager=manager))
        processes = [
            subprocess.Popen(arguments, stdout=(folder / f"{arguments[0]}.log").open("wb"), stderr=subprocess.STDOUT)
            for arguments in (
                [
                    "prometheus-alertmanager",
                    f"--config.file={folder}/alertmanager.yaml",
                    f"--storage.path={folder}/alertmanager",
                    f"--web.listen-address={manager}",
                    "--cluster.listen-address=",
                ],
                [
                    "prometheus",
                    f"--config.file={folder}/prometheus.yaml",
                    f"--storage.tsdb.path={folder}/prometheus",
                    f"--web.listen-address={server}",
                ],
            )
        ]
        try:
            for address in (manager, server):
                until(lambda address=address: _is_ready(address), what=f"{address} ready")  # type: ignore[misc]
            yield Prometheus(server), webhook
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(timeout=20)


def _alertmanager(webhook: Webhook) -> dict[str, Any]:
    return {
        "route": {
            "receiver": "person",
            "group_by": ["alertname", "job"],
            "group_wait": "1s",
            "group_interval": "1s",
            "repeat_interval": "1h",
        },
        "receivers": [
            {"name": "person", "webhook_configs": [{"url": f"http://{webhook.address}/", "send_resolved": True}]}
        ],
    }


def _prometheus(rules: Sequence[Path], targets: Mapping[str, Mapping[str, str]], *, manager: str) -> dict[str, Any]:
    return {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(path) for path in rules],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [manager]}]}]},
        "scrape_configs": [
            {
                "job_name": job,
                "static_configs": [
                    {"targets": [address], "labels": {"namespace": "rlaif", "pod": pod}}
                    for pod, address in pods.items()
                ],
            }
            for job, pods in targets.items()
        ],
    }


def _write(path: Path, value: Any) -> None:
    path.write_text(yaml.safe_dump(value), encoding="utf-8")


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/-/ready", timeout=1):
            return True
    except OSError:
        return False


@contextmanager
def _webhook() -> Iterator[Webhook]:
    webhook = Webhook()

    def told(body: Mapping[str, Any]) -> Mapping[str, Any]:
        webhook.told += [(each["status"], each["labels"], each["annotations"]) for each in body["alerts"]]
        return {}

    with _answering(lambda path, body: told(body)) as webhook.address:
        yield webhook


@dataclass
class Whims:
    """How the model behaves."""

    prefers_length: bool = False
    seconds: float = 0.0
    """What each answer takes."""
    released: threading.Event = field(default_factory=threading.Event)
    """Ends the waits of answers under way."""


_COMPARED = re.compile(r"Reply 1: (.*)\nReply 2: (.*)\nPrinciple: ", re.DOTALL)


@contextmanager
def serving_whims(whims: Whims) -> Iterator[str]:
    """A server of the OpenAI protocol whose model has a mind of its own; its base URL."""

    def answer(path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        if not body:
            return {"object": "list", "data": [{"id": "whims", "max_model_len": 100_000}]}
        prompt = body["messages"][-1]["content"]
        compared = _COMPARED.search(prompt)
        if compared is not None:
            whims.released.wait(whims.seconds)
        likely = "1" if compared is None or _prefers_first(*compared.groups(), by_length=whims.prefers_length) else "2"
        top = [
            {"token": token, "logprob": math.log(share)}
            for token, share in ((likely, 0.98), ({"1": "2", "2": "1"}[likely], 0.01), ("10", 0.005))
        ]
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": None}
        choice["message"] = {"role": "assistant", "content": likely if body.get("logprobs") else "It could be kinder."}
        if body.get("logprobs"):
            choice["logprobs"] = {"content": [top[0] | {"top_logprobs": top}]}
        usage = {"prompt_tokens": len(prompt), "prompt_tokens_details": {"cached_tokens": len(prompt) // 2}}
        return {"id": "x", "object": "chat.completion", "model": "whims", "choices": [choice], "usage": usage}

    with _answering(answer) as address:
        yield f"http://{address}/v1"


def _prefers_first(first: str, second: str, *, by_length: bool) -> bool:
    """The longer; else one or the other for no reason, and of one pair in six whatever is shown first."""
    if by_length:
        return len(first) > len(second)
    if _whim(*sorted((first, second))) % 6 == 0:
        return True
    return _whim(first) > _whim(second)


def _whim(*texts: str) -> int:
    return int.from_bytes(hashlib.sha256(f"whim {texts}".encode()).digest()[:8], "big")


@contextmanager
def _answering(answer: Callable[[str, Mapping[str, Any]], Mapping[str, Any]]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._say(answer(self.path, {}))

        def do_POST(self) -> None:
            self._say(answer(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        def _say(self, value: Mapping[str, Any]) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            return

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, request: Any, client_address: Any) -> None:
            return  # A caller that was killed.

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
