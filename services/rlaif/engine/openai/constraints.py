"""How a server is told what a text must be, and how the text is read back."""

from __future__ import annotations

import json
from typing import Any, Literal

from rlaif.core.errors import InvalidInputError, UnsupportedError
from rlaif.engine.openai.answers import Malformed
from rlaif.engine.protocol import Constraint

ConstraintForm = Literal["structured_outputs", "guided", "json_schema", "none"]

_ANSWER = "answer"
# What {"answer": ""} takes around a choice.
WRAPPER_TOKENS = 16


def constraint_fields(constraint: Constraint, form: ConstraintForm) -> dict[str, Any]:
    """Fields of the request; UnsupportedError where the server cannot be told."""
    if form == "none" or (form == "json_schema" and constraint.regex):
        what = "no constraints" if form == "none" else "no regular expressions"
        raise UnsupportedError(f"this endpoint takes {what}", reason="CONSTRAINT_UNSUPPORTED")
    schema = _schema(constraint)
    if form == "json_schema":
        wanted = {"name": _ANSWER, "strict": True, "schema": schema or _wrapped(constraint)}
        return {"response_format": {"type": "json_schema", "json_schema": wanted}}
    kind, value = "json", schema
    if constraint.choices:
        kind, value = "choice", list(constraint.choices)
    elif constraint.regex:
        kind, value = "regex", constraint.regex
    return {"guided_" + kind: value} if form == "guided" else {"structured_outputs": {kind: value}}


def constrained_text(text: str, constraint: Constraint, form: ConstraintForm, malformed: Malformed) -> str:
    """The text that was asked for, out of what was wrapped around it."""
    if form != "json_schema" or not constraint.choices:
        return text
    try:
        answer = json.loads(text)
    except ValueError as error:
        raise malformed("a constrained answer that is no JSON") from error
    if not isinstance(answer, dict) or not isinstance(answer.get(_ANSWER), str):
        raise malformed("a constrained answer that does not fit its schema")
    return str(answer[_ANSWER])


def _schema(constraint: Constraint) -> Any:
    if not constraint.json_schema:
        return None
    try:
        return json.loads(constraint.json_schema)
    except ValueError as error:
        raise InvalidInputError(f"the JSON schema is no JSON: {error}", field="constraint.json_schema") from error


def _wrapped(constraint: Constraint) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {_ANSWER: {"type": "string", "enum": list(constraint.choices)}},
        "required": [_ANSWER],
        "additionalProperties": False,
    }
