"""grpc.health.v1 for our servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

_MAX_NAME_CHARACTERS = 100

LIVENESS: Final = "liveness"
"""Name that says SERVING for as long as the process is of use: while it loads, is behind or drains, too."""


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # generated without types
    """Says whether this process serves, as a whole ("") and by service name, and whether it lives.

    Not the servicer that ships with grpcio: that one forgets all watchers of a name when the first of them leaves,
    and keeps Watch streams open while the server drains.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {"", LIVENESS, *names}
        self._serving = False
        self._alive = True
        self._closed = False
        self._num_watching = 0
        self._changed = asyncio.Condition()

    @property
    def serving(self) -> bool:
        """What it answers now."""
        return self._serving

    async def set_serving(self, *, serving: bool) -> None:
        """Answers SERVING or NOT_SERVING from now on; after `close` nothing changes any more."""
        async with self._changed:
            self._serving = serving and not self._closed
            self._changed.notify_all()

    async def give_up(self) -> None:
        """LIVENESS says NOT_SERVING for good: whoever runs this process is to start another one."""
        async with self._changed:
            self._alive = False
            self._changed.notify_all()

    async def close(self) -> bool:
        """NOT_SERVING for good; Watch streams say so and end. Gives whether there are any."""
        async with self._changed:
            self._closed, self._serving = True, False
            self._changed.notify_all()
        return self._num_watching > 0

    async def Check(  # noqa: N802 - the contract's name
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._names:
            name = request.service[:_MAX_NAME_CHARACTERS]
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {name!r} here")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def Watch(  # noqa: N802 - the contract's name
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        self._num_watching += 1
        sent = None
        try:
            while True:
                status = self._status(request.service)
                if status != sent:
                    sent = status
                    yield health_pb2.HealthCheckResponse(status=status)
                    continue
                if self._closed:
                    return
                async with self._changed:
                    while not self._closed and self._status(request.service) == sent:
                        await self._changed.wait()
        finally:
            self._num_watching -= 1

    def _status(self, name: str) -> int:
        if name not in self._names:
            return int(_UNKNOWN)
        return int(_SERVING if (self._alive if name == LIVENESS else self._serving) else _NOT_SERVING)


class Probes(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # generated without types
    """What `health` says to those who ask once: streams would hold the few places that probes have."""

    def __init__(self, health: Health) -> None:
        self._health = health

    async def Check(  # noqa: N802 - the contract's name
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        return await self._health.Check(request, context)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # noqa: N802 - likewise
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this port answers Check alone")
