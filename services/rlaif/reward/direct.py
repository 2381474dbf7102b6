"""Direct RLAIF: the judge's expected score is the reward (arXiv 2309.00267 §3.2.2)."""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from rlaif.client.judge_messages import conversation_messages
from rlaif.core.canonical import digest
from rlaif.core.errors import CorruptionError, InvalidInputError
from rlaif.reward.scoring import RawValue, ScoredInput
from rlaif.v1 import judge_service_pb2, judge_service_pb2_grpc, provenance_pb2

_FAILURES = {
    judge_service_pb2.ABSTENTION_REASON_TOO_LONG: "TOO_LONG",
    judge_service_pb2.ABSTENTION_REASON_NOT_FINITE: "NOT_FINITE",
}


class DirectJudge:
    """The judge's scores, rescaled to [-1, 1]; the judge records them before it answers."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = judge_service_pb2_grpc.JudgeServiceStub(channel)

    async def score(self, inputs: Sequence[ScoredInput], *, constitution: str) -> list[RawValue]:
        """One value an input, from one call to the judge. What the judge refuses is refused here, and a judge that is
        away is an UnavailableError of the whole call: the caller tries again, and no input is scored by half."""
        if not constitution:
            raise InvalidInputError(
                'the judge needs a constitution, "constitutions/{constitution}"', field="constitution"
            )
        response = await self._stub.BatchScoreResponses(
            judge_service_pb2.BatchScoreResponsesRequest(
                constitution=constitution,
                responses=[_item(scored) for scored in inputs],
            )
        )
        if len(response.scores) != len(inputs):
            raise CorruptionError(f"the judge gave {len(response.scores)} scores for {len(inputs)} responses")
        sources: dict[tuple[str, str, str], str] = {}
        return [_value(score, sources) for score in response.scores]


def _item(scored: ScoredInput) -> judge_service_pb2.ResponseToScore:
    return judge_service_pb2.ResponseToScore(
        messages=conversation_messages(scored.conversation), response=scored.response, category=scored.category
    )


def _value(score: judge_service_pb2.Score, sources: dict[tuple[str, str, str], str]) -> RawValue:
    if not score.HasField("reward"):
        reason = _FAILURES.get(score.abstention_reason, "ABSTAINED")
        return RawValue(None, failure_reason=reason, provenance=score.provenance)
    return RawValue(score.reward, source_sha256=_source(score.provenance, sources), provenance=score.provenance)


def _source(made: provenance_pb2.Provenance, known: dict[tuple[str, str, str], str]) -> str:
    """Digest of what the score depends on; empty for a judge whose weights cannot be identified."""
    key = (made.model.digest, made.template_sha256, made.constitution.sha256)
    if not made.model.digest:
        return ""
    if key not in known:
        known[key] = digest({"kind": "judge", "judge": key[0], "template": key[1], "constitution": key[2]})
    return known[key]
