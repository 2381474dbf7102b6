"""Requests that are no message: refused as wrong input that names the field, where gRPC would say INTERNAL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from rlaif.core.errors import InvalidInputError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 32


def read_message(data: bytes, deserializer: Any) -> Any:
    """The message; InvalidInputError, which names the field where a text is not UTF-8, when the data is none."""
    try:
        return deserializer(data)
    except DecodeError as error:
        descriptor = getattr(getattr(deserializer, "__self__", None), "DESCRIPTOR", None)
        raise _explain(data, descriptor) from error


def _explain(data: bytes, descriptor: Descriptor | None) -> InvalidInputError:
    if descriptor is not None:
        try:
            for path, offset in _invalid_texts(data, descriptor, prefix="", depth=0):
                return InvalidInputError(
                    f"the text is not UTF-8: invalid byte at position {offset}", field=path, reason="INVALID_UTF8"
                )
        except (IndexError, ValueError):
            pass
    name = descriptor.full_name if descriptor is not None else "message"
    return InvalidInputError(f"the request is no {name}", reason="MALFORMED_MESSAGE")


def _invalid_texts(data: bytes, descriptor: Descriptor, *, prefix: str, depth: int) -> Iterator[tuple[str, int]]:
    """(field, position of the first invalid byte) of each text that is not UTF-8."""
    seen: dict[int, int] = {}
    for number, value in _fields(data):
        field = descriptor.fields_by_number.get(number)
        if field is None:
            continue
        index = seen[number] = seen.get(number, -1) + 1
        path = f"{prefix}{field.name}[{index}]" if field.is_repeated else f"{prefix}{field.name}"
        if field.type == FieldDescriptor.TYPE_STRING:
            try:
                value.decode()
            except UnicodeDecodeError as error:
                yield path, error.start
        elif field.message_type is not None and depth < _MAX_DEPTH:
            yield from _invalid_texts(value, field.message_type, prefix=f"{path}.", depth=depth + 1)


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(field number, bytes) of the length-delimited fields; IndexError or ValueError where the data is wrong."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        wire_type = tag & 7
        if wire_type == _VARINT:
            _, position = _varint(data, position)
        elif wire_type in (_FIXED32, _FIXED64):
            position += 4 if wire_type == _FIXED32 else 8
        elif wire_type == _BYTES:
            size, position = _varint(data, position)
            if position + size > len(data):
                raise ValueError("a field is longer than its message")
            yield tag >> 3, data[position : position + size]
            position += size
        else:
            raise ValueError("groups are not used")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
