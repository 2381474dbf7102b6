"""Which services there are, where they say they listen, and whether they are healthy there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LOOPBACK: Final = "127.0.0.1"
EVALUATOR: Final = "evaluator"
"""The second judge: the judge's program with another model."""
GRPC_SERVICES: Final[Mapping[str, str]] = {
    "oversight": "rlaif.v1.LedgerService",
    "sampler": "rlaif.v1.SamplerService",
    "judge": "rlaif.v1.JudgeService",
    "reward": "rlaif.v1.RewardService",
}
"""Each service and the gRPC service whose health says that it is ready, in the order of their ports."""


@dataclass(frozen=True)
class Announcement:
    """What a running service says of itself."""

    name: str
    address: str
    metrics_address: str | None
    pid: int


def announce_path(folder: Path, name: str) -> Path:
    """Where the service of that name announces itself."""
    return folder / "services" / f"{name}.json"


def read_announcement(path: Path) -> Announcement | None:
    """What a service wrote about itself, or None if it has not."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return Announcement(
        name=path.stem, address=said["address"], metrics_address=said.get("metrics_address"), pid=int(said["pid"])
    )


def is_serving(address: str, grpc_service: str, *, timeout_seconds: float = 1.0) -> bool:
    """Whether the standard health service at this address says SERVING."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=grpc_service), timeout=timeout_seconds
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def module_of(name: str) -> str:
    """The module that runs the service of that name."""
    return "rlaif.judge" if name == EVALUATOR else f"rlaif.{name}"


def grpc_service_of(name: str) -> str:
    """The gRPC service whose health says that the service of that name is ready."""
    return GRPC_SERVICES["judge" if name == EVALUATOR else name]
