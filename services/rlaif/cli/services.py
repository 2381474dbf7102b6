"""The four services on loopback: their settings files, the order they start in, and when they are healthy."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from rlaif.cli.addresses import (
    EVALUATOR,
    GRPC_SERVICES,
    LOOPBACK,
    Announcement,
    announce_path,
    grpc_service_of,
    is_serving,
    read_announcement,
)
from rlaif.core.errors import DeadlineError, SettingsError
from rlaif.engine.settings import EngineKind
from rlaif.runtime.artifacts import atomic_write_text

START_SECONDS: Final = 1800.0
"""How long services may take to be ready: models of the hub are fetched in it."""


class Running(Protocol):
    """A started process that can tell that it has died."""

    def raise_if_dead(self) -> None:
        """Raises an error naming the process if it has ended."""


Launch = Callable[[str, Path], Running]
"""Starts the service of that name with that settings file."""


@dataclass(frozen=True)
class StackSettings:
    """What the four services serve, and from which folder."""

    folder: Path
    policy: str
    """Folder or hub id of the base policy."""
    policy_name: str
    """Resource name, `policies/{run}`."""
    judge: str
    """Folder or hub id of the judge."""
    constitution: str
    """YAML file or name of a shipped constitution."""
    template: str
    num_threads: int
    evaluator: str | None = None
    """Folder or hub id of a second judge, served as a fifth service; None for none."""
    evaluator_template: str = "standard"
    first_port: int = 0
    """Port of oversight, the others follow; 0 takes free ports."""
    engine: EngineKind = "hf"
    """What sampler, judge and evaluator run their models on."""
    published_to: str | None = None
    """Folder or URI where policy versions are published; None for the folder's own."""

    @property
    def artifact_root(self) -> str:
        """Where policy versions are published."""
        return self.published_to or str(self.folder / "artifacts")

    def config_path(self, name: str) -> Path:
        """Settings file of a service."""
        return self.folder / "services" / f"{name}.yaml"

    def announce_path(self, name: str) -> Path:
        """Where a service writes its address once its port is bound."""
        return announce_path(self.folder, name)

    @property
    def names(self) -> tuple[str, ...]:
        """The services to start."""
        return (*GRPC_SERVICES, EVALUATOR) if self.evaluator else tuple(GRPC_SERVICES)

    def log_path(self, name: str) -> Path:
        """Where a service's output goes."""
        return self.folder / "logs" / f"{name}.log"


def start_stack(settings: StackSettings, *, launch: Launch, told: Callable[[str], None]) -> dict[str, Announcement]:
    """Start all and return their addresses once every one is healthy; `told` hears of each that is.

    A service that needs another waits for that one's port only: models load at the same time.
    """
    deadline = time.monotonic() + START_SECONDS
    check_ports_free(settings)
    running: dict[str, Running] = {}
    found: dict[str, Announcement] = {}

    def start(name: str) -> None:
        settings.announce_path(name).unlink(missing_ok=True)
        path = settings.config_path(name)
        atomic_write_text(path, _as_yaml(service_config(settings, name, found)))
        running[name] = launch(name, path)

    def address_of(name: str) -> None:
        found[name] = _await_announcement(settings.folder, name, running[name], deadline)

    start("oversight")
    start("sampler")
    address_of("oversight")
    start("judge")
    if settings.evaluator:
        start(EVALUATOR)
    address_of("judge")
    start("reward")
    for name in settings.names:
        address_of(name)
        _await_serving(settings.folder, found[name], running, deadline)
        told(name)
    return {name: found[name] for name in settings.names}


def start_oversight(folder: Path, *, database: Path, launch: Launch) -> Announcement:
    """Start oversight alone, over an existing database, and return its address once it is healthy."""
    deadline = time.monotonic() + START_SECONDS
    path = folder / "services" / "oversight.yaml"
    config = {"listen": _listen(folder, "oversight", port=0), "database_url": _sqlite_url(database)}
    atomic_write_text(path, _as_yaml(config))
    running = launch("oversight", path)
    announcement = _await_announcement(folder, "oversight", running, deadline)
    _await_serving(folder, announcement, {"oversight": running}, deadline)
    return announcement


def start_judge(
    folder: Path,
    *,
    model: str,
    constitution: str,
    template: str,
    num_threads: int,
    launch: Launch,
) -> Announcement:
    """Start a judge alone, without a ledger, and return its address once it is healthy."""
    deadline = time.monotonic() + START_SECONDS
    path = folder / "services" / "judge.yaml"
    config = {
        "listen": _listen(folder, "judge", port=0),
        "model": model,
        **_judge_of(template, num_threads),
        "constitutions": [constitution],
    }
    atomic_write_text(path, _as_yaml(config))
    running = launch("judge", path)
    announcement = _await_announcement(folder, "judge", running, deadline)
    _await_serving(folder, announcement, {"judge": running}, deadline)
    return announcement


