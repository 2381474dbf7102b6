"""Constitutions from what others have published: lists of instructions as JSON, or plain text.

Two JSON forms are those released with Constitutional AI (arXiv 2212.08073): an object whose values hold a `prompt`,
which asks for a critique, and an `edit_request`, which asks for a revision; and a list of texts, each of which asks to
choose between responses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from rlaif.core.audit_words import content_words
from rlaif.core.constitution import Constitution, Principle, parse_constitution
from rlaif.core.constitution_yaml import constitution_yaml
from rlaif.core.errors import InvalidInputError

# What the published texts wrap an instruction in, for the prompt that it was pasted into.
_WRAPPING: Final = re.compile(
    r"^\s*(?:CritiqueRequest|RevisionRequest)\s*:\s*|\s*\b(?:Critique|Revision|Options)\s*:\s*$", re.IGNORECASE
)
_CRITIQUE_KEYS: Final = ("prompt", "critique_request", "critique")
_REVISION_KEYS: Final = ("edit_request", "revision_request", "revision")
_TEXT_KEYS: Final = ("text", "principle")
_ITEM: Final = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+")
_HEADING: Final = re.compile(r"^\s*#")
_NOT_ID: Final = re.compile(r"[^a-z0-9]+")
_ID_WORDS: Final = 4
_ID_CHARACTERS: Final = 48


def import_constitution(text: str, *, constitution_id: str, source: str) -> Constitution:
    """A constitution from JSON instructions or from text, one principle a paragraph or list item.

    All principles get the same weight. InvalidInputError names source and place of what is wrong.
    """
    entries = list(_from_json(text, source) if text.lstrip().startswith(("{", "[")) else _from_text(text, source))
    principles = tuple(_with_ids(entries))
    made = Constitution(constitution_id, 1, f"Imported from {source}.", principles)
    return parse_constitution(constitution_yaml(made), source=f"{source} as YAML")


_Entry = tuple[str, str, str, str]
"""Wanted id (or empty), text, critique instruction, revision instruction."""


def _from_json(text: str, source: str) -> Iterator[_Entry]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidInputError(
            f"{source}:{error.lineno}: not valid JSON: {error.msg}", field="constitution"
        ) from error
    items = document.items() if isinstance(document, dict) else [(f"[{i}]", item) for i, item in enumerate(document)]
    found = False
    for place, item in items:
        found = True
        yield _instruction(item, f"{source}: {place}", place if isinstance(document, dict) else "")
    if not found:
        raise InvalidInputError(f"{source}: holds no instruction", field="constitution")


def _instruction(item: Any, place: str, wanted_id: str) -> _Entry:
    if isinstance(item, str):
        return wanted_id, _bare(item, place), "", ""
    if not isinstance(item, dict):
        raise InvalidInputError(
            f"{place}: must be a text, or an object with a prompt and an edit_request", field="constitution"
        )
    text = _value(item, _TEXT_KEYS, place)
    critique, revision = _value(item, _CRITIQUE_KEYS, place), _value(item, _REVISION_KEYS, place)
    if not (text or critique or revision):
        raise InvalidInputError(
            f"{place}: has none of {', '.join((*_TEXT_KEYS, *_CRITIQUE_KEYS, *_REVISION_KEYS))}", field="constitution"
        )
    # A comparison needs a question about two responses, and these instructions speak of one.
    return (
        wanted_id,
        text or f"Prefer the response that leaves less to do for: {revision or critique}",
        critique,
        revision,
    )


def _value(item: dict[str, Any], keys: Sequence[str], place: str) -> str:
    for key in keys:
        if key not in item:
            continue
        value = item[key]
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            value = "\n".join(value)
        if not isinstance(value, str):
            raise InvalidInputError(f"{place}.{key}: must be a text or a list of texts", field="constitution")
        return _bare(value, f"{place}.{key}")
    return ""


def _bare(text: str, place: str) -> str:
    bare = " ".join(_WRAPPING.sub("", _WRAPPING.sub("", text.strip())).split())
    if not bare:
        raise InvalidInputError(f"{place}: is empty", field="constitution")
    return bare


def _from_text(text: str, source: str) -> Iterator[_Entry]:
    paragraph: list[str] = []
    found = False
    for line in (*text.splitlines(), ""):
        item = _ITEM.match(line)
        if paragraph and (item or not line.strip() or _HEADING.match(line)):
            found = True
            yield "", " ".join(" ".join(paragraph).split()), "", ""
            paragraph = []
        if line.strip() and not _HEADING.match(line):
            paragraph.append(line[item.end() :] if item else line)
    if not found:
        raise InvalidInputError(f"{source}: holds no paragraph", field="constitution")


def _with_ids(entries: Sequence[_Entry]) -> Iterator[Principle]:
    taken: set[str] = set()
    for number, (wanted, text, critique, revision) in enumerate(entries, start=1):
        principle_id = base = _slug(wanted) or _slug(" ".join(content_words(text)[:_ID_WORDS])) or f"principle-{number}"
        suffix = 2
        while principle_id in taken:
            principle_id, suffix = f"{base}-{suffix}", suffix + 1
        taken.add(principle_id)
        yield Principle(principle_id, text, critique=critique, revision=revision)


def _slug(text: str) -> str:
    return _NOT_ID.sub("-", text.lower()).strip("-")[:_ID_CHARACTERS].strip("-")
