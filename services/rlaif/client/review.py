"""Client of the review service: how good the labels are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from google.protobuf import timestamp_pb2

from rlaif.client.channel import open_channel
from rlaif.core.estimate import Estimate
from rlaif.core.label_statistics import LabelStatistics, SliceReliability, SliceStatistic
from rlaif.core.reliability import ReliabilityBin
from rlaif.runtime.settings import ClientSettings
from rlaif.v1 import review_service_pb2 as pb
from rlaif.v1 import review_service_pb2_grpc

# Reading a whole ledger takes longer than a call about a few labels.
_WHOLE_LEDGER_SECONDS = 3600.0


@dataclass(frozen=True)
class LabelQualityReport:
    """Statistics over `num_labels` comparisons of the judge, `num_reviewed` of which people voted on."""

    statistics: LabelStatistics
    num_labels: int
    num_reviewed: int
    compute_time: datetime


class ReviewClient:
    """The review service for blocking callers. Close it, or use it as a context manager."""

    def __init__(self, settings: ClientSettings) -> None:
        self._channel = open_channel(settings)
        self._stub = review_service_pb2_grpc.ReviewServiceStub(self._channel)

    def label_quality(
        self,
        *,
        constitution: str = "",
        judge_digest: str = "",
        start: datetime | None = None,
        end: datetime | None = None,
        slices: Sequence[str] = (),
    ) -> LabelQualityReport:
        """Every statistic over the labels from `start` to before `end`, and by these slices; empty means any."""
        request = pb.GetLabelQualityRequest(
            constitution=constitution,
            judge_digest=judge_digest,
            start_time=_timestamp(start),
            end_time=_timestamp(end),
            slices=slices,
        )
        return _report(self._stub.GetLabelQuality(request, timeout=_WHOLE_LEDGER_SECONDS))

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _report(message: pb.GetLabelQualityResponse) -> LabelQualityReport:
    bins: dict[str, list[ReliabilityBin]] = {}
    for each in message.reliability:
        bins.setdefault(each.slice, []).append(
            ReliabilityBin(
                low=each.low,
                high=each.high,
                num_labels=each.num_labels,
                mean_confidence=each.mean_confidence if each.HasField("mean_confidence") else None,
                accuracy=each.accuracy if each.HasField("accuracy") else None,
            )
        )
    return LabelQualityReport(
        statistics=LabelStatistics(
            statistics=tuple(
                SliceStatistic(each.statistic, each.slice, _estimate(each)) for each in message.statistics
            ),
            reliability=tuple(SliceReliability(name, tuple(held)) for name, held in bins.items()),
        ),
        num_labels=message.num_labels,
        num_reviewed=message.num_reviewed,
        compute_time=message.compute_time.ToDatetime(tzinfo=UTC),
    )


def _estimate(message: pb.QualityStatistic) -> Estimate:
    return Estimate(
        value=message.value if message.HasField("value") else None,
        low=message.low if message.HasField("low") else None,
        high=message.high if message.HasField("high") else None,
        num_samples=message.num_labels,
    )


def _timestamp(moment: datetime | None) -> timestamp_pb2.Timestamp | None:
    if moment is None:
        return None
    message = timestamp_pb2.Timestamp()
    message.FromDatetime(moment)
    return message
