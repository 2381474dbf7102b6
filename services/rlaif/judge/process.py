"""The judge as a service: what is loaded before it serves and freed after."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import grpc

from rlaif.client.ledger import AioLedgerClient
from rlaif.core.calibration import Calibration
from rlaif.core.errors import SettingsError
from rlaif.core.template import find_template
from rlaif.engine.factory import open_engine
from rlaif.engine.protocol import ChoiceLogprobs, ChoiceRequest, Engine, GenerateRequest, Generation
from rlaif.engine.watch import EngineWatch
from rlaif.judge.calibrating import CalibrationKey, load_calibrations
from rlaif.judge.description import Description
from rlaif.judge.generation import Decoding, PlanningThread
from rlaif.judge.judging import Judge
from rlaif.judge.labelling import LabellingCore
from rlaif.judge.library import ConstitutionLibrary, load_library
from rlaif.judge.metrics import JudgeMetrics, Queue, judge_metrics
from rlaif.judge.panel import Panel, RemoteJudge
from rlaif.judge.reasoning import Reasoner, RunChoices
from rlaif.judge.recording import Recorder
from rlaif.judge.requests import OptionDefaults, RequestLimits, RequestReader
from rlaif.judge.sampling import VerdictSampler
from rlaif.judge.screening import Screen
from rlaif.judge.servicer import JudgeServicer
from rlaif.judge.settings import JudgeSettings, QueueSettings, WritingSettings
from rlaif.judge.settling import PanelOptions
from rlaif.judge.wire import ProvenanceMaker
from rlaif.judge.writing import Writer, WritingOptions
from rlaif.runtime.batching import Batcher
from rlaif.runtime.logging import EventLogger
from rlaif.runtime.messages import TextLimits
from rlaif.runtime.server import Service
from rlaif.runtime.telemetry import Follower
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
        unready=process.unready,
        lost=process.lost,
    )


class _Process:
    """Owns what the service holds open."""

    def __init__(self, settings: JudgeSettings) -> None:
        self._settings = settings
        self._watch = EngineWatch()
        self._resources = AsyncExitStack()
        self._servicer = JudgeServicer(_reader(settings))

    def register(self, server: grpc.aio.Server) -> None:
        judge_service_pb2_grpc.add_JudgeServiceServicer_to_server(self._servicer, server)

    async def start(self) -> None:
        settings, metrics = self._settings, judge_metrics()
        library = load_library(settings.constitutions)
        engine = await open_engine(settings.engine, model=settings.model)
        self._resources.push_async_callback(engine.close)
        calibrations = self._load_calibrations(engine, library)
        metrics.engine_gpus.set(engine.num_gpus)
        count_tokens = _prompt_counter(engine, metrics)
        texts = _engine_texts(engine, settings, metrics, count_tokens=count_tokens)
        self._resources.push_async_callback(texts.close)
        choices = _engine_batches(engine, settings, metrics, count_tokens=count_tokens)
        self._resources.push_async_callback(choices.close)
        num_verdict_samples = 0 if engine.capabilities.choice_logprobs else settings.num_verdict_samples
        run_choices: RunChoices = choices.submit
        if num_verdict_samples:
            _check_sampling(engine, settings)
            run_choices = VerdictSampler(engine, run_generate=texts.submit, num_samples=num_verdict_samples)
        plan = PlanningThread()
        self._resources.push_async_callback(asyncio.to_thread, plan.close)
        template = find_template(settings.template)
        make_provenance = ProvenanceMaker(engine, template=template, num_verdict_samples=num_verdict_samples)
        panel = self._open_panel()
        judge = Judge(
            engine,
            core=LabellingCore(
                engine,
                template=template,
                run_choices=run_choices,
                plan=plan,
                reasoner=Reasoner(
                    engine, template=template, run_generate=texts.submit, run_choices=run_choices, plan=plan
                ),
                screen=Screen(max_conversations=settings.null_response_conversations),
            ),
            template=template,
            recorder=self._open_recorder(),
            make_provenance=make_provenance,
            metrics=metrics,
            calibrations=calibrations,
            panel=panel,
            num_verdict_samples=num_verdict_samples,
        )
        self._servicer.library = library
        self._servicer.judge = judge
        self._servicer.writer = Writer(
            engine,
            template=template,
            run_generate=texts.submit,
            plan=plan,
            options=_writing(settings.writing),
            make_provenance=make_provenance,
            metrics=metrics,
        )
        self._servicer.describe = Description(
            engine,
            judge=judge,
            template=template,
            calibrations=tuple(calibrations.values()),
            panel=panel,
            settings=settings,
        )
        _show_queue(metrics, "verdicts", choices, settings.queue)
        _show_queue(metrics, "texts", texts, settings.queue)
        self._resources.callback(asyncio.create_task(self._watch.run(engine)).cancel)

    def unready(self) -> str:
        """Why this replica should get no calls, "" when it should."""
        return self._watch.failure

    def lost(self) -> str:
        """Why only another process can judge, "" while this one can."""
        return self._watch.lost

    async def stop(self) -> None:
        await self._resources.aclose()

    def _load_calibrations(self, engine: Engine, library: ConstitutionLibrary) -> dict[CalibrationKey, Calibration]:
        template = find_template(self._settings.template)
        return load_calibrations(
            self._settings.calibrations,
            judge_digest=engine.identity.digest,
            template_sha256s=(template.sha256, template.reasoning_sha256),
            constitutions=library.digests,
        )

    def _open_panel(self) -> Panel | None:
        settings = self._settings.panel
        if settings is None:
            return None
        panel = Panel(
            [RemoteJudge(judge.name, judge) for judge in settings.judges],
            options=PanelOptions(settings.rule, settings.votes_needed, settings.max_disagreement),
        )
        self._resources.push_async_callback(panel.close)
        return panel

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


def _check_sampling(engine: Engine, settings: JudgeSettings) -> None:
    """SettingsError unless verdicts may be estimated; a line in the log when they are."""
    if settings.without_logprobs == "refuse":
        raise SettingsError(
            f"{engine.identity.uri} gives no log-probabilities, from which verdicts are read; take a model or server "
            "that does, or set without_logprobs to sample for verdicts estimated from draws",
            field="without_logprobs",
        )
    if settings.calibrations:
        raise SettingsError(
            "calibrations are fitted on log-probabilities, and these verdicts are estimated from draws: leave them out",
            field="calibrations",
        )
    _log.warning(
        "VERDICTS ARE ESTIMATES: the engine gives no log-probabilities",
        model=engine.identity.uri,
        num_verdict_samples=settings.num_verdict_samples,
        constrained=engine.capabilities.constraints,
    )


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
            reasoning=Decoding(**settings.reasoning.model_dump()) if settings.reasoning else None,
        ),
    )


def _writing(settings: WritingSettings) -> WritingOptions:
    def decoding(max_tokens: int) -> Decoding:
        return Decoding(max_tokens, settings.temperature, settings.top_p)

    return WritingOptions(
        critique=decoding(settings.max_critique_tokens),
        revision=decoding(settings.max_revision_tokens),
        audit=decoding(settings.max_audit_tokens),
        max_examples=settings.max_exemplars,
    )


def _prompt_counter(engine: Engine, metrics: JudgeMetrics) -> Callable[[], None]:
    followers = (
        Follower(metrics.prompt_tokens, lambda: engine.work.prompt_tokens),
        Follower(metrics.computed_prompt_tokens, lambda: engine.work.computed_prompt_tokens),
    )

    def count() -> None:
        for follow in followers:
            follow()

    return count


def _show_queue(metrics: JudgeMetrics, name: Queue, batcher: Batcher[Any, Any], settings: QueueSettings) -> None:
    metrics.queue_prompts.labels(queue=name).set_function(lambda: batcher.size_queued)
    metrics.queue_limit.labels(queue=name).set(settings.max_queue_items)


def _engine_batches(
    engine: Engine, settings: JudgeSettings, metrics: JudgeMetrics, *, count_tokens: Callable[[], None]
) -> Batcher[ChoiceRequest, ChoiceLogprobs]:
    async def execute(requests: Sequence[ChoiceRequest]) -> Sequence[ChoiceLogprobs]:
        start = time.perf_counter()
        answers = await engine.choice_logprobs(requests)
        metrics.engine_seconds.observe(time.perf_counter() - start)
        metrics.batch_prompts.observe(sum(len(request.suffixes) for request in requests))
        count_tokens()
        return answers

    queue = settings.queue
    return Batcher(
        execute,
        mix=settings.mix_requests,
        max_batch_size=queue.max_batch_items,
        max_delay_seconds=queue.max_delay_milliseconds / 1000,
        max_queue_size=queue.max_queue_items,
        max_turn_size=queue.max_turn_items,
        on_wait=metrics.queue_wait_seconds.labels(queue="verdicts").observe,
    )


def _engine_texts(
    engine: Engine, settings: JudgeSettings, metrics: JudgeMetrics, *, count_tokens: Callable[[], None]
) -> Batcher[GenerateRequest, Sequence[Generation]]:
    async def execute(requests: Sequence[GenerateRequest]) -> Sequence[Sequence[Generation]]:
        start = time.perf_counter()
        texts = await engine.generate(requests)
        metrics.text_seconds.observe(time.perf_counter() - start)
        metrics.completion_tokens.inc(sum(len(each.token_ids) for generations in texts for each in generations))
        count_tokens()
        return texts

    queue = settings.queue
    return Batcher(
        execute,
        mix=settings.mix_requests,
        max_batch_size=queue.max_batch_items,
        max_delay_seconds=queue.max_delay_milliseconds / 1000,
        max_queue_size=queue.max_queue_items,
        max_turn_size=queue.max_turn_texts,
        on_wait=metrics.queue_wait_seconds.labels(queue="texts").observe,
    )
