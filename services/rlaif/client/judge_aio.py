"""Typed client of the judge for asyncio: plain values in, frozen values out, core errors when it fails."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from types import TracebackType

from rlaif.client import judge_messages as messages
from rlaif.client import judge_requests as requests
from rlaif.client.bulk import AioSend, Bulk, run_bulk_aio
from rlaif.client.channel import open_aio_channel
from rlaif.client.judge_messages import Rules
from rlaif.client.judge_values import (
    DEFAULT_OPTIONS,
    Asked,
    ConstitutionAudit,
    Critique,
    JudgeOptions,
    JudgeState,
    Progress,
    Ranking,
    ResponsePair,
    ResponseToScore,
    Revision,
    Score,
    ToScore,
    Verdict,
)
from rlaif.core.constitution import Constitution
from rlaif.core.errors import RlaifError
from rlaif.runtime.settings import ClientSettings
from rlaif.v1 import judge_service_pb2, judge_service_pb2_grpc

_PAGE_SIZE = 100
_BATCH_SIZE = 64


class AsyncJudgeClient:
    """A judge service for code that awaits. Make it inside a running loop; close it, or use it as a context manager.

    `settings` is how to reach it; a text is its address, "127.0.0.1:50052", in plaintext. `constitution` of a call
    is the name of one that the judge has, "constitutions/{id}", or one to send along. UNAVAILABLE is tried again within
    the deadline; nothing else is.
    """

    def __init__(self, settings: ClientSettings | str) -> None:
        settings = ClientSettings(target=settings) if isinstance(settings, str) else settings
        self._timeout_seconds = settings.timeout_seconds
        self._channel = open_aio_channel(settings)
        self._stub = judge_service_pb2_grpc.JudgeServiceStub(self._channel)

    async def __aenter__(self) -> AsyncJudgeClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        await self._channel.close(None)

    async def compare(
        self,
        constitution: Rules,
        conversation: Asked,
        *,
        first: str,
        second: str,
        category: str = "",
        options: JudgeOptions = DEFAULT_OPTIONS,
        timeout_seconds: float | None = None,
    ) -> Verdict:
        """Which of two responses better follows the rules."""
        request = requests.compare_request(constitution, ResponsePair(conversation, first, second, category), options)
        response = await self._stub.CompareResponses(request, timeout=timeout_seconds)
        return messages.verdict(response.verdict)

    async def compare_many(
        self,
        constitution: Rules,
        pairs: Sequence[ResponsePair],
        *,
        options: JudgeOptions = DEFAULT_OPTIONS,
        batch_size: int = _BATCH_SIZE,
        concurrency: int = 1,
        progress: Progress | None = None,
        timeout_seconds: float | None = None,
    ) -> list[Verdict]:
        """One verdict a pair, in order; the first error is raised, with the pair's position in its field.

        Batches are cut in order of `pairs`, so the same call makes the same batches; `concurrency` of them are in
        flight at once, and `timeout_seconds` is of each. A batch that was recorded before a crash is answered from the
        ledger. `progress` hears of batches in order.
        """
        bulk = Bulk(batch_size, concurrency, self._seconds(timeout_seconds), errors="raise")
        verdicts: list[Verdict] = []
        async for batch in run_bulk_aio(pairs, self._compare_batch(constitution, options), bulk):
            verdicts += [each for each in batch if isinstance(each, Verdict)]
            if progress is not None:
                progress(len(verdicts), len(pairs))
        return verdicts

    async def compare_each(
        self,
        constitution: Rules,
        pairs: Iterable[ResponsePair],
        *,
        options: JudgeOptions = DEFAULT_OPTIONS,
        batch_size: int = _BATCH_SIZE,
        concurrency: int = 4,
        timeout_seconds: float | None = None,
    ) -> AsyncGenerator[Verdict | RlaifError, None]:
        """One verdict or error a pair, in order, as they come; for jobs too large to hold.

        `pairs` is read a few batches ahead. A pair that is refused yields its error and the others their verdicts.
        """
        bulk = Bulk(batch_size, concurrency, self._seconds(timeout_seconds), errors="return")
        async with aclosing(run_bulk_aio(pairs, self._compare_batch(constitution, options), bulk)) as batches:
            async for batch in batches:
                for each in batch:
                    yield each

    async def score(
        self,
        constitution: Rules,
        conversation: Asked,
        *,
        response: str,
        category: str = "",
        options: JudgeOptions = DEFAULT_OPTIONS,
        timeout_seconds: float | None = None,
    ) -> Score:
        """How well one response follows the constitution, from 1 to 10."""
        request = requests.score_request(constitution, ResponseToScore(conversation, response, category), options)
        answer = await self._stub.ScoreResponse(request, timeout=timeout_seconds)
        return messages.score(answer.score)

    async def score_many(
        self,
        constitution: Rules,
        responses: Sequence[ToScore],
        *,
        options: JudgeOptions = DEFAULT_OPTIONS,
        batch_size: int = _BATCH_SIZE,
        concurrency: int = 1,
        progress: Progress | None = None,
        timeout_seconds: float | None = None,
    ) -> list[Score]:
        """One score a response, in order; a response may be empty. Batches and errors as in `compare_many`."""
        bulk = Bulk(batch_size, concurrency, self._seconds(timeout_seconds), errors="raise")
        scores: list[Score] = []
        async for batch in run_bulk_aio(responses, self._score_batch(constitution, options), bulk):
            scores += [each for each in batch if isinstance(each, Score)]
            if progress is not None:
                progress(len(scores), len(responses))
        return scores

    async def score_each(
        self,
        constitution: Rules,
        responses: Iterable[ToScore],
        *,
        options: JudgeOptions = DEFAULT_OPTIONS,
        batch_size: int = _BATCH_SIZE,
        concurrency: int = 4,
        timeout_seconds: float | None = None,
    ) -> AsyncGenerator[Score | RlaifError, None]:
        """One score or error a response, in order, as they come; as in `compare_each`."""
        bulk = Bulk(batch_size, concurrency, self._seconds(timeout_seconds), errors="return")
        async with aclosing(run_bulk_aio(responses, self._score_batch(constitution, options), bulk)) as batches:
            async for batch in batches:
                for each in batch:
                    yield each

    async def rank(
        self,
        constitution: Rules,
        conversation: Asked,
        *,
        responses: Sequence[str],
        category: str = "",
        options: JudgeOptions = DEFAULT_OPTIONS,
        timeout_seconds: float | None = None,
    ) -> Ranking:
        """2 to 16 responses from best to worst."""
        request = requests.rank_request(constitution, conversation, responses, options, category=category)
        return messages.ranking(await self._stub.RankResponses(request, timeout=timeout_seconds))

    async def critique(
        self,
        constitution: Rules,
        conversation: Asked,
        *,
        response: str,
        category: str = "",
        options: JudgeOptions = DEFAULT_OPTIONS,
        timeout_seconds: float | None = None,
    ) -> Critique:
        """Where a response departs from the constitution, in the judge's words."""
        request = requests.critique_request(constitution, ResponseToScore(conversation, response, category), options)
        return messages.critique(await self._stub.CritiqueResponse(request, timeout=timeout_seconds))

    async def revise(
        self,
        constitution: Rules,
        conversation: Asked,
        *,
        response: str,
        critique: str,
        principle_ids: Sequence[str] = (),
        seed: int = 0,
        category: str = "",
        timeout_seconds: float | None = None,
    ) -> Revision:
        """The response rewritten to answer a critique made by these principles; none means all."""
        item = ResponseToScore(conversation, response, category)
        request = requests.revise_request(constitution, item, critique=critique, principle_ids=principle_ids, seed=seed)
        return messages.revision(await self._stub.ReviseResponse(request, timeout=timeout_seconds))

    async def audit(
        self,
        constitution: Rules,
        *,
        probe_pairs: Sequence[ResponsePair] = (),
        written_audit: bool = False,
        timeout_seconds: float | None = None,
    ) -> ConstitutionAudit:
        """Findings on the rules as a rubric; with up to 256 probe pairs also on how their principles vote."""
        request = requests.audit_request(constitution, probe_pairs, written_audit=written_audit)
        return messages.audit(await self._stub.AuditConstitution(request, timeout=timeout_seconds))

    async def get_judge(self) -> JudgeState:
        """Which judge answers: its weights, template, panel and calibrations."""
        return messages.judge_state(await self._stub.GetJudge(judge_service_pb2.GetJudgeRequest()))

    async def get_constitution(self, name: str) -> Constitution:
        """The constitution of that name, "constitutions/{id}"."""
        response = await self._stub.GetConstitution(judge_service_pb2.GetConstitutionRequest(name=name))
        return messages.constitution(response.constitution)

    async def list_constitutions(self) -> list[Constitution]:
        """All constitutions the judge can apply, by name."""
        found: list[Constitution] = []
        page_token = ""
        while True:
            request = judge_service_pb2.ListConstitutionsRequest(page_size=_PAGE_SIZE, page_token=page_token)
            page = await self._stub.ListConstitutions(request)
            found.extend(map(messages.constitution, page.constitutions))
            page_token = page.next_page_token
            if not page_token:
                return found

    def _compare_batch(self, constitution: Rules, options: JudgeOptions) -> AioSend[ResponsePair, Verdict]:
        async def send(pairs: Sequence[ResponsePair], timeout_seconds: float) -> Sequence[Verdict]:
            request = requests.compare_batch_request(constitution, pairs, options)
            response = await self._stub.BatchCompareResponses(request, timeout=timeout_seconds)
            return list(map(messages.verdict, response.verdicts))

        return send

    def _score_batch(self, constitution: Rules, options: JudgeOptions) -> AioSend[ToScore, Score]:
        async def send(items: Sequence[ToScore], timeout_seconds: float) -> Sequence[Score]:
            request = requests.score_batch_request(constitution, items, options)
            response = await self._stub.BatchScoreResponses(request, timeout=timeout_seconds)
            return list(map(messages.score, response.scores))

        return send

    def _seconds(self, wanted_seconds: float | None) -> float:
        return self._timeout_seconds if wanted_seconds is None else wanted_seconds
