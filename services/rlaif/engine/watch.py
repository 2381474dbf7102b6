"""Whether an engine still works, asked of it every few seconds."""

from __future__ import annotations

import asyncio
from typing import Final

from rlaif.core.errors import RlaifError
from rlaif.engine.protocol import ENGINE_LOST, Engine

_PAUSE_SECONDS: Final = 5.0
_DEADLINE_SECONDS: Final = 30.0


class EngineWatch:
    """What the engine last said of itself."""

    def __init__(self) -> None:
        self.failure = ""
        """Why it does not answer, "" while it does."""
        self.lost = ""
        """Why it never will again in this process, "" while it may."""

    async def run(self, engine: Engine) -> None:
        """Asks for ever."""
        while True:
            try:
                async with asyncio.timeout(_DEADLINE_SECONDS):
                    await engine.check_health()
                self.failure = ""
            except TimeoutError:
                self.failure = f"the engine has not answered for {_DEADLINE_SECONDS:g} s"
            except RlaifError as error:
                self.failure = error.message
                if error.reason == ENGINE_LOST:
                    self.lost = error.message
            except Exception as error:  # noqa: BLE001 - an engine that cannot tell is not ready, and is asked again
                self.failure = f"the engine cannot say whether it works: {error!r}"
            await asyncio.sleep(_PAUSE_SECONDS)
