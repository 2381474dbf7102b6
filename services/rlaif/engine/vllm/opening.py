"""Opens the vLLM engine: settings checked, environment set, only then vLLM imported."""

from __future__ import annotations

import logging

from rlaif.core.errors import SettingsError
from rlaif.engine.protocol import Engine
from rlaif.engine.settings import EngineSettings
from rlaif.engine.vllm.environment import check_installed, prepare_environment, runs_on_cpu


async def open_vllm(settings: EngineSettings, *, model: str, version: int = 0) -> Engine:
    """The engine with `model` (folder or hub id) loaded, on the running event loop.

    SettingsError where vLLM is not installed or cannot do what is set, InvalidInputError for a model it refuses.
    """
    check_installed()
    if settings.dtype == "bfloat16_autocast":
        raise SettingsError(
            "vLLM does not know bfloat16_autocast; take float32, bfloat16 or auto", field="engine.dtype"
        )
    on_cpu = runs_on_cpu()
    eager = settings.vllm.enforce_eager if settings.vllm.enforce_eager is not None else on_cpu
    prepare_environment(num_threads=settings.num_threads, compiled=not eager)
    if logging.getLogger().level > logging.DEBUG:
        # Its dozens of lines a start would hide the service's own.
        logging.getLogger("vllm").setLevel(logging.WARNING)
    from rlaif.engine.vllm.engine import VllmEngine

    return await VllmEngine.open(model, version=version, settings=settings, on_cpu=on_cpu, eager=eager)
