"""A constitution written in a request: read by the rules of constitution files."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from rlaif.core.constitution import Constitution, parse_constitution
from rlaif.core.errors import InvalidInputError
from rlaif.v1 import judge_service_pb2

MAX_INLINE_BYTES = 16 * 1024
INLINE_ID = "inline"

_FIELD = "inline_constitution"
_PREFIX = "constitutions/"
# YAML reads these as line breaks or refuses them, where JSON takes them as they are.
_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def read_inline_constitution(message: judge_service_pb2.Constitution) -> Constitution:
    """The constitution, `constitutions/inline` where it names none; InvalidInputError names the field and the limit."""
    if message.ByteSize() > MAX_INLINE_BYTES:
        raise InvalidInputError(
            f"{message.ByteSize()} bytes are more than the limit of {MAX_INLINE_BYTES} of a constitution in a request",
            field=_FIELD,
            reason="CONSTITUTION_TOO_LARGE",
        )
    return _read(message.SerializeToString(deterministic=True))


@lru_cache(maxsize=64)
def _read(serialised: bytes) -> Constitution:
    message = judge_service_pb2.Constitution.FromString(serialised)
    if message.name and not message.name.startswith(_PREFIX):
        raise InvalidInputError(
            f'the name is "constitutions/{{constitution}}" or empty, not {message.name!r}', field=f"{_FIELD}.name"
        )
    text = _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(_values(message), ensure_ascii=False))
    try:
        return parse_constitution(text, source=_FIELD)
    except InvalidInputError as error:
        field = _wire_field(error.field or "")
        problem = error.message.removeprefix(f"{_FIELD}:1: ").removeprefix(f"{error.field} ")
        raise InvalidInputError(f"{field} {problem}", field=field) from error


def _values(message: judge_service_pb2.Constitution) -> dict[str, Any]:
    return _given(
        {
            "id": message.name.removeprefix(_PREFIX) or INLINE_ID,
            "version": message.version or 1,
            "description": message.description,
            "critique": message.critique,
            "revision": message.revision,
            "principles": [_principle(principle) for principle in message.principles],
        }
    )


def _principle(principle: judge_service_pb2.Principle) -> dict[str, Any]:
    return _given(
        {
            "id": principle.principle_id,
            "text": principle.text,
            "weight": principle.weight or 1.0,
            "dimension": principle.dimension,
            "applies_to": list(principle.applies_to),
            "critique": principle.critique,
            "revision": principle.revision,
            "exemplars": [
                {"prompt": each.prompt, "response": each.response, "critique": each.critique, "revision": each.revision}
                for each in principle.exemplars
            ],
        }
    )


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value}


def _wire_field(field: str) -> str:
    if field in ("", "constitution"):
        return _FIELD
    if field == "id":
        return f"{_FIELD}.name"
    return f"{_FIELD}.{field.removesuffix('.id')}.principle_id" if field.endswith("].id") else f"{_FIELD}.{field}"
