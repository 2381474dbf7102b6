"""A judge service without a model or a core: it answers from the texts it is sent."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from rlaif.core.errors import InvalidInputError, QuotaExceededError, UnavailableError, UnsupportedError
from rlaif.runtime.server import Service
from rlaif.v1 import judge_service_pb2 as pb
from rlaif.v1 import judge_service_pb2_grpc, provenance_pb2


@dataclass
class TextJudge(judge_service_pb2_grpc.JudgeServiceServicer):
    """The longer response wins; what the text "bad" is in is refused; "slow" waits."""

    refuse_times: int = 0
    away_times: int = 0
    retry_after_seconds: float = 0.01
    max_in_flight: int = 0
    writes_audits: bool = True
    requests: list[Any] = field(default_factory=list)
    _in_flight: int = 0

    async def CompareResponses(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.requests.append(request)
        if request.first == "slow":
            await asyncio.sleep(60)
        return pb.CompareResponsesResponse(verdict=_verdict(request.first, request.second))

    async def BatchCompareResponses(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.requests.append(request)
        self._in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self._in_flight)
        try:
            # Later batches answer sooner, so that order is the client's work.
            await asyncio.sleep(0.05 / len(self.requests))
            self._refuse()
            for index, pair in enumerate(request.pairs):
                if pair.first == "bad":
                    raise InvalidInputError("it is bad", field=f"pairs[{index}].first", reason="BAD")
            return pb.BatchCompareResponsesResponse(
                verdicts=[_verdict(pair.first, pair.second) for pair in request.pairs]
            )
        finally:
            self._in_flight -= 1

    async def BatchScoreResponses(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.requests.append(request)
        self._refuse()
        return pb.BatchScoreResponsesResponse(
            scores=[
                pb.Score(expected=len(item.response), reward=0.5, provenance=_provenance())
                for item in request.responses
            ]
        )

    async def ScoreResponse(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.requests.append(request)
        spread = [0.1] * 10
        scored = pb.PrincipleScore(principle_id="kind", expected=5.5, probabilities=spread, weight=2)
        return pb.ScoreResponseResponse(
            score=pb.Score(expected=5.5, reward=0.0, principle_scores=[scored], provenance=_provenance())
        )

    async def RankResponses(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.requests.append(request)
        order = sorted(range(len(request.responses)), key=lambda index: -len(request.responses[index]))
        return pb.RankResponsesResponse(
            ranking=[
                pb.RankedResponse(index=index, rank=place, strength=1.5 - place, strength_standard_error=0.25)
                for place, index in enumerate(order, start=1)
            ],
            cycles=[pb.PreferenceCycle(indices=[0, 1, 2])],
            comparisons=[pb.RankComparison(first_index=0, second_index=1, verdict=_verdict("a", "bb"))],
        )

    async def CritiqueResponse(self, request: Any, context: Any) -> Any:  # noqa: N802
        if not request.response.strip():
            return pb.CritiqueResponseResponse(abstention_reason=pb.ABSTENTION_REASON_EMPTY)
        return pb.CritiqueResponseResponse(
            critique=f"{request.response!r} is curt.",
            principle_ids=request.options.principle_ids,
            provenance=_provenance(),
        )

    async def ReviseResponse(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.ReviseResponseResponse(
            revision=f"{request.response} {request.critique} {request.seed}",
            unchanged=request.seed == 0,
            provenance=_provenance(),
        )

    async def AuditConstitution(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.requests.append(request)
        if request.written_audit and not self.writes_audits:
            raise UnsupportedError("this judge writes none", reason="WRITTEN_AUDIT_UNSUPPORTED")
        finding = pb.AuditFinding(
            kind=pb.AUDIT_FINDING_KIND_EDGE_CASE, principle_ids=["kind"], description="Open.", suggestion="Close."
        )
        return pb.AuditConstitutionResponse(
            findings=[finding], written_audit_abstention_reason=pb.ABSTENTION_REASON_TRUNCATED
        )

    async def GetJudge(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.away_times:
            self.away_times -= 1
            raise UnavailableError("the engine is being replaced")
        return pb.GetJudgeResponse(template="compact", context_length_tokens=512, panel=[pb.PanelJudge(judge="two")])

    async def GetConstitution(self, request: Any, context: Any) -> Any:  # noqa: N802
        principle = pb.Principle(principle_id="kind", text="Prefer the kind reply.", weight=2)
        return pb.GetConstitutionResponse(
            constitution=pb.Constitution(name=request.name, version=1, principles=[principle])
        )

    async def ListConstitutions(self, request: Any, context: Any) -> Any:  # noqa: N802
        names = ["a", "b", "c"]
        index = int(request.page_token or 0)
        return pb.ListConstitutionsResponse(
            constitutions=[pb.Constitution(name=f"constitutions/{names[index]}", version=1)],
            next_page_token=str(index + 1) if index < 2 else "",
        )

    def _refuse(self) -> None:
        if self.refuse_times:
            self.refuse_times -= 1
            raise QuotaExceededError("the queue is full", retry_after_seconds=self.retry_after_seconds)


def _verdict(first: str, second: str) -> pb.Verdict:
    return pb.Verdict(
        preference=pb.PREFERENCE_FIRST if len(first) > len(second) else pb.PREFERENCE_SECOND,
        probability_first=len(first) / (len(first) + len(second)),
        principle_votes=[pb.PrincipleVote(principle_id="kind", weight=2)],
        judge_votes=[pb.JudgeVote(judge="two", probability_first=0.25)],
        rationale="longer",
        responses_nearly_identical=first.strip() == second.strip(),
        provenance=_provenance(),
    )


def _provenance() -> provenance_pb2.Provenance:
    """Where every value of a judge comes from says when it was made."""
    return provenance_pb2.Provenance(service_revision="test", create_time=Timestamp(seconds=1_800_000_000))


def text_judge_service(judge: TextJudge) -> Service:
    """That judge, to be served on loopback."""

    async def nothing() -> None:
        return

    return Service(
        name="judge",
        grpc_services=("rlaif.v1.JudgeService",),
        register=lambda server: judge_service_pb2_grpc.add_JudgeServiceServicer_to_server(judge, server),
        start=nothing,
        stop=nothing,
    )
