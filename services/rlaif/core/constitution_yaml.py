"""Constitutions as YAML files for people: the form that `parse_constitution` reads, less what is a default anyway."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import yaml

from rlaif.core.constitution import Constitution, Principle

_WIDTH = 110
_FOLD_CHARACTERS = 80


class _Folded(str):
    """A long text, written as a folded block."""


class _Dumper(yaml.SafeDumper):
    """Block style, lists indented under their key."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _represent_folded(dumper: yaml.SafeDumper, text: _Folded) -> yaml.ScalarNode:
    style = "|" if "\n" in text else ">"
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style=style)


_Dumper.add_representer(_Folded, _represent_folded)


def constitution_yaml(constitution: Constitution) -> str:
    """The constitution as YAML; reading it again gives an equal one."""
    document = {
        "id": constitution.constitution_id,
        "version": constitution.version,
        **_texts(
            {
                "description": constitution.description,
                "critique": constitution.critique,
                "revision": constitution.revision,
            }
        ),
        "principles": [_principle(principle) for principle in constitution.principles],
    }
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_WIDTH)


def _principle(principle: Principle) -> dict[str, Any]:
    entries: dict[str, Any] = {"id": principle.principle_id, "text": _text(principle.text)}
    if principle.weight != 1:
        entries["weight"] = int(principle.weight) if principle.weight.is_integer() else principle.weight
    entries |= _texts({"dimension": principle.dimension})
    if principle.applies_to:
        entries["applies_to"] = list(principle.applies_to)
    entries |= _texts({"critique": principle.critique, "revision": principle.revision})
    if principle.exemplars:
        entries["exemplars"] = [_texts(asdict(exemplar)) for exemplar in principle.exemplars]
    return entries


def _texts(entries: Mapping[str, str]) -> dict[str, str]:
    return {key: _text(text) for key, text in entries.items() if text}


def _text(text: str) -> str:
    return _Folded(text) if len(text) > _FOLD_CHARACTERS or "\n" in text else text
