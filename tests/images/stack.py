"""The four services in containers, on loopback."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from images.containers import Container, await_serving, free_ports, running, write_settings
from rlaif.runtime.settings import ClientSettings

GRPC_SERVICES = {
    "oversight": "rlaif.v1.LedgerService",
    "sampler": "rlaif.v1.SamplerService",
    "judge": "rlaif.v1.JudgeService",
    "reward": "rlaif.v1.RewardService",
}


@dataclass(frozen=True)
class Stack:
    """The services in containers, all SERVING."""

    containers: dict[str, Container]
    clients: dict[str, ClientSettings]
    metrics: dict[str, str]
    """Where each shows its metrics, host:port."""
    token_path: Path


@contextmanager
def started(images: Mapping[str, str], folder: Path) -> Iterator[Stack]:
    """The services with the models that ship, their settings in `folder`, for as long as the block runs."""
    token_path = folder / "token"
    token_path.write_text(secrets.token_hex(32))
    token_path.chmod(0o444)
    free = free_ports(2 * len(GRPC_SERVICES))
    ports = dict(zip(GRPC_SERVICES, free, strict=False))
    metrics = {name: f"127.0.0.1:{port}" for name, port in zip(GRPC_SERVICES, reversed(free), strict=False)}
    targets = {
        name: {"target": f"127.0.0.1:{port}", "token_path": "/run/secrets/token"} for name, port in ports.items()
    }
    engine = {"num_threads": 1}
    settings = {
        "oversight": {"database_url": "sqlite:////var/lib/rlaif/ledger.sqlite"},
        "sampler": {"model": "playground", "policy": "policies/test", "engine": engine},
        "judge": {
            "model": "playground",
            "engine": engine,
            "template": "compact",
            "reasoning": None,
            "constitutions": ["playground"],
            "ledger": targets["oversight"],
        },
        "reward": {"judge": targets["judge"], "engine": engine},
    }
    clients = {
        name: ClientSettings(target=f"127.0.0.1:{port}", token_path=token_path, timeout_seconds=120)
        for name, port in ports.items()
    }
    containers: dict[str, Container] = {}
    with ExitStack() as all_of_them:
        for name, values in settings.items():
            listen = {
                "address": f"127.0.0.1:{ports[name]}",
                "metrics_address": metrics[name],
                "token_path": "/run/secrets/token",
            }
            path = write_settings(folder, name, {"listen": listen, **values})
            containers[name] = all_of_them.enter_context(
                running(
                    images["oversight" if name == "oversight" else "engine"],
                    *("python", "-m", f"rlaif.{name}", "--config", f"/etc/rlaif/{name}.yaml"),
                    name=f"rlaif-images-{name}",
                    mounts={str(path): f"/etc/rlaif/{name}.yaml", str(token_path): "/run/secrets/token"},
                )
            )
        for name, service in GRPC_SERVICES.items():
            await_serving(containers[name], clients[name], service)
        yield Stack(containers, clients, metrics, token_path)
