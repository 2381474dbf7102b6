"""Constitutions: named, versioned sets of weighted principles, read from YAML."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import yaml

from rlaif.core.canonical import digest
from rlaif.core.errors import InvalidInputError, NotFoundError

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_CONSTITUTION_KEYS = {"id", "version", "description", "critique", "revision", "principles"}
_PRINCIPLE_KEYS = {"id", "text", "weight", "dimension", "applies_to", "critique", "revision", "exemplars"}
_EXEMPLAR_KEYS = ("prompt", "response", "critique", "revision")
_OPTIONAL_KEYS = {"applies_to", "critique", "revision", "exemplars"}
MAX_PRINCIPLES = 64
MAX_PRINCIPLE_CHARACTERS = 4000
MAX_CATEGORIES = 64
MAX_EXEMPLARS = 16


@dataclass(frozen=True)
class Exemplar:
    """A worked example under one principle: a flawed response, what is wrong with it, and the better response."""

    prompt: str
    response: str
    critique: str
    revision: str


@dataclass(frozen=True)
class Principle:
    """One rule. `weight` is relative to the other principles; `dimension` says what the rule measures.

    `applies_to` holds the categories of conversation that the rule is for; empty means all. `critique` and `revision`
    instruct Constitutional AI's two steps under this rule, in place of the constitution's own instructions.
    """

    principle_id: str
    text: str
    weight: float = 1.0
    dimension: str = ""
    applies_to: tuple[str, ...] = ()
    critique: str = ""
    revision: str = ""
    exemplars: tuple[Exemplar, ...] = ()

    def applies(self, category: str) -> bool:
        """Whether the rule is for conversations of that category."""
        return not self.applies_to or category in self.applies_to


@dataclass(frozen=True)
class Constitution:
    """Principles in document order; `version` is the author's, from 1.

    `critique` and `revision` instruct Constitutional AI's two steps; empty leaves the wording to the judge's template.
    """

    constitution_id: str
    version: int
    description: str
    principles: tuple[Principle, ...]
    critique: str = ""
    revision: str = ""

    @property
    def name(self) -> str:
        """Resource name."""
        return f"constitutions/{self.constitution_id}"

    @cached_property
    def sha256(self) -> str:
        """Digest of the canonical form; layout, comments and optional parts left out do not count."""
        value = asdict(self)
        return digest(_given(value) | {"principles": [_given(principle) for principle in value["principles"]]})

    def critique_instruction(self, principle: Principle) -> str:
        """How to criticise under a principle: its own instruction, else the constitution's, else empty."""
        return principle.critique or self.critique

    def revision_instruction(self, principle: Principle) -> str:
        """How to rewrite under a principle: its own instruction, else the constitution's, else empty."""
        return principle.revision or self.revision

    def select(
        self, principle_ids: Sequence[str], *, num_sampled: int = 0, seed: int = 0, category: str = ""
    ) -> tuple[Principle, ...]:
        """The principles with these ids, or all; of them `num_sampled` drawn by seed, in document order.

        With a category, those that do not apply to it are left out; InvalidInputError when none is left.
        """
        known = {principle.principle_id for principle in self.principles}
        for index, principle_id in enumerate(principle_ids):
            if principle_id not in known:
                raise InvalidInputError(
                    f"{self.name} has no principle {principle_id!r}; it has {', '.join(sorted(known))}",
                    field=f"options.principle_ids[{index}]",
                )
        wanted = set(principle_ids) or known
        chosen = tuple(principle for principle in self.principles if principle.principle_id in wanted)
        if category:
            chosen = tuple(principle for principle in chosen if principle.applies(category))
            if not chosen:
                raise InvalidInputError(f"no principle of {self.name} applies to {category!r}", field="category")
        if num_sampled and num_sampled < len(chosen):
            drawn = set(random.Random(seed).sample(range(len(chosen)), num_sampled))  # noqa: S311 - not for secrets
            chosen = tuple(principle for index, principle in enumerate(chosen) if index in drawn)
        return chosen

    def without(self, principle_id: str) -> Constitution:
        """The same constitution less one principle; NotFoundError if it has none of that id."""
        kept = tuple(principle for principle in self.principles if principle.principle_id != principle_id)
        if len(kept) == len(self.principles):
            raise NotFoundError(f"{self.name} has no principle {principle_id!r}")
        return replace(self, principles=kept)


def _given(value: dict[str, Any]) -> dict[str, Any]:
    return {key: each for key, each in value.items() if each or key not in _OPTIONAL_KEYS}


