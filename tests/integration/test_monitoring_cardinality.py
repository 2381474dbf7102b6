"""Whatever callers send, the number of series stays what it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from judge_fakes import MemoryLedger, ScriptedEngine, serve_judge
from ledger_fixtures import ServedLedger, make_label, new_id, serving_ledger
from model_fixtures import write_model
from rlaif.core.label_statistics import STATISTICS
from rlaif.oversight.database import Database
from rlaif.oversight.quality import QualityQuery, compute
from rlaif.oversight.quality_metrics import MAX_SLICES, collector
from rlaif.runtime.server import serving
from rlaif.runtime.telemetry import REGISTRY
from rlaif.v1 import judge_service_pb2, sampler_service_pb2
from rlaif.v1 import ledger_service_pb2 as ledger_pb
from sampler_fixtures import sampler_process, settings_for

FEW, MANY = range(3), range(3, 60)


async def test_callers_of_the_judge_add_no_series() -> None:
    async with serve_judge(ScriptedEngine(lambda context, question: (0.7, 0.3)), MemoryLedger()) as client:
        await bombard(client.target, "JudgeService", FEW, judge_requests)
        before = series()
        await bombard(client.target, "JudgeService", MANY, judge_requests)
    assert series() == before


async def test_callers_of_the_sampler_add_no_series(tmp_path: Path) -> None:
    settings = settings_for(write_model(tmp_path / "model", seed=0), tmp_path / "versions")
    _, service = sampler_process(settings)
    async with serving(service, settings.listen) as server:
        await bombard(server.address, "SamplerService", FEW, sampler_requests)
        before = series()
        await bombard(server.address, "SamplerService", MANY, sampler_requests)
    assert series() == before


async def test_writers_of_the_ledger_add_no_series(ledger: ServedLedger) -> None:
    await bombard(ledger.client.target, "LedgerService", FEW, ledger_requests)
    before = series()
    await bombard(ledger.client.target, "LedgerService", MANY, ledger_requests)
    assert series() == before


async def test_slices_of_label_quality_are_bounded_whatever_constitutions_and_categories_there_are(
    ledger: ServedLedger, tmp_path: Path
) -> None:
    labels = []
    for number in range(3 * MAX_SLICES):
        label = make_label(str(number), constitution=f"constitutions/number-{number}")
        label.subject.category = f"category {number}"
        labels.append(label)
    await ledger.record(*labels)
    database = Database(f"sqlite:///{tmp_path}/ledger.sqlite", num_readers=1)
    query = QualityQuery(dimensions=("constitution", "category"), max_slices=MAX_SLICES)
    answer = await database.read(lambda connection: compute(connection, query))
    await database.close()
    slices = {each.slice for each in answer.statistics.statistics}
    # All of them; and of each dimension the largest, with the others together.
    assert len(slices) == 1 + 2 * (MAX_SLICES + 1)
    collector.publish(answer)
    told = sum(len(metric.samples) for metric in collector.collect())
    assert told <= 3 * len(STATISTICS) * len(slices) + 4


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[ServedLedger]:
    async with serving_ledger(f"sqlite:///{tmp_path}/ledger.sqlite") as served:
        yield served


def judge_requests(number: int) -> dict[str, Any]:
    def compare(**changes: Any) -> Any:
        values = {"constitution": "constitutions/test", "first": f"a {number}", "second": "b"} | changes
        request = judge_service_pb2.CompareResponsesRequest(**values)
        request.messages.add(role=1, content="Hi")
        return request

    return {
        "CompareResponses": compare(category=f"category {number}"),
        "BatchCompareResponses": compare(constitution=f"constitutions/number-{number}"),
        "GetConstitution": judge_service_pb2.GetConstitutionRequest(name=f"constitutions/number-{number}"),
    }


def sampler_requests(number: int) -> dict[str, Any]:
    return {
        "GetPolicy": sampler_service_pb2.GetPolicyRequest(name=f"policies/number-{number}"),
        "LoadPolicy": sampler_service_pb2.LoadPolicyRequest(name=f"policies/number-{number}", min_version=number),
        "SampleCompletions": sampler_service_pb2.SampleCompletionsRequest(policy=f"policies/number-{number}"),
    }


def ledger_requests(number: int) -> dict[str, Any]:
    event = ledger_pb.Event(event_type=f"type_{number}", subject=f"subject {number}")
    label = make_label(f"hostile {number}", constitution=f"constitutions/number-{number}")
    return {
        "RecordEvent": ledger_pb.RecordEventRequest(event=event, request_id=new_id()),
        "RecordLabels": ledger_pb.RecordLabelsRequest(labels=[label], request_id=new_id()),
        "ListEvents": ledger_pb.ListEventsRequest(event_type=f"type_{number}"),
    }


async def bombard(target: str, service: str, numbers: range, requests: Any) -> None:
    """Methods and services that do not exist, bytes that are no message, and names without end."""
    async with grpc.aio.insecure_channel(target) as channel:
        for number in numbers:
            calls = [(f"/rlaif.v1.{service}/Method{number}", b""), (f"/service{number}/Method", b"\xff" * number)]
            for method, request in requests(number).items():
                path = f"/rlaif.v1.{service}/{method}"
                calls += [(path, b"\xff" * (number + 1)), (path, request.SerializeToString())]
            await asyncio.gather(*(ended(channel.unary_unary(method)(body)) for method, body in calls))


async def ended(call: Any) -> None:
    """Answered or refused in words of ours."""
    assert await call.code() is not grpc.StatusCode.UNKNOWN


def series() -> int:
    """Without those of label quality, which come with the first labels and are bounded by slices."""
    names = [metric for metric in REGISTRY.collect() if not metric.name.startswith("rlaif_label_quality")]
    return sum(len(metric.samples) for metric in names)
