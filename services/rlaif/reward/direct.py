"""Direct RLAIF: the judge's expected score is the reward (arXiv 2309.00267 §3.2.2)."""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from rlaif.client.judge_messages import conversation_messages
from rlaif.core.errors import CorruptionError, InvalidInputError
from rlaif.engine.protocol import ModelIdentity
from rlaif.reward.scoring import Component, Reward, ScoredInput
from rlaif.v1 import judge_service_pb2, judge_service_pb2_grpc

_FAILURES = {
    judge_service_pb2.ABSTENTION_REASON_TOO_LONG: "TOO_LONG",
    judge_service_pb2.ABSTENTION_REASON_NOT_FINITE: "NOT_FINITE",
}


class DirectJudge:
    """Rewards that are the judge's scores, rescaled to [-1, 1]; the judge records them before it answers."""

    component = "judge"
    members: Sequence[ModelIdentity] = ()

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = judge_service_pb2_grpc.JudgeServiceStub(channel)

    async def score(self, inputs: Sequence[ScoredInput], *, constitution: str) -> list[Reward]:
        """One reward an input, from one call to the judge; what the judge refuses is refused here."""
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
        return [self._reward(score) for score in response.scores]

    def _reward(self, score: judge_service_pb2.Score) -> Reward:
        if not score.HasField("reward"):
            reason = _FAILURES.get(score.abstention_reason, "ABSTAINED")
            return Reward((), failure_reason=reason, provenance=score.provenance)
        return Reward((Component(self.component, score.reward),), provenance=score.provenance)


def _item(scored: ScoredInput) -> judge_service_pb2.ResponseToScore:
    return judge_service_pb2.ResponseToScore(
        messages=conversation_messages(scored.conversation), response=scored.response, category=scored.category
    )
