"""Labels, and a ledger served on loopback."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from rlaif.client.channel import open_aio_channel
from rlaif.core.canonical import digest
from rlaif.oversight.process import make_service
from rlaif.oversight.settings import OversightListenSettings, OversightSettings
from rlaif.runtime.server import serving
from rlaif.runtime.settings import ClientSettings
from rlaif.v1 import conversation_pb2, judge_service_pb2, ledger_service_pb2_grpc
from rlaif.v1 import ledger_service_pb2 as pb

CONSTITUTION = "constitutions/default"


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def new_id() -> str:
    return str(uuid.uuid4())


def make_label(
    key: str = "a",
    *,
    source: pb.LabelSource.ValueType = pb.LABEL_SOURCE_AI,
    constitution: str = CONSTITUTION,
    probability_first: float = 0.75,
) -> pb.Label:
    """A comparison whose texts are kept; `key` names its request."""
    label = pb.Label(request_sha256=sha256(key), source=source)
    label.subject.messages.add(role=conversation_pb2.ROLE_USER, content="How do I boil an egg?")
    label.subject.responses.extend(["In water.", "No."])
    label.subject.conversation_sha256 = digest([{"role": "user", "content": "How do I boil an egg?"}])
    label.subject.response_sha256s.extend([sha256("In water."), sha256("No.")])
    label.verdict.preference = judge_service_pb2.PREFERENCE_FIRST
    label.verdict.probability_first = probability_first
    label.verdict.raw_probability_first = probability_first
    label.verdict.provenance.model.digest = sha256("judge")
    label.verdict.provenance.constitution.constitution = constitution
    return label


def make_score(key: str) -> pb.Label:
    """A score of which only digests are kept."""
    label = pb.Label(request_sha256=sha256(key), source=pb.LABEL_SOURCE_AI)
    label.subject.conversation_sha256 = sha256("conversation")
    label.subject.response_sha256s.append(sha256("response"))
    label.score.expected = 7.5
    label.score.reward = 0.44
    label.score.provenance.model.uri = "a remote judge"
    return label


@dataclass(frozen=True)
class ServedLedger:
    """A running ledger: its stub, and how to reach it."""

    stub: ledger_service_pb2_grpc.LedgerServiceAsyncStub
    client: ClientSettings
    metrics_address: str | None = None

    async def record(self, *labels: pb.Label, request_id: str | None = None) -> pb.RecordLabelsResponse:
        return await self.stub.RecordLabels(pb.RecordLabelsRequest(labels=labels, request_id=request_id or new_id()))

    async def verify(self) -> pb.VerifyLedgerResponse:
        return await self.stub.VerifyLedger(pb.VerifyLedgerRequest())


@asynccontextmanager
async def serving_ledger(
    database_url: str, *, metrics_address: str | None = None, **changes: object
) -> AsyncIterator[ServedLedger]:
    """The ledger in that database, served for as long as the block runs."""
    listen = OversightListenSettings(metrics_address=metrics_address)
    settings = OversightSettings.model_validate(
        {"listen": listen, "database_url": database_url, "migrate": True, **changes}
    )
    async with serving(make_service(settings), listen) as server:
        client = ClientSettings(target=server.address)
        async with open_aio_channel(client) as channel:
            stub = ledger_service_pb2_grpc.LedgerServiceStub(channel)
            yield ServedLedger(stub=stub, client=client, metrics_address=server.metrics_address)
