"""The ledger over gRPC, the same on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable

import pytest
from google.protobuf import struct_pb2
from google.protobuf.json_format import MessageToDict

from ledger_fixtures import (
    CONSTITUTION,
    ServedLedger,
    make_label,
    make_score,
    new_id,
    serving_ledger,
    sha256,
)
from rlaif.client.channel import open_aio_channel
from rlaif.client.ledger import AioLedgerClient, LedgerClient
from rlaif.core.canonical import canonical_json, sha256_hex
from rlaif.core.errors import ConflictError, InvalidInputError, NotFoundError, UnsupportedError
from rlaif.core.hashchain import GENESIS_SHA256, chain_sha256
from rlaif.v1 import judge_service_pb2, review_service_pb2, review_service_pb2_grpc
from rlaif.v1 import ledger_service_pb2 as pb


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[ServedLedger]:
    async with serving_ledger(database_url) as served:
        yield served


async def test_a_recorded_label_says_where_and_when_it_was_recorded(ledger: ServedLedger) -> None:
    label = make_label()
    label.name, label.actor, label.event = "labels/forged", "somebody else", "events/99"
    label.verdict.recorded_before = True
    (stored,) = (await ledger.record(label)).labels
    assert stored.name == stored.verdict.label == f"labels/{sha256('a')}"
    assert (stored.event, stored.actor) == ("events/1", "anonymous")
    assert stored.create_time.seconds > 0
    assert not stored.verdict.recorded_before
    assert stored.subject == label.subject
    assert (await ledger.stub.GetLabel(pb.GetLabelRequest(name=stored.name))).label == stored


async def test_one_batch_is_one_event_that_names_every_label(ledger: ServedLedger) -> None:
    await ledger.record(make_label("a"), make_score("b"))
    (event,) = (await ledger.stub.ListEvents(pb.ListEventsRequest())).events
    payload = MessageToDict(event.payload)
    assert event.event_type == "labels_recorded"
    assert payload["num_labels"] == 2
    assert [entry["request_sha256"] for entry in payload["labels"]] == [sha256("a"), sha256("b")]


async def test_a_label_recorded_before_is_answered_and_not_appended(ledger: ServedLedger) -> None:
    await ledger.record(make_label("a", probability_first=0.75))
    answer = await ledger.record(make_label("a", probability_first=0.6), make_label("b"))
    assert answer.num_appended == 1
    assert [label.verdict.probability_first for label in answer.labels] == [0.75, 0.75]
    assert [label.event for label in answer.labels] == ["events/1", "events/2"]
    again = await ledger.record(make_label("a"))
    assert again.num_appended == 0
    assert (await ledger.verify()).num_events == 2


async def test_a_label_twice_in_one_batch_is_appended_once(ledger: ServedLedger) -> None:
    answer = await ledger.record(make_label("a"), make_label("b"), make_label("a"))
    assert answer.num_appended == 2
    assert answer.labels[0] == answer.labels[2]


async def test_a_repeated_request_id_gives_the_first_result(ledger: ServedLedger) -> None:
    request_id = new_id()
    first = await ledger.record(make_label("a"), request_id=request_id)
    again = await ledger.record(make_label("a"), request_id=request_id.upper())
    assert again == first
    assert again.num_appended == 1
    with pytest.raises(ConflictError) as caught:
        await ledger.record(make_label("b"), request_id=request_id)
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert (await ledger.verify()).num_labels == 1


async def test_lookup_answers_in_request_order_what_is_recorded(ledger: ServedLedger) -> None:
    await ledger.record(make_label("a"), make_label("b"))
    request = pb.LookupLabelsRequest(request_sha256s=[sha256("b"), sha256("never"), sha256("a")])
    found = (await ledger.stub.LookupLabels(request)).labels
    assert [label.request_sha256 for label in found] == [sha256("b"), sha256("a")]


async def test_a_label_that_is_not_recorded_is_not_found(ledger: ServedLedger) -> None:
    name = f"labels/{sha256('never')}"
    with pytest.raises(NotFoundError) as caught:
        await ledger.stub.GetLabel(pb.GetLabelRequest(name=name))
    assert caught.value.metadata["resource_name"] == name


async def test_labels_are_listed_in_pages_oldest_first(ledger: ServedLedger) -> None:
    for batch in range(3):
        await ledger.record(*[make_label(f"{batch}/{index}") for index in range(3)])
    expected = [sha256(f"{batch}/{index}") for batch in range(3) for index in range(3)]
    found, request = [], pb.ListLabelsRequest(page_size=4)
    while True:
        page = await ledger.stub.ListLabels(request)
        assert len(page.labels) <= 4
        found += [label.request_sha256 for label in page.labels]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert found == expected


async def test_a_page_ends_early_rather_than_grow_too_large(database_url: str) -> None:
    async with serving_ledger(database_url, limits={"max_page_bytes": 1024}) as ledger:
        await ledger.record(*[make_label(str(index)) for index in range(8)])
        page = await ledger.stub.ListLabels(pb.ListLabelsRequest(page_size=8))
        assert 1 <= len(page.labels) < 8
        assert page.next_page_token
        # A single event that is larger still makes progress.
        assert len((await ledger.stub.ListEvents(pb.ListEventsRequest())).events) == 1


async def test_lists_can_be_filtered(ledger: ServedLedger) -> None:
    await ledger.record(make_label("a"), make_label("b", constitution="constitutions/other"))
    human = make_label("c", source=pb.LABEL_SOURCE_HUMAN)
    assert (await ledger.stub.ImportLabels(pb.ImportLabelsRequest(labels=[human], request_id=new_id()))).num_appended
    by_constitution = await ledger.stub.ListLabels(pb.ListLabelsRequest(constitution="constitutions/other"))
    by_source = await ledger.stub.ListLabels(pb.ListLabelsRequest(source=pb.LABEL_SOURCE_HUMAN))
    by_type = await ledger.stub.ListEvents(pb.ListEventsRequest(event_type="labels_imported"))
    by_subject = await ledger.stub.ListEvents(pb.ListEventsRequest(subject=CONSTITUTION))
    assert [label.request_sha256 for label in by_constitution.labels] == [sha256("b")]
    assert [label.request_sha256 for label in by_source.labels] == [sha256("c")]
    assert [event.name for event in by_type.events] == ["events/2"]
    assert [event.name for event in by_subject.events] == ["events/2"]


async def test_a_page_token_serves_only_the_list_it_came_from(ledger: ServedLedger) -> None:
    await ledger.record(make_label("a"), make_label("b"))
    token = (await ledger.stub.ListLabels(pb.ListLabelsRequest(page_size=1))).next_page_token
    for request in (
        pb.ListLabelsRequest(page_token=token, constitution=CONSTITUTION),
        pb.ListLabelsRequest(page_token="not a token"),
        pb.ListLabelsRequest(page_token="W10="),
    ):
        with pytest.raises(InvalidInputError) as caught:
            await ledger.stub.ListLabels(request)
        assert caught.value.field == "page_token"


async def test_export_streams_every_label_in_order(ledger: ServedLedger) -> None:
    keys = [str(index) for index in range(1200)]
    await ledger.record(*[make_score(key) for key in keys])
    exported = [response.label.request_sha256 async for response in ledger.stub.ExportLabels(pb.ExportLabelsRequest())]
    assert exported == [sha256(key) for key in keys]


async def test_an_event_comes_back_as_it_was_recorded_and_only_once(ledger: ServedLedger) -> None:
    payload = struct_pb2.Struct()
    payload.update({"passed": True, "step": 300, "kl": 0.25, "text": "é", "none": None, "list": [1, {"a": "b"}]})
    event = pb.Event(event_type="gate_decided", subject="runs/first", payload=payload)
    request = pb.RecordEventRequest(event=event, request_id=new_id())
    first = (await ledger.stub.RecordEvent(request)).event
    assert (first.name, first.event_type, first.subject) == ("events/1", "gate_decided", "runs/first")
    assert first.payload == payload
    assert (await ledger.stub.RecordEvent(request)).event == first
    request.event.payload["step"] = 301
    with pytest.raises(ConflictError):
        await ledger.stub.RecordEvent(request)


async def test_anybody_can_recompute_the_chain_from_what_is_listed(ledger: ServedLedger) -> None:
    await ledger.record(make_label("a"), make_label("b"))
    await ledger.stub.RecordEvent(
        pb.RecordEventRequest(event=pb.Event(event_type="policy_published", subject="policies/x"), request_id=new_id())
    )
    head = GENESIS_SHA256
    for event in (await ledger.stub.ListEvents(pb.ListEventsRequest())).events:
        payload = MessageToDict(event.payload)
        if "num_labels" in payload:
            payload["num_labels"] = int(payload["num_labels"])
        canonical = {
            "actor": event.actor,
            "create_time_us": event.create_time.ToMicroseconds(),
            "event_type": event.event_type,
            "payload_sha256": sha256_hex(canonical_json(payload)),
            "subject": event.subject,
        }
        assert event.previous_sha256 == head
        head = chain_sha256(head, canonical_json(canonical))
        assert event.chain_sha256 == head
    assert (await ledger.verify()).head_sha256 == head


async def test_a_ledger_goes_on_after_a_restart(database_url: str) -> None:
    async with serving_ledger(database_url) as ledger:
        await ledger.record(make_label("a"))
    async with serving_ledger(database_url) as ledger:
        await ledger.record(make_label("b"))
        report = await ledger.verify()
    assert (report.num_events, report.num_labels, report.broken_at) == (2, 2, "")


async def test_the_clients_speak_of_the_same_ledger(ledger: ServedLedger) -> None:
    aio = AioLedgerClient(ledger.client)
    recorded = await aio.record([make_label("a")], new_id())
    assert await aio.lookup([sha256("a"), sha256("never")]) == {sha256("a"): recorded[0]}
    await aio.close()

    def use_blocking() -> None:
        with LedgerClient(ledger.client) as client:
            name = client.record_event("gate_decided", subject="runs/first", payload={"passed": False, "limit": 3})
            assert name == "events/2"
            assert [event.name for event in client.list_events(subject="runs/first")] == [name]
            assert client.import_labels([make_label("b", source=pb.LABEL_SOURCE_HUMAN)]) == 1
            assert [label.request_sha256 for label in client.export_labels()] == [sha256("a"), sha256("b")]
            assert client.get_label(recorded[0].name) == recorded[0]
            report = client.verify()
            assert (report.num_events, report.num_labels, report.broken_at, report.fault) == (3, 2, "", "")

    await asyncio.to_thread(use_blocking)


def _set(path: str, value: object) -> Callable[[pb.Label], None]:
    def change(label: pb.Label) -> None:
        *parents, last = path.split(".")
        place = label
        for parent in parents:
            place = getattr(place, parent)
        setattr(place, last, value)

    return change


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (_set("request_sha256", "A" * 64), "labels[0].request_sha256"),
        (_set("source", pb.LABEL_SOURCE_UNSPECIFIED), "labels[0].source"),
        (_set("source", pb.LABEL_SOURCE_HUMAN), "labels[0].source"),
        (lambda label: label.ClearField("verdict"), "labels[0].decision"),
        (_set("subject.conversation_sha256", ""), "labels[0].subject.conversation_sha256"),
        (_set("subject.conversation_sha256", "0" * 64), "labels[0].subject.conversation_sha256"),
        (lambda label: label.subject.response_sha256s.pop(), "labels[0].subject.response_sha256s"),
        (lambda label: label.subject.responses.pop(), "labels[0].subject.response_sha256s"),
        (_set("subject.category", "x" * 129), "labels[0].subject.category"),
        (_set("verdict.preference", 0), "labels[0].verdict.preference"),
        (_set("verdict.preference", judge_service_pb2.PREFERENCE_ABSTAIN), "labels[0].verdict.abstention_reason"),
        (_set("verdict.probability_first", float("nan")), "labels[0].verdict.probability_first"),
        (_set("verdict.probability_first", 1.5), "labels[0].verdict.probability_first"),
        (lambda label: label.verdict.ClearField("probability_first"), "labels[0].verdict.probability_first"),
        (lambda label: label.verdict.ClearField("provenance"), "labels[0].verdict.provenance.model"),
        (_set("verdict.provenance.model.digest", "x"), "labels[0].verdict.provenance.model.digest"),
        (_set("score.expected", 11.0), "labels[0].subject.response_sha256s"),
    ],
)
async def test_a_wrong_label_is_refused_and_names_the_field(
    tmp_path_factory: pytest.TempPathFactory, change: Callable[[pb.Label], object], field: str
) -> None:
    async with serving_ledger(f"sqlite:///{tmp_path_factory.mktemp('ledger')}/l.sqlite") as ledger:
        label = make_label()
        change(label)
        with pytest.raises(InvalidInputError) as caught:
            await ledger.record(label)
        assert caught.value.field == field
        assert (await ledger.verify()).num_events == 0


def token_of(json_text: str) -> str:
    return base64.urlsafe_b64encode(json_text.encode()).decode()


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("RecordLabels", pb.RecordLabelsRequest(request_id=new_id()), "labels"),
        ("RecordLabels", pb.RecordLabelsRequest(labels=[make_label()], request_id="1"), "request_id"),
        ("RecordLabels", pb.RecordLabelsRequest(labels=[make_score("s")] * 3, request_id=new_id()), "labels"),
        ("ImportLabels", pb.ImportLabelsRequest(labels=[make_label()], request_id=new_id()), "labels[0].source"),
        ("LookupLabels", pb.LookupLabelsRequest(), "request_sha256s"),
        ("LookupLabels", pb.LookupLabelsRequest(request_sha256s=["x"]), "request_sha256s[0]"),
        ("GetLabel", pb.GetLabelRequest(name="label/x"), "name"),
        ("GetLabel", pb.GetLabelRequest(name="labels/x"), "name"),
        ("ListLabels", pb.ListLabelsRequest(page_token=token_of('["x", Infinity, 0]')), "page_token"),
        ("ListEvents", pb.ListEventsRequest(page_token=token_of("[" * 10_000)), "page_token"),
        ("ListLabels", pb.ListLabelsRequest(page_size=-1), "page_size"),
        ("ListLabels", pb.ListLabelsRequest(constitution="default"), "constitution"),
        ("ListLabels", pb.ListLabelsRequest(constitution="constitutions/a\0b"), "constitution"),
        ("ListEvents", pb.ListEventsRequest(subject="x" * 513), "subject"),
        ("ListEvents", pb.ListEventsRequest(event_type="gate\0"), "event_type"),
        ("RecordEvent", pb.RecordEventRequest(event=pb.Event(event_type="Gate")), "event.event_type"),
        ("RecordEvent", pb.RecordEventRequest(event=pb.Event(event_type="labels_recorded")), "event.event_type"),
        ("RecordEvent", pb.RecordEventRequest(event=pb.Event(event_type="gate")), "request_id"),
        (
            "RecordEvent",
            pb.RecordEventRequest(event=pb.Event(event_type="gate", subject="a\nb"), request_id=new_id()),
            "event.subject",
        ),
        (
            "RecordEvent",
            pb.RecordEventRequest(
                event=pb.Event(
                    event_type="gate",
                    payload=struct_pb2.Struct(fields={"x": struct_pb2.Value(number_value=float("nan"))}),
                ),
                request_id=new_id(),
            ),
            "event.payload",
        ),
        (
            "RecordEvent",
            pb.RecordEventRequest(
                event=pb.Event(
                    event_type="gate",
                    payload=struct_pb2.Struct(fields={"x": struct_pb2.Value(string_value="x" * 2000)}),
                ),
                request_id=new_id(),
            ),
            "event.payload",
        ),
    ],
)
async def test_a_wrong_request_is_refused_and_names_the_field(
    tmp_path_factory: pytest.TempPathFactory, method: str, request_: object, field: str
) -> None:
    limits = {"max_labels": 2, "max_payload_bytes": 1024}
    async with serving_ledger(f"sqlite:///{tmp_path_factory.mktemp('ledger')}/l.sqlite", limits=limits) as ledger:
        with pytest.raises(InvalidInputError) as caught:
            await getattr(ledger.stub, method)(request_)
        assert caught.value.field == field


async def test_reviews_are_not_served_and_say_so(ledger: ServedLedger) -> None:
    async with open_aio_channel(ledger.client) as channel:
        reviews = review_service_pb2_grpc.ReviewServiceStub(channel)
        with pytest.raises(UnsupportedError) as caught:
            await reviews.ListReviews(review_service_pb2.ListReviewsRequest())
    assert caught.value.reason == "NOT_SERVED"
    assert caught.value.metadata == {"method": "ReviewService/ListReviews"}
