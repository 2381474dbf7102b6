"""The judge as a service: what is loaded before it serves and freed after."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

import grpc

from rlaif.client.ledger import AioLedgerClient
from rlaif.core.template import find_template
from rlaif.engine.factory import open_engine
from rlaif.engine.protocol import ChoiceLogprobs, ChoiceRequest, Engine
from rlaif.judge.batching import Batcher
from rlaif.judge.judging import Judge
from rlaif.judge.labelling import LabellingCore
from rlaif.judge.library import load_library
from rlaif.judge.metrics import JudgeMetrics, judge_metrics
from rlaif.judge.recording import Recorder
from rlaif.judge.requests import OptionDefaults, RequestLimits, RequestReader
from rlaif.judge.servicer import JudgeServicer
from rlaif.judge.settings import JudgeSettings
from rlaif.judge.wire import ProvenanceMaker
from rlaif.runtime.logging import EventLogger
from rlaif.runtime.messages import TextLimits
from rlaif.runtime.server import Service
from rlaif.v1 import judge_service_pb2_grpc

_log = EventLogger(__name__)


def make_service(settings: JudgeSettings) -> Service:
    """The judge service of these settings. Its model and constitutions are read when it starts."""
    process = _Process(settings)
    return Service(
        name="judge",
        grpc_services=("rlaif.v1.JudgeService",),
        register=process.register,
        start=process.start,
        stop=process.stop,
    )


class _Process:
    """Owns what the service holds open."""

    def __init__(self, settings: JudgeSettings) -> None:
        self._settings = settings
        self._resources = AsyncExitStack()
        self._servicer = JudgeServicer(_reader(settings))  # type: ignore[abstract]  # the rest answers NOT_SERVED

    def register(self, server: grpc.aio.Server) -> None:
        judge_service_pb2_grpc.add_JudgeServiceServicer_to_server(self._servicer, server)

    async def start(self) -> None:
        settings, metrics = self._settings, judge_metrics()
        library = load_library(settings.constitutions)
        engine = await open_engine(settings.engine, model=settings.model)
        self._resources.push_async_callback(engine.close)
        choices = _engine_batches(engine, settings, metrics)
        self._resources.push_async_callback(choices.close)
        template = find_template(settings.template)
        core = LabellingCore(engine, template=template, run_choices=choices.submit)
        self._resources.push_async_callback(asyncio.to_thread, core.close)
        self._servicer.library = library
        self._servicer.judge = Judge(
            engine,
            core=core,
            template=template,
            recorder=self._open_recorder(),
            make_provenance=ProvenanceMaker(engine, template=template),
            metrics=metrics,
        )
        metrics.queue_prompts.set_function(lambda: choices.num_queued)

    async def stop(self) -> None:
        await self._resources.aclose()

    def _open_recorder(self) -> Recorder | None:
        settings = self._settings
        if settings.ledger is None:
            _log.warning("NO LEDGER: labels are not recorded, must not be trained on, and nothing is looked up")
            return None
        ledger = AioLedgerClient(settings.ledger)
        self._resources.push_async_callback(ledger.close)
        recorder = Recorder(ledger, max_delay_seconds=settings.ledger_batch_milliseconds / 1000)
        self._resources.push_async_callback(recorder.close)
        return recorder


def _reader(settings: JudgeSettings) -> RequestReader:
    limits = settings.limits
    return RequestReader(
        RequestLimits(
            TextLimits(max_text_bytes=limits.max_text_bytes, max_turns=limits.max_turns),
            max_items=limits.max_items,
            max_request_bytes=limits.max_request_bytes,
        ),
        defaults=OptionDefaults(
            min_verdict_mass=settings.min_verdict_mass,
            abstain_on_injection=settings.abstain_on_injection,
            keep_texts=settings.record == "texts",
        ),
    )


def _engine_batches(
    engine: Engine, settings: JudgeSettings, metrics: JudgeMetrics
) -> Batcher[ChoiceRequest, ChoiceLogprobs]:
    async def execute(requests: Sequence[ChoiceRequest]) -> Sequence[ChoiceLogprobs]:
        start = time.perf_counter()
        answers = await engine.choice_logprobs(requests)
        metrics.engine_seconds.observe(time.perf_counter() - start)
        metrics.batch_prompts.observe(sum(len(request.suffixes) for request in requests))
        return answers

    queue = settings.queue
    return Batcher(
        execute,
        mix=settings.mix_requests,
        max_batch_items=queue.max_batch_items,
        max_delay_seconds=queue.max_delay_milliseconds / 1000,
        max_queue_items=queue.max_queue_items,
        max_turn_items=queue.max_turn_items,
    )
