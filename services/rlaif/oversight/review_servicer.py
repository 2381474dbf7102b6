"""ReviewService: so far, how good the labels are."""

from __future__ import annotations

from typing import Any

from google.protobuf import timestamp_pb2

from rlaif.core.errors import InvalidInputError
from rlaif.core.label_statistics import DIMENSIONS, LabelStatistics
from rlaif.oversight import checks
from rlaif.oversight.quality import QualityQuery, QualityReader
from rlaif.oversight.records import timestamp
from rlaif.v1 import review_service_pb2 as pb
from rlaif.v1 import review_service_pb2_grpc


class ReviewServicer(review_service_pb2_grpc.ReviewServiceServicer):
    """Answers from the ledger that `reader` reads; methods it does not have answer NOT_SERVED."""

    def __init__(self, reader: QualityReader) -> None:
        self._reader = reader

    async def GetLabelQuality(  # noqa: N802 - named by the contract
        self, request: pb.GetLabelQualityRequest, context: Any
    ) -> pb.GetLabelQualityResponse:
        answer = await self._reader.answer(_query(request))
        return pb.GetLabelQualityResponse(
            statistics=_statistics(answer.statistics),
            compute_time=timestamp(answer.compute_time_us),
            reliability=_reliability(answer.statistics),
            num_labels=answer.num_labels,
            num_reviewed=answer.num_reviewed,
        )


def _query(request: pb.GetLabelQualityRequest) -> QualityQuery:
    checks.check_constitution(request.constitution, field="constitution")
    if request.judge_digest:
        checks.check_sha256(request.judge_digest, field="judge_digest")
    for index, dimension in enumerate(request.slices):
        if dimension not in DIMENSIONS:
            raise InvalidInputError(
                f"unknown slice {dimension!r}; there are {', '.join(DIMENSIONS)}", field=f"slices[{index}]"
            )
    start_us = _microseconds(request.start_time, field="start_time") if request.HasField("start_time") else None
    end_us = _microseconds(request.end_time, field="end_time") if request.HasField("end_time") else None
    if start_us is not None and end_us is not None and start_us >= end_us:
        raise InvalidInputError("end_time must be after start_time", field="end_time")
    return QualityQuery(
        constitution=request.constitution,
        judge_digest=request.judge_digest,
        start_us=start_us,
        end_us=end_us,
        dimensions=tuple(dict.fromkeys(request.slices)),
    )


def _microseconds(moment: timestamp_pb2.Timestamp, *, field: str) -> int:
    try:
        return moment.ToMicroseconds()
    except ValueError as error:
        raise InvalidInputError(f"{field} is no valid time", field=field) from error


def _statistics(found: LabelStatistics) -> list[pb.QualityStatistic]:
    return [
        pb.QualityStatistic(
            statistic=each.statistic,
            slice=each.slice,
            value=each.estimate.value,
            low=each.estimate.low,
            high=each.estimate.high,
            num_labels=each.estimate.num_samples,
        )
        for each in found.statistics
    ]


def _reliability(found: LabelStatistics) -> list[pb.ReliabilityBin]:
    return [
        pb.ReliabilityBin(
            slice=each.slice,
            low=held.low,
            high=held.high,
            num_labels=held.num_labels,
            mean_confidence=held.mean_confidence,
            accuracy=held.accuracy,
        )
        for each in found.reliability
        for held in each.bins
    ]
