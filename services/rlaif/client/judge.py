"""Typed client of the judge: plain values in, frozen values out, core errors when it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Literal, TypeVar

from rlaif.client import judge_messages as messages
from rlaif.client.channel import open_channel
from rlaif.client.judge_messages import (
    PrincipleScore,
    PrincipleVote,
    Provenance,
    RankComparison,
    RankedResponse,
    Ranking,
    Score,
    Verdict,
)
from rlaif.core.constitution import Constitution
from rlaif.core.conversation import Conversation
from rlaif.runtime.settings import ClientSettings
from rlaif.v1 import judge_service_pb2, judge_service_pb2_grpc

__all__ = [
    "JudgeClient",
    "JudgeOptions",
    "PrincipleScore",
    "PrincipleVote",
    "Progress",
    "Provenance",
    "RankComparison",
    "RankedResponse",
    "Ranking",
    "ResponsePair",
    "Score",
    "Verdict",
]

Progress = Callable[[int, int], None]
"""Called with (done, total) after every batch."""

_Item = TypeVar("_Item")
_PAGE_SIZE = 100


@dataclass(frozen=True)
class JudgeOptions:
    """How to judge; None and 0 leave the choice to the server.

    `num_sampled_principles` of the principles are drawn by `seed`, anew for every pair; 0 applies all.
    """

    principle_ids: tuple[str, ...] = ()
    num_sampled_principles: int = 0
    seed: int = 0
    min_verdict_mass: float | None = None
    record: Literal["digests", "texts"] | None = None
    ignore_recorded: bool = False


@dataclass(frozen=True)
class ResponsePair:
    """Two responses to one conversation; neither is empty and they differ."""

    conversation: Conversation
    first: str
    second: str


DEFAULT_OPTIONS = JudgeOptions()


class JudgeClient:
    """A judge service. Safe to use from several threads; close it, or use it as a context manager."""

    def __init__(self, settings: ClientSettings) -> None:
        self._channel = open_channel(settings)
        self._stub = judge_service_pb2_grpc.JudgeServiceStub(self._channel)

    def __enter__(self) -> JudgeClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def compare(
        self,
        constitution: str,
        conversation: Conversation,
        *,
        first: str,
        second: str,
        options: JudgeOptions = DEFAULT_OPTIONS,
        timeout_seconds: float | None = None,
    ) -> Verdict:
        """Which of two responses better follows `constitution` ("constitutions/{id}")."""
        request = judge_service_pb2.CompareResponsesRequest(
            constitution=constitution,
            messages=messages.conversation_messages(conversation),
            first=first,
            second=second,
            options=_options(options),
        )
        return messages.verdict(self._stub.CompareResponses(request, timeout=timeout_seconds).verdict)

    def compare_many(
        self,
        constitution: str,
        pairs: Sequence[ResponsePair],
        *,
        options: JudgeOptions = DEFAULT_OPTIONS,
        batch_size: int = 64,
        progress: Progress | None = None,
        timeout_seconds: float | None = None,
    ) -> list[Verdict]:
        """One verdict a pair, in order. Batches are cut in order of `pairs`, so the same call makes the same batches.

        `timeout_seconds` is of each batch. A batch that was recorded before a crash is answered from the ledger.
        """
        verdicts: list[Verdict] = []
        for batch in _batches(pairs, batch_size):
            request = judge_service_pb2.BatchCompareResponsesRequest(
                constitution=constitution,
                pairs=[
                    judge_service_pb2.Pair(
                        messages=messages.conversation_messages(pair.conversation),
                        first=pair.first,
                        second=pair.second,
                    )
                    for pair in batch
                ],
                options=_options(options),
            )
            response = self._stub.BatchCompareResponses(request, timeout=timeout_seconds)
            verdicts.extend(map(messages.verdict, response.verdicts))
            if progress is not None:
                progress(len(verdicts), len(pairs))
        return verdicts

    def score(
        self,
        constitution: str,
        conversation: Conversation,
        *,
        response: str,
        options: JudgeOptions = DEFAULT_OPTIONS,
        timeout_seconds: float | None = None,
    ) -> Score:
        """How well one response follows `constitution`, from 1 to 10."""
        request = judge_service_pb2.ScoreResponseRequest(
            constitution=constitution,
            messages=messages.conversation_messages(conversation),
            response=response,
            options=_options(options),
        )
        return messages.score(self._stub.ScoreResponse(request, timeout=timeout_seconds).score)

    def score_many(
        self,
        constitution: str,
        responses: Sequence[tuple[Conversation, str]],
        *,
        options: JudgeOptions = DEFAULT_OPTIONS,
        batch_size: int = 64,
        progress: Progress | None = None,
        timeout_seconds: float | None = None,
    ) -> list[Score]:
        """One score a response, in order; a response may be empty. Batches as in `compare_many`."""
        scores: list[Score] = []
        for batch in _batches(responses, batch_size):
            request = judge_service_pb2.BatchScoreResponsesRequest(
                constitution=constitution,
                responses=[
                    judge_service_pb2.ResponseToScore(
                        messages=messages.conversation_messages(conversation), response=response
                    )
                    for conversation, response in batch
                ],
                options=_options(options),
            )
            response = self._stub.BatchScoreResponses(request, timeout=timeout_seconds)
            scores.extend(map(messages.score, response.scores))
            if progress is not None:
                progress(len(scores), len(responses))
        return scores

    def rank(
        self,
        constitution: str,
        conversation: Conversation,
        *,
        responses: Sequence[str],
        options: JudgeOptions = DEFAULT_OPTIONS,
        timeout_seconds: float | None = None,
    ) -> Ranking:
        """2 to 16 responses from best to worst."""
        request = judge_service_pb2.RankResponsesRequest(
            constitution=constitution,
            messages=messages.conversation_messages(conversation),
            responses=responses,
            options=_options(options),
        )
        return messages.ranking(self._stub.RankResponses(request, timeout=timeout_seconds))

    def get_constitution(self, name: str) -> Constitution:
        """The constitution of that name, "constitutions/{id}"."""
        request = judge_service_pb2.GetConstitutionRequest(name=name)
        return messages.constitution(self._stub.GetConstitution(request).constitution)

    def list_constitutions(self) -> list[Constitution]:
        """All constitutions the judge can apply, by name."""
        found: list[Constitution] = []
        page_token = ""
        while True:
            request = judge_service_pb2.ListConstitutionsRequest(page_size=_PAGE_SIZE, page_token=page_token)
            page = self._stub.ListConstitutions(request)
            found.extend(map(messages.constitution, page.constitutions))
            page_token = page.next_page_token
            if not page_token:
                return found


def _batches(items: Sequence[_Item], batch_size: int) -> Iterator[list[_Item]]:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    rest = iter(items)
    while batch := list(islice(rest, batch_size)):
        yield batch


def _options(options: JudgeOptions) -> judge_service_pb2.JudgeOptions:
    records = {
        None: judge_service_pb2.RECORD_MODE_UNSPECIFIED,
        "digests": judge_service_pb2.RECORD_MODE_DIGESTS,
        "texts": judge_service_pb2.RECORD_MODE_TEXTS,
    }
    return judge_service_pb2.JudgeOptions(
        principle_ids=options.principle_ids,
        num_sampled_principles=options.num_sampled_principles,
        seed=options.seed,
        min_verdict_mass=options.min_verdict_mass,
        record=records[options.record],
        ignore_recorded=options.ignore_recorded,
    )
