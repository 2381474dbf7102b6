"""Opens the engine on an OpenAI-compatible server, or says what to install."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlaif.core.errors import SettingsError
from rlaif.engine.protocol import Engine

if TYPE_CHECKING:
    from rlaif.engine.settings import EngineSettings


async def open_openai(settings: EngineSettings, *, model: str, version: int = 0) -> Engine:
    """The engine of these settings; `model` is the name by which the server knows it."""
    try:
        from rlaif.engine.openai.engine import OpenAiEngine
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"engine kind openai needs the package {error.name}: pip install 'kube-rlaif[openai]'", field="engine.kind"
        ) from error
    try:
        return await OpenAiEngine.open(
            settings.openai, model=model, version=version, context_length=settings.context_length
        )
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"engine.openai.mode completions needs the package {error.name}: pip install 'kube-rlaif[engine,openai]'",
            field="engine.openai.mode",
        ) from error
