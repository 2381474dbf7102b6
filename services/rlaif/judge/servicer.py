"""rlaif.v1.JudgeService: reads requests, asks the judge, writes responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlaif.core.constitution import Constitution
from rlaif.judge.judging import Judge, RankedPair, outcomes
from rlaif.judge.library import ConstitutionLibrary
from rlaif.judge.ranking import Strength, bradley_terry, connected_groups, find_cycles
from rlaif.judge.requests import RequestReader
from rlaif.judge.wire import constitution_message
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
    """The judge on the wire; methods left out are not served. `judge` and `library` are set before calls are let in."""

    judge: Judge
    library: ConstitutionLibrary

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
