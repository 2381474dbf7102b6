"""Labels and events as stored: their exact bytes, and the hashes that seal them.

An event's canonical bytes are the canonical JSON of {"actor", "create_time_us", "event_type", "payload_sha256",
"subject"}, where payload_sha256 is the SHA-256 of the payload's canonical JSON. Its link in the chain is
SHA-256(previous link as 32 bytes ‖ canonical bytes). The event of a batch of labels holds, in order, the request
digest of every label and the SHA-256 of its stored bytes, so that one chain seals both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.protobuf import json_format, struct_pb2, timestamp_pb2

from rlaif.core.canonical import canonical_json, sha256_hex
from rlaif.core.errors import CorruptionError, InvalidInputError
from rlaif.core.hashchain import chain_sha256
from rlaif.v1 import ledger_service_pb2 as pb

LABELS_RECORDED = "labels_recorded"
LABELS_IMPORTED = "labels_imported"
LABEL_EVENTS = (LABELS_RECORDED, LABELS_IMPORTED)
"""Types of event that hold labels; nobody else may use them."""

_LARGEST_EXACT_INTEGER = 2**53


@dataclass(frozen=True)
class LabelRow:
    """A label as stored. `label` is the serialized message, all but its event."""

    request_sha256: str
    source: int
    constitution: str
    judge_digest: str
    create_time_us: int
    label: bytes
    label_sha256: str


@dataclass(frozen=True)
class EventRow:
    """An event as stored. `payload` is canonical JSON."""

    event_type: str
    actor: str
    subject: str
    payload: bytes
    create_time_us: int

    @property
    def canonical(self) -> bytes:
        """The bytes that the chain seals."""
        return canonical_json(
            {
                "actor": self.actor,
                "create_time_us": self.create_time_us,
                "event_type": self.event_type,
                "payload_sha256": sha256_hex(self.payload),
                "subject": self.subject,
            }
        )

    def link(self, previous_sha256: str) -> str:
        """The event's chain hash after that one."""
        return chain_sha256(previous_sha256, self.canonical)


def now_us() -> int:
    """Microseconds since 1970, UTC."""
    return int(datetime.now(UTC).timestamp() * 1_000_000)


def strip_label(label: pb.Label) -> pb.Label:
    """A copy without what only the ledger may say."""
    stripped = pb.Label()
    stripped.CopyFrom(label)
    for field in ("name", "actor", "event", "create_time"):
        stripped.ClearField(field)
    decision = _decision(stripped)
    decision.label = f"labels/{label.request_sha256}"
    decision.recorded_before = False
    return stripped


def freeze_label(stripped: pb.Label, *, actor: str, create_time_us: int) -> LabelRow:
    """The row that holds a stripped label."""
    label = pb.Label()
    label.CopyFrom(stripped)
    label.name = f"labels/{label.request_sha256}"
    label.actor = actor
    label.create_time.CopyFrom(timestamp(create_time_us))
    return row_of(label, data=label.SerializeToString(deterministic=True))


def row_of(label: pb.Label, *, data: bytes) -> LabelRow:
    """The row whose columns say what the label's bytes say."""
    provenance = _decision(label).provenance
    return LabelRow(
        request_sha256=label.request_sha256,
        source=label.source,
        constitution=provenance.constitution.constitution,
        judge_digest=provenance.model.digest,
        create_time_us=label.create_time.ToMicroseconds(),
        label=data,
        label_sha256=sha256_hex(data),
    )


def thaw_label(data: Any, *, label_sha256: str, sequence: int) -> pb.Label:
    """The label in stored bytes; CorruptionError when they are not the bytes that were stored."""
    if not isinstance(data, bytes) or sha256_hex(data) != label_sha256:
        raise CorruptionError(
            f"a label of events/{sequence} is not what was recorded; verify the ledger", reason="LABEL_ALTERED"
        )
    label = pb.Label.FromString(data)
    label.event = f"events/{sequence}"
    return label


def labels_event(event_type: str, *, rows: Sequence[LabelRow], actor: str, create_time_us: int) -> EventRow:
    """The event that seals a batch of labels. Its subject is their constitution, where they share one."""
    constitutions = {row.constitution for row in rows}
    payload = {
        "labels": [{"label_sha256": row.label_sha256, "request_sha256": row.request_sha256} for row in rows],
        "num_labels": len(rows),
    }
    return EventRow(
        event_type=event_type,
        actor=actor,
        subject=constitutions.pop() if len(constitutions) == 1 else "",
        payload=canonical_json(payload),
        create_time_us=create_time_us,
    )


def payload_bytes(payload: struct_pb2.Struct, *, field: str, most: int) -> bytes:
    """Canonical JSON of an event's body, at most that many bytes."""
    try:
        data = canonical_json(_plain(json_format.MessageToDict(payload)))
    except (ValueError, json_format.Error) as error:
        raise InvalidInputError(f"{field} holds a number that is not finite", field=field) from error
    if len(data) > most:
        raise InvalidInputError(f"{field} is {len(data)} bytes, more than {most}", field=field)
    return data


def timestamp(microseconds: int) -> timestamp_pb2.Timestamp:
    """That moment as a message."""
    moment = timestamp_pb2.Timestamp()
    moment.FromMicroseconds(microseconds)
    return moment


def _decision(label: pb.Label) -> Any:
    return label.verdict if label.WhichOneof("decision") == "verdict" else label.score


def _plain(value: Any) -> Any:
    """JSON values as Python would write them: a Struct knows no integers, and would turn 3 into 3.0."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and math.isfinite(value) and value.is_integer() and abs(value) < _LARGEST_EXACT_INTEGER:
        return int(value)
    return value