def parse_constitution(text: str, *, source: str = "constitution") -> Constitution:
    """A constitution from YAML; InvalidInputError names source, line and field of what is wrong."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise InvalidInputError(f"{where}: not valid YAML: {problem}", field="constitution") from error
    return _Parser(source).constitution(root)


class _Parser:
    """Walks YAML nodes, because only nodes know their lines."""

    def __init__(self, source: str) -> None:
        self._source = source

    def constitution(self, root: yaml.Node | None) -> Constitution:
        if root is None:
            raise InvalidInputError(f"{self._source}: the file is empty", field="constitution")
        entries = self._mapping(root, field="constitution", allowed=_CONSTITUTION_KEYS)
        constitution_id = self._identifier(entries, root, field="id")
        version = self._scalar(entries.get("version"), field="version", default=1)
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise self._error(
                entries.get("version") or root, "version", f"must be a whole number from 1, not {version!r}"
            )
        description = self._scalar(entries.get("description"), field="description", default="")
        return Constitution(
            constitution_id,
            version,
            str(description).strip(),
            self._principles(entries.get("principles"), root),
            critique=self._text(entries, "critique", field="critique"),
            revision=self._text(entries, "revision", field="revision"),
        )

    def _principles(self, node: yaml.Node | None, root: yaml.Node) -> tuple[Principle, ...]:
        if node is None:
            raise self._error(root, "principles", "is missing; a constitution needs at least one principle")
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            raise self._error(node, "principles", "must be a list of at least one principle")
        if len(node.value) > MAX_PRINCIPLES:
            raise self._error(
                node, "principles", f"has {len(node.value)} entries; at most {MAX_PRINCIPLES} are allowed"
            )
        principles: list[Principle] = []
        for index, item in enumerate(node.value):
            principle = self._principle(item, field=f"principles[{index}]")
            if any(other.principle_id == principle.principle_id for other in principles):
                raise self._error(item, f"principles[{index}].id", f"{principle.principle_id!r} stands twice")
            principles.append(principle)
        return tuple(principles)

    def _principle(self, node: yaml.Node, *, field: str) -> Principle:
        entries = self._mapping(node, field=field, allowed=_PRINCIPLE_KEYS)
        principle_id = self._identifier(entries, node, field=f"{field}.id", key="id")
        if "text" not in entries:
            raise self._error(node, f"{field}.text", "must be the principle's wording")
        text = self._text(entries, "text", field=f"{field}.text")
        weight = self._scalar(entries.get("weight"), field=f"{field}.weight", default=1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= 1000:
            raise self._error(
                entries.get("weight") or node,
                f"{field}.weight",
                f"must be a number above 0, at most 1000, not {weight!r}",
            )
        dimension = self._scalar(entries.get("dimension"), field=f"{field}.dimension", default="")
        return Principle(
            principle_id,
            text,
            float(weight),
            str(dimension),
            applies_to=self._categories(entries.get("applies_to"), field=f"{field}.applies_to"),
            critique=self._text(entries, "critique", field=f"{field}.critique"),
            revision=self._text(entries, "revision", field=f"{field}.revision"),
            exemplars=self._exemplars(entries.get("exemplars"), field=f"{field}.exemplars"),
        )

    def _categories(self, node: yaml.Node | None, *, field: str) -> tuple[str, ...]:
        categories: list[str] = []
        for index, item in enumerate(self._items(node, field=field, most=MAX_CATEGORIES)):
            category = self._scalar(item, field=f"{field}[{index}]", default="")
            if not isinstance(category, str) or not category.strip():
                raise self._error(item, f"{field}[{index}]", f"must be the name of a category, not {category!r}")
            if category.strip() in categories:
                raise self._error(item, f"{field}[{index}]", f"{category!r} stands twice")
            categories.append(category.strip())
        return tuple(categories)

    def _exemplars(self, node: yaml.Node | None, *, field: str) -> tuple[Exemplar, ...]:
        exemplars = []
        for index, item in enumerate(self._items(node, field=field, most=MAX_EXEMPLARS)):
            place = f"{field}[{index}]"
            entries = self._mapping(item, field=place, allowed=set(_EXEMPLAR_KEYS))
            texts = {key: self._text(entries, key, field=f"{place}.{key}") for key in _EXEMPLAR_KEYS}
            for key, text in texts.items():
                if not text:
                    raise self._error(item, f"{place}.{key}", "is missing; an exemplar shows all of its steps")
            exemplars.append(Exemplar(**texts))
        return tuple(exemplars)

    def _items(self, node: yaml.Node | None, *, field: str, most: int) -> list[yaml.Node]:
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            raise self._error(node, field, "must be a list of at least one entry, or be left out")
        if len(node.value) > most:
            raise self._error(node, field, f"has {len(node.value)} entries; at most {most} are allowed")
        return list(node.value)

    def _text(self, entries: dict[str, yaml.Node], key: str, *, field: str) -> str:
        """The stripped text of a key, empty when it is left out."""
        node = entries.get(key)
        if node is None:
            return ""
        text = self._scalar(node, field=field, default="")
        if not isinstance(text, str) or not text.strip():
            raise self._error(node, field, f"must be text, not {text!r}")
        if len(text) > MAX_PRINCIPLE_CHARACTERS:
            raise self._error(node, field, f"is longer than {MAX_PRINCIPLE_CHARACTERS} characters")
        return text.strip()

    def _identifier(self, entries: dict[str, yaml.Node], parent: yaml.Node, *, field: str, key: str = "id") -> str:
        node = entries.get(key)
        if node is None:
            raise self._error(parent, field, "is missing")
        value = self._scalar(node, field=field, default="")
        if not isinstance(value, str) or not _ID.fullmatch(value):
            raise self._error(node, field, f"must be lower-case letters, digits and '-', not {value!r}")
        return value

    def _mapping(self, node: yaml.Node, *, field: str, allowed: set[str]) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            raise self._error(node, field, "must be a mapping of keys to values")
        entries: dict[str, yaml.Node] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key not in allowed:
                raise self._error(
                    key_node, field, f"has an unknown key {key!r}; known are {', '.join(sorted(allowed))}"
                )
            if key in entries:
                raise self._error(key_node, field, f"has the key {key!r} twice")
            entries[key] = value_node
        return entries

    def _scalar(self, node: yaml.Node | None, *, field: str, default: Any) -> Any:
        if node is None:
            return default
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(node, field, "must be a single value")
        return yaml.safe_load(yaml.serialize(node))

    def _error(self, node: yaml.Node, field: str, problem: str) -> InvalidInputError:
        return InvalidInputError(f"{self._source}:{node.start_mark.line + 1}: {field} {problem}", field=field)
