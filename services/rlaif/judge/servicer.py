"""rlaif.v1.JudgeService: reads requests, asks the judge, writes responses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from rlaif.core.audit import audit_constitution, audit_votes
from rlaif.core.constitution import Constitution, Principle
from rlaif.core.errors import InvalidInputError
from rlaif.judge.generation import Text
from rlaif.judge.judging import Judge, RankedPair, outcomes
from rlaif.judge.library import ConstitutionLibrary
from rlaif.judge.ranking import Strength, bradley_terry, connected_groups, find_cycles
from rlaif.judge.requests import RequestReader, check_principle_ids
from rlaif.judge.tasks import draw_principles
from rlaif.judge.wire import abstention_code, constitution_message, finding_message
from rlaif.judge.writing import Writer
from rlaif.v1 import judge_service_pb2, judge_service_pb2_grpc

_STRENGTH_TIE = 1e-9

_Ruled = (
    judge_service_pb2.CompareResponsesRequest
    | judge_service_pb2.BatchCompareResponsesRequest
    | judge_service_pb2.RankResponsesRequest
    | judge_service_pb2.ScoreResponseRequest
    | judge_service_pb2.BatchScoreResponsesRequest
    | judge_service_pb2.CritiqueResponseRequest
    | judge_service_pb2.ReviseResponseRequest
    | judge_service_pb2.AuditConstitutionRequest
)


class JudgeServicer(judge_service_pb2_grpc.JudgeServiceServicer):
    """The judge on the wire; methods left out are not served. What it asks is set before calls are let in."""

    judge: Judge
    writer: Writer
    library: ConstitutionLibrary
    describe: Callable[[], Awaitable[judge_service_pb2.GetJudgeResponse]]

    def __init__(self, reader: RequestReader) -> None:
        self._reader = reader

    async def CompareResponses(  # noqa: N802 - named by the contract
        self, request: judge_service_pb2.CompareResponsesRequest, context: Any
    ) -> judge_service_pb2.CompareResponsesResponse:
        decisions = await self.judge.decide(
            [self._reader.pair(request)],
            constitution=self._constitution(request),
            options=self._reader.options(request.options),
            refuse_too_long=True,
        )
        return judge_service_pb2.CompareResponsesResponse(verdict=decisions[0].verdict)

    async def BatchCompareResponses(  # noqa: N802
        self, request: judge_service_pb2.BatchCompareResponsesRequest, context: Any
    ) -> judge_service_pb2.BatchCompareResponsesResponse:
        decisions = await self.judge.decide(
            self._reader.pairs(request),
            constitution=self._constitution(request),
            options=self._reader.options(request.options),
        )
        return judge_service_pb2.BatchCompareResponsesResponse(verdicts=[decision.verdict for decision in decisions])

    async def RankResponses(  # noqa: N802
        self, request: judge_service_pb2.RankResponsesRequest, context: Any
    ) -> judge_service_pb2.RankResponsesResponse:
        candidate = self._reader.ranked(request)
        pairs = await self.judge.rank(
            candidate.conversation,
            candidate.responses,
            category=candidate.category,
            constitution=self._constitution(request),
            options=self._reader.options(request.options),
        )
        return _ranking(len(candidate.responses), pairs)

    async def ScoreResponse(  # noqa: N802
        self, request: judge_service_pb2.ScoreResponseRequest, context: Any
    ) -> judge_service_pb2.ScoreResponseResponse:
        decisions = await self.judge.decide(
            [self._reader.response(request)],
            constitution=self._constitution(request),
            options=self._reader.options(request.options),
            refuse_too_long=True,
        )
        return judge_service_pb2.ScoreResponseResponse(score=decisions[0].score)

    async def BatchScoreResponses(  # noqa: N802
        self, request: judge_service_pb2.BatchScoreResponsesRequest, context: Any
    ) -> judge_service_pb2.BatchScoreResponsesResponse:
        decisions = await self.judge.decide(
            self._reader.responses(request),
            constitution=self._constitution(request),
            options=self._reader.options(request.options),
        )
        return judge_service_pb2.BatchScoreResponsesResponse(scores=[decision.score for decision in decisions])

    async def CritiqueResponse(  # noqa: N802
        self, request: judge_service_pb2.CritiqueResponseRequest, context: Any
    ) -> judge_service_pb2.CritiqueResponseResponse:
        candidate = self._reader.written_on(request)
        options, constitution = self._reader.options(request.options), self._constitution(request)
        if options.reasoning is not None:
            raise InvalidInputError("a critique has no verdict to reason about", field="options.reasoning")
        principles = draw_principles(candidate, constitution=constitution, options=options)
        text = await self.writer.critique(
            candidate, constitution=constitution, principles=principles, seed=options.seed
        )
        return judge_service_pb2.CritiqueResponseResponse(
            critique=text.content,
            principle_ids=[principle.principle_id for principle in principles],
            provenance=self.writer.provenance(constitution, seed=options.seed),
            abstention_reason=abstention_code(text.abstention_reason),
        )

    async def ReviseResponse(  # noqa: N802
        self, request: judge_service_pb2.ReviseResponseRequest, context: Any
    ) -> judge_service_pb2.ReviseResponseResponse:
        candidate, critique = self._reader.written_on(request), self._reader.critique(request)
        constitution = self._constitution(request)
        revision = await self.writer.revise(
            candidate,
            critique=critique,
            constitution=constitution,
            principles=_criticised_by(request, constitution=constitution),
            seed=request.seed,
        )
        return judge_service_pb2.ReviseResponseResponse(
            revision=revision.text,
            unchanged=revision.unchanged,
            provenance=self.writer.provenance(constitution, seed=request.seed),
            abstention_reason=abstention_code(revision.abstention_reason),
        )

    async def AuditConstitution(  # noqa: N802
        self, request: judge_service_pb2.AuditConstitutionRequest, context: Any
    ) -> judge_service_pb2.AuditConstitutionResponse:
        pairs, constitution = self._reader.probe_pairs(request), self._constitution(request)
        written = await self.writer.audit(constitution) if request.written_audit else Text("")
        labels = []
        if pairs:
            options = self._reader.options(judge_service_pb2.JudgeOptions())
            labels = await self.judge.try_out(pairs, constitution=constitution, options=options)
        findings = [
            *audit_constitution(constitution),
            *audit_votes(constitution, [label.votes for label in labels if label.votes]),
        ]
        return judge_service_pb2.AuditConstitutionResponse(
            findings=[finding_message(finding) for finding in findings],
            written_audit=written.content,
            provenance=self.writer.audit_provenance(constitution),
            written_audit_abstention_reason=abstention_code(written.abstention_reason),
        )

    async def GetJudge(  # noqa: N802
        self, request: judge_service_pb2.GetJudgeRequest, context: Any
    ) -> judge_service_pb2.GetJudgeResponse:
        return await self.describe()

    def _constitution(self, request: _Ruled) -> Constitution:
        inline = request.inline_constitution if request.HasField("inline_constitution") else None
        return self.library.resolve(request.constitution, inline)

    async def GetConstitution(  # noqa: N802
        self, request: judge_service_pb2.GetConstitutionRequest, context: Any
    ) -> judge_service_pb2.GetConstitutionResponse:
        constitution = self.library.get(request.name, field="name")
        return judge_service_pb2.GetConstitutionResponse(constitution=constitution_message(constitution))

    async def ListConstitutions(  # noqa: N802
        self, request: judge_service_pb2.ListConstitutionsRequest, context: Any
    ) -> judge_service_pb2.ListConstitutionsResponse:
        page, token = self.library.page(page_size=request.page_size, page_token=request.page_token)
        return judge_service_pb2.ListConstitutionsResponse(
            constitutions=[constitution_message(constitution) for constitution in page], next_page_token=token
        )


def _criticised_by(
    request: judge_service_pb2.ReviseResponseRequest, *, constitution: Constitution
) -> tuple[Principle, ...]:
    check_principle_ids(request.principle_ids, field="principle_ids")
    try:
        return constitution.select(request.principle_ids, category=request.category)
    except InvalidInputError as error:
        error.field = (error.field or "").removeprefix("options.")
        raise


def _ranking(num_responses: int, pairs: Sequence[RankedPair]) -> judge_service_pb2.RankResponsesResponse:
    comparisons = outcomes(pairs)
    response = judge_service_pb2.RankResponsesResponse(
        cycles=[judge_service_pb2.PreferenceCycle(indices=cycle) for cycle in find_cycles(comparisons)],
        comparisons=[
            judge_service_pb2.RankComparison(
                first_index=pair.pairing[0], second_index=pair.pairing[1], verdict=pair.decision.verdict
            )
            for pair in pairs
        ],
    )
    if len(connected_groups(num_responses, comparisons)) > 1:
        response.abstention_reason = next(
            pair.decision.label.verdict.abstention_reason for pair in pairs if pair.comparison is None
        )
        return response
    response.ranking.extend(_ranked(bradley_terry(num_responses, comparisons)))
    return response


def _ranked(strengths: Sequence[Strength]) -> list[judge_service_pb2.RankedResponse]:
    """Best first; equal strengths share a rank."""
    order = sorted(range(len(strengths)), key=lambda index: (-strengths[index].value, index))
    ranked: list[judge_service_pb2.RankedResponse] = []
    for position, index in enumerate(order):
        strength = strengths[index]
        tied = position > 0 and ranked[-1].strength - strength.value <= _STRENGTH_TIE
        ranked.append(
            judge_service_pb2.RankedResponse(
                index=index,
                rank=ranked[-1].rank if tied else position + 1,
                strength=strength.value,
                strength_standard_error=strength.standard_error,
            )
        )
    return ranked
