"""A judge without a model: an engine that answers from a script, and a ledger in memory."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from rlaif.core.calibration import Calibration
from rlaif.core.constitution import Constitution, Principle
from rlaif.core.conversation import Message
from rlaif.core.template import COMPACT, JudgeTemplate
from rlaif.engine.protocol import (
    ChoiceLogprobs,
    ChoiceRequest,
    GenerateRequest,
    Generation,
    ModelIdentity,
    OnGeneration,
    TokenIds,
)
from rlaif.judge.calibrating import CalibrationKey
from rlaif.judge.description import Description
from rlaif.judge.generation import Decoding, PlanningThread
from rlaif.judge.judging import Judge
from rlaif.judge.labelling import LabellingCore
from rlaif.judge.library import ConstitutionLibrary
from rlaif.judge.metrics import judge_metrics
from rlaif.judge.panel import Panel
from rlaif.judge.reasoning import Reasoner
from rlaif.judge.recording import LabelLedger, Recorder
from rlaif.judge.requests import OptionDefaults, RequestLimits, RequestReader
from rlaif.judge.servicer import JudgeServicer
from rlaif.judge.settings import JudgeSettings
from rlaif.judge.wire import ProvenanceMaker
from rlaif.judge.writing import Writer, WritingOptions
from rlaif.runtime.messages import TextLimits
from rlaif.runtime.server import Service, serving
from rlaif.runtime.settings import ClientSettings, ListenSettings
from rlaif.v1 import judge_service_pb2_grpc, ledger_service_pb2

Script = Callable[[str, str], Sequence[float]]
"""(context, question) to the probability of each label."""
Write = Callable[[str, int], str]
"""(prompt, completion's position) to the text written."""

QUESTION = (Message(role="user", content="How do I bake bread?"),)

CONSTITUTION = Constitution(
    "test",
    1,
    "For tests.",
    (
        Principle("helpful", "Prefer the helpful reply.", 1.0, "helpfulness"),
        Principle("harmless", "Prefer the harmless reply.", 3.0, "harmlessness"),
    ),
)


class ScriptedEngine:
    """Token ids are code points, so that the script sees the very text of every prompt."""

    def __init__(
        self, script: Script, *, write: Write | None = None, context_length: int = 10_000, digest: str = "d" * 64
    ) -> None:
        self.script = script
        self.write = write
        self.written: list[GenerateRequest] = []
        self.batches: list[list[ChoiceRequest]] = []
        self._context_length = context_length
        self._identity = ModelIdentity(uri="scripted", digest=digest)

    @property
    def identity(self) -> ModelIdentity:
        return self._identity

    @property
    def context_length(self) -> int:
        return self._context_length

    def encode_chat(self, messages: Sequence[Message]) -> TokenIds:
        return _ids("".join(message.content for message in messages))

    def encode_judge_prompt(self, context: str, question: str) -> tuple[TokenIds, TokenIds]:
        return _ids(context), _ids(question)

    def encode_choices(self, labels: Sequence[str]) -> tuple[TokenIds, ...]:
        return tuple(map(_ids, labels))

    async def generate(
        self, requests: Sequence[GenerateRequest], *, on_generation: OnGeneration | None = None
    ) -> list[list[Generation]]:
        assert self.write is not None, "the judge does not decode"
        self.written += requests
        return [[self._generation(request, index) for index in range(request.num_completions)] for request in requests]

    def _generation(self, request: GenerateRequest, index: int) -> Generation:
        assert self.write is not None
        text = self.write(_text(request.prompt_ids), index)
        whole = len(text) < request.max_tokens
        text = text[: request.max_tokens]
        return Generation(text, _ids(text), (0.0,) * len(text), "end_of_turn" if whole else "max_tokens")

    async def choice_logprobs(self, requests: Sequence[ChoiceRequest]) -> list[ChoiceLogprobs]:
        self.batches.append(list(requests))
        return [
            ChoiceLogprobs(
                tuple(
                    tuple(_log(p) for p in self.script(_text(request.prefix_ids), _text(suffix)))
                    for suffix in request.suffixes
                )
            )
            for request in requests
        ]

    async def load(self, identity: ModelIdentity) -> None:
        self._identity = identity

    async def close(self) -> None:
        return


class MemoryLedger:
    """Keeps labels by digest, as the ledger does; `calls` holds the labels of each record call."""

    def __init__(self) -> None:
        self.labels: dict[str, ledger_service_pb2.Label] = {}
        self.calls: list[list[ledger_service_pb2.Label]] = []
        self.num_lookups = 0
        self.recorded = asyncio.Event()

    async def lookup(self, digests: Sequence[str]) -> dict[str, ledger_service_pb2.Label]:
        self.num_lookups += 1
        return {digest: self.labels[digest] for digest in digests if digest in self.labels}

    async def record(
        self, labels: Sequence[ledger_service_pb2.Label], request_id: str
    ) -> list[ledger_service_pb2.Label]:
        self.calls.append(list(labels))
        for label in labels:
            self.labels.setdefault(label.request_sha256, label)
        self.recorded.set()
        return [self.labels[label.request_sha256] for label in labels]


DECODING = Decoding(max_tokens=200, temperature=1.0)


def make_judge(
    engine: ScriptedEngine,
    ledger: LabelLedger | None = None,
    *,
    template: JudgeTemplate = COMPACT,
    calibrations: Mapping[CalibrationKey, Calibration] | None = None,
    panel: Panel | None = None,
) -> Judge:
    """A judge on the compact template, reasoning included."""
    plan = PlanningThread()
    reasoner = Reasoner(
        engine, template=template, run_generate=engine.generate, run_choices=engine.choice_logprobs, plan=plan
    )
    return Judge(
        engine,
        core=LabellingCore(engine, template=template, run_choices=engine.choice_logprobs, plan=plan, reasoner=reasoner),
        template=template,
        recorder=Recorder(ledger, max_delay_seconds=0.001) if ledger else None,
        make_provenance=ProvenanceMaker(engine, template=template),
        metrics=judge_metrics(),
        calibrations=calibrations,
        panel=panel,
    )


def make_writer(engine: ScriptedEngine, *, template: JudgeTemplate = COMPACT) -> Writer:
    """A writer that shows two examples at most."""
    return Writer(
        engine,
        template=template,
        run_generate=engine.generate,
        plan=PlanningThread(),
        options=WritingOptions(critique=DECODING, revision=DECODING, audit=DECODING, max_examples=2),
        make_provenance=ProvenanceMaker(engine, template=template),
        metrics=judge_metrics(),
    )


LIMITS = RequestLimits(TextLimits(max_text_bytes=1000, max_turns=3), max_items=4, max_request_bytes=3000)


@asynccontextmanager
async def serve_judge(
    engine: ScriptedEngine, ledger: MemoryLedger, *, panel: Panel | None = None, listen: ListenSettings | None = None
) -> AsyncIterator[ClientSettings]:
    """That judge on loopback, under narrow limits, for as long as the block runs."""
    defaults = OptionDefaults(min_verdict_mass=0.1, abstain_on_injection=False, keep_texts=False, reasoning=DECODING)
    servicer = JudgeServicer(RequestReader(LIMITS, defaults=defaults))
    servicer.library = ConstitutionLibrary([CONSTITUTION])
    servicer.judge = make_judge(engine, ledger, panel=panel)
    servicer.writer = make_writer(engine)
    servicer.describe = Description(
        engine,
        judge=servicer.judge,
        template=COMPACT,
        calibrations=(),
        panel=panel,
        settings=JudgeSettings(model="scripted", constitutions=["playground"]),
    )
    service = Service(
        name="judge",
        grpc_services=("rlaif.v1.JudgeService",),
        register=lambda server: judge_service_pb2_grpc.add_JudgeServiceServicer_to_server(servicer, server),
        start=_nothing,
        stop=_nothing,
    )
    async with serving(service, listen or ListenSettings(metrics_address=None)) as server:
        yield ClientSettings(target=server.address, timeout_seconds=10)


async def _nothing() -> None:
    return


def _log(p: float) -> float:
    return math.log(p) if p > 0 else (-math.inf if p == 0 else math.nan)


def _ids(text: str) -> TokenIds:
    return tuple(map(ord, text))


def _text(ids: TokenIds) -> str:
    return "".join(map(chr, ids))
