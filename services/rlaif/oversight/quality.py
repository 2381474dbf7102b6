"""Label quality over the ledger: labels read as judged pairs, statistics computed once for each state of the ledger."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, func, select

from rlaif.client.judged_pairs import HumanVotes
from rlaif.core.errors import UnavailableError
from rlaif.core.judged_pair import JudgedPair
from rlaif.core.label_statistics import MAX_SLICES, LabelStatistics, label_statistics
from rlaif.oversight import ledger
from rlaif.oversight.database import Database
from rlaif.oversight.records import now_us
from rlaif.oversight.tables import labels
from rlaif.v1 import ledger_service_pb2 as pb

_ROWS_AT_ONCE = 1000
_MAX_ANSWERS = 32
# A ledger of a training run holds many scores for each comparison.
_ROWS_PER_LABEL = 10


@dataclass(frozen=True)
class QualityQuery:
    """Which labels, by which slices. Times are microseconds since 1970, UTC, from `start_us` to before `end_us`."""

    constitution: str = ""
    judge_digest: str = ""
    start_us: int | None = None
    end_us: int | None = None
    dimensions: tuple[str, ...] = ()
    max_slices: int = MAX_SLICES
    max_labels: int | None = None
    """Only so many of the newest; None for all."""


@dataclass(frozen=True)
class QualityAnswer:
    """The statistics, over how many labels, when they were computed and how long that took."""

    statistics: LabelStatistics
    num_labels: int
    num_reviewed: int
    compute_time_us: int
    seconds: float


class QualityReader:
    """Computes label quality, one computation at a time, and remembers answers while the ledger does not grow."""

    database: Database

    def __init__(self) -> None:
        self._answers: OrderedDict[tuple[QualityQuery, int], QualityAnswer] = OrderedDict()
        self._running: dict[tuple[QualityQuery, int], asyncio.Task[QualityAnswer]] = {}
        # Reads much of the ledger: one at a time leaves readers to everybody else.
        self._turn = asyncio.Lock()
        self._closing = threading.Event()

    async def head(self) -> int:
        """Sequence of the last event that holds labels, 0 before there is one."""
        return await self.database.read(_head)

    async def answer(self, query: QualityQuery) -> QualityAnswer:
        """The statistics of the ledger as it is; a caller that gives up leaves the answer for the next one."""
        key = (query, await self.head())
        if key in self._answers:
            self._answers.move_to_end(key)
            return self._answers[key]
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(self._compute(key))
            task.add_done_callback(lambda _: self._running.pop(key, None))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Ends what is being computed, which reads no further."""
        self._closing.set()
        if self._running:
            await asyncio.wait(list(self._running.values()))

    async def _compute(self, key: tuple[QualityQuery, int]) -> QualityAnswer:
        query, _ = key
        async with self._turn:
            answer = await self.database.read(lambda connection: compute(connection, query, given_up=self._closing))
        self._answers[key] = answer
        while len(self._answers) > _MAX_ANSWERS:
            self._answers.popitem(last=False)
        return answer


def compute(connection: Connection, query: QualityQuery, *, given_up: threading.Event | None = None) -> QualityAnswer:
    """The statistics of these labels, read anew; UnavailableError once that is given up."""
    started = time.perf_counter()
    pairs = read_judged_pairs(connection, query, given_up=given_up or threading.Event())
    return QualityAnswer(
        statistics=label_statistics(pairs, dimensions=query.dimensions, max_slices=query.max_slices),
        num_labels=len(pairs),
        num_reviewed=sum(bool(pair.human_votes) for pair in pairs),
        compute_time_us=now_us(),
        seconds=time.perf_counter() - started,
    )


def read_judged_pairs(
    connection: Connection, query: QualityQuery, *, given_up: threading.Event
) -> Sequence[JudgedPair]:
    """The judge's comparisons among these labels, newest first, beside all that people said of the same pairs."""
    people = select(labels).where(labels.c.source == pb.LABEL_SOURCE_HUMAN)
    in_order = people.order_by(labels.c.sequence, labels.c.position)
    votes = HumanVotes(_labels(connection, in_order, given_up=given_up))
    judged = select(labels).where(labels.c.source == pb.LABEL_SOURCE_AI)
    if query.constitution:
        judged = judged.where(labels.c.constitution == query.constitution)
    if query.judge_digest:
        judged = judged.where(labels.c.judge_digest == query.judge_digest)
    if query.start_us is not None:
        judged = judged.where(labels.c.create_time_us >= query.start_us)
    if query.end_us is not None:
        judged = judged.where(labels.c.create_time_us < query.end_us)
    if query.max_labels is not None:
        judged = judged.limit(query.max_labels * _ROWS_PER_LABEL)
    pairs: list[JudgedPair] = []
    newest_first = judged.order_by(labels.c.sequence.desc(), labels.c.position.desc())
    for label in _labels(connection, newest_first, given_up=given_up):
        if query.max_labels is not None and len(pairs) == query.max_labels:
            break
        pair = votes.judged(label)
        if pair is not None:
            pairs.append(pair)
    return pairs


def _labels(connection: Connection, chosen: Select[Any], *, given_up: threading.Event) -> Iterator[pb.Label]:
    with connection.execute(chosen.execution_options(yield_per=_ROWS_AT_ONCE)) as rows:
        for row in rows:
            if given_up.is_set():
                raise UnavailableError("the computation was given up", reason="GIVEN_UP")
            yield ledger.thaw(row)


def _head(connection: Connection) -> int:
    return connection.execute(select(func.max(labels.c.sequence))).scalar() or 0
