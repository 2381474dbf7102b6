"""The health check of containers: 0 when a service serves, 1 and a sentence when it does not."""

from __future__ import annotations

import asyncio

import pytest

from rlaif.client import probe
from rlaif.runtime.server import Server, serving
from rlaif.runtime.settings import ListenSettings
from toy_service import NAME, ToySampler, toy_service

QUIET = ListenSettings(metrics_address=None)


async def test_a_service_that_serves_is_healthy() -> None:
    async with serving(toy_service(ToySampler()), QUIET) as server:
        assert await asyncio.to_thread(probe.main, [server.address, NAME]) == 0


async def test_a_service_that_still_loads_or_is_not_there_is_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_SECONDS", 0.2)
    server = Server(toy_service(ToySampler()), QUIET)
    await server.bind()
    assert await asyncio.to_thread(probe.main, [server.address, NAME]) == 1
    assert f"{NAME} at {server.address} does not serve" in capsys.readouterr().err
    await server.stop()
    assert await asyncio.to_thread(probe.main, [server.address, NAME]) == 1
    assert f"{NAME} at {server.address} does not serve" in capsys.readouterr().err
