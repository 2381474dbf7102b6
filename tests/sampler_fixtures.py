"""A sampler in this process, versions of its policy, and blocking clients beside it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from rlaif.client.sampler import SamplerClient
from rlaif.engine.settings import EngineSettings
from rlaif.runtime.artifacts import publish_version
from rlaif.runtime.server import Service
from rlaif.runtime.settings import ClientSettings, ListenSettings
from rlaif.sampler import process as sampler
from rlaif.sampler.servicer import SamplerServicer
from rlaif.sampler.settings import SamplerSettings

POLICY = "policies/test"

Result = TypeVar("Result")


def settings_for(model_folder: Path, root: Path, **changes: object) -> SamplerSettings:
    values = {
        "model": str(model_folder),
        "policy": POLICY,
        "artifact_root": root,
        # Only LoadPolicy looks, so that a test knows when.
        "sync_poll_seconds": 3600.0,
        "engine": EngineSettings(num_threads=1),
        "listen": ListenSettings(metrics_address=None),
    }
    return SamplerSettings.model_validate(values | changes)


def publish(root: Path, source: Path, *, version: int) -> str:
    def write(folder: Path) -> None:
        shutil.copytree(source, folder, dirs_exist_ok=True)

    return publish_version(root, POLICY, version=version, write=write).digest


async def until(holds: Callable[[], bool]) -> None:
    """Returns once it holds."""
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - what is looked at tells nobody
            await asyncio.sleep(0.001)


def sampler_process(settings: SamplerSettings) -> tuple[SamplerServicer, Service]:
    """The service, and its servicer to look into."""
    made: list[SamplerServicer] = []

    class Watched(SamplerServicer):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "SamplerServicer", Watched)
        service = sampler.make_service(settings)
    return made[0], service


async def ask(target: ClientSettings, use: Callable[[SamplerClient], Result]) -> Result:
    """Runs blocking client code beside the server's loop."""

    def run() -> Result:
        with SamplerClient(target) as client:
            return use(client)

    return await asyncio.to_thread(run)
