"""A judge service whose engine answers at once: what is left is the path around it. `--config FILE` as rlaif.judge."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rlaif.core.conversation import Message
from rlaif.engine.protocol import (
    Capabilities,
    ChoiceLogprobs,
    ChoiceRequest,
    EngineUsage,
    EngineWork,
    GenerateRequest,
    Generation,
    ModelIdentity,
    OnGeneration,
    TokenIds,
)
from rlaif.engine.settings import EngineSettings
from rlaif.judge import process
from rlaif.judge.settings import JudgeSettings
from rlaif.runtime.server import run
from rlaif.runtime.settings import settings_from_command_line

PROBABLE, IMPROBABLE = -0.2, -1.8


class NullEngine:
    """One token a byte and the same verdict for all."""

    identity = ModelIdentity(uri="null", digest="0" * 64)
    context_length = 1 << 20
    capabilities = Capabilities(
        choice_logprobs=True, constraints=False, loads_weights=False, loads_adapters=False, repeatable=True
    )
    usage = EngineUsage(running_completions=0, waiting_completions=0)
    work = EngineWork()
    num_gpus = 0

    def encode_chat(self, messages: Sequence[Message]) -> TokenIds:
        """Bytes of all turns."""
        return tuple("\n".join(message.content for message in messages).encode())

    def encode_judge_prompt(self, context: str, question: str) -> tuple[TokenIds, TokenIds]:
        """Bytes of both."""
        return tuple(context.encode()), tuple(question.encode())

    def encode_choices(self, labels: Sequence[str]) -> tuple[TokenIds, ...]:
        """Bytes of each."""
        return tuple(tuple(label.encode()) for label in labels)

    async def generate(
        self, requests: Sequence[GenerateRequest], *, on_generation: OnGeneration | None = None
    ) -> list[list[Generation]]:
        """Not measured."""
        raise NotImplementedError

    async def choice_logprobs(self, requests: Sequence[ChoiceRequest]) -> list[ChoiceLogprobs]:
        """The first choice is the likelier one."""
        return [
            ChoiceLogprobs(tuple((PROBABLE, *[IMPROBABLE] * (len(request.choices) - 1)) for _ in request.suffixes))
            for request in requests
        ]

    async def load(self, identity: ModelIdentity) -> None:
        """Nothing to load."""

    async def check_health(self) -> None:
        """Always well."""

    async def close(self) -> None:
        """Nothing to free."""


async def open_null_engine(settings: EngineSettings, *, model: str, version: int = 0) -> NullEngine:
    """In place of the real one."""
    del settings, model, version
    return NullEngine()


if __name__ == "__main__":
    process.open_engine = open_null_engine
    configured = settings_from_command_line(JudgeSettings, program="null_judge")
    sys.exit(run(process.make_service(configured), configured.listen))