def service_config(settings: StackSettings, name: str, found: Mapping[str, Announcement]) -> dict[str, Any]:
    """The settings file of one service; `found` has the services it calls."""
    fixed_port = settings.first_port and name in GRPC_SERVICES
    port = settings.first_port + list(GRPC_SERVICES).index(name) if fixed_port else 0
    config: dict[str, Any] = {"listen": _listen(settings.folder, name, port=port)}
    engine = {"kind": settings.engine, "num_threads": settings.num_threads}
    if name == "oversight":
        return config | {"database_url": _sqlite_url(settings.folder / "ledger.sqlite")}
    if name == "sampler":
        return config | {
            "model": settings.policy,
            "policy": settings.policy_name,
            "artifact_root": settings.artifact_root,
            "engine": engine,
        }
    if name in ("judge", EVALUATOR):
        template = settings.template if name == "judge" else settings.evaluator_template
        return config | {
            "model": settings.judge if name == "judge" else settings.evaluator,
            **_judge_of(template, settings.num_threads, engine=settings.engine),
            "constitutions": [settings.constitution],
            "ledger": {"target": found["oversight"].address},
        }
    return config | {
        "judge": {"target": found["judge"].address},
        "engine": {"num_threads": settings.num_threads},
        "artifact_root": settings.artifact_root,
        "allowed_roots": [str(settings.folder / "models")],
    }


def _judge_of(template: str, num_threads: int, *, engine: EngineKind = "hf") -> dict[str, Any]:
    """What a judge is told by the template it is asked with."""
    options: dict[str, Any] = {"kind": engine, "num_threads": num_threads}
    if template != "compact":
        return {"template": template, "engine": options}
    return {
        "template": template,
        # Small judges lose nothing to bfloat16, and score in two thirds of the time.
        "engine": options | {"dtype": "auto"},
        # Their likeliest text is their best: texts that are drawn ramble, and rewrite what has no fault.
        "writing": {"temperature": 0.0},
        # They are taught critiques and revisions, not rationales.
        "reasoning": None,
    }


def check_engine(engine: EngineKind) -> None:
    """SettingsError with the fix where this environment has not what the engine needs."""
    if engine == "openai":
        raise SettingsError(
            "rlaif run and rlaif up start the playground's own models, which no server elsewhere runs; take hf or vllm,"
            " and give kind openai to a service of your own (docs/engines.md)",
            field="--engine",
        )
    if engine == "vllm":
        from rlaif.engine.vllm.environment import check_installed

        check_installed()


def check_ports_free(settings: StackSettings) -> None:
    """SettingsError naming the service and port that is in use; nothing to check for free ports."""
    for offset, name in enumerate(GRPC_SERVICES if settings.first_port else ()):
        port = settings.first_port + offset
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError as error:
                raise SettingsError(
                    f"port {port} on {LOOPBACK}, for {name}, cannot be taken ({error.strerror or error}): stop what "
                    "listens there or give another --port",
                    field="--port",
                ) from error


def _await_announcement(folder: Path, name: str, process: Running, deadline: float) -> Announcement:
    while time.monotonic() < deadline:
        if announcement := read_announcement(announce_path(folder, name)):
            return announcement
        process.raise_if_dead()
        time.sleep(0.05)
    raise _late(folder, name)


def _await_serving(folder: Path, announcement: Announcement, running: Mapping[str, Running], deadline: float) -> None:
    while time.monotonic() < deadline:
        if is_serving(announcement.address, grpc_service_of(announcement.name)):
            return
        for process in running.values():
            process.raise_if_dead()
        time.sleep(0.1)
    raise _late(folder, announcement.name)


def _late(folder: Path, name: str) -> DeadlineError:
    return DeadlineError(
        f"{name} is not ready after {START_SECONDS / 60:.0f} minutes (log: {folder / 'logs' / name}.log); where it was "
        "still fetching its model, start the same command again: what has been fetched is kept"
    )


def _listen(folder: Path, name: str, *, port: int) -> dict[str, Any]:
    return {
        "address": f"{LOOPBACK}:{port}",
        "metrics_address": f"{LOOPBACK}:0",
        "announce_path": str(announce_path(folder, name)),
        "drain_seconds": 5.0,
    }


def _sqlite_url(path: Path) -> str:
    return f"sqlite:///{path}"


def _as_yaml(config: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(config), sort_keys=False)
