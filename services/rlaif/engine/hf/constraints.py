"""Completions held to choices, a regular expression or a JSON schema; the only importer of llguidance.

Before each token, what the constraint does not allow is masked out; the turn may end where the text may.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rlaif.core.errors import InvalidInputError
from rlaif.engine.protocol import Constraint

# Models that are not taught to would otherwise fill their budget with spaces.
_COMPACT_JSON = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}


class Guide(Protocol):
    """How far one completion has come in what its constraint allows."""

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Which tokens may come next, one value a token of the vocabulary."""

    def take(self, token: int) -> None:
        """Goes on by a token that was allowed."""

    def fresh(self) -> Guide:
        """A guide of the same constraint, at its start."""


class Guides:
    """Makes the guides of one model's tokenizer. Thread-safe."""

    def __init__(self, tokenizer: Any, *, vocabulary_size: int, stop_ids: Collection[int]) -> None:
        self._tokenizer, self._vocabulary_size, self._stop_ids = tokenizer, vocabulary_size, sorted(stop_ids)
        self._make_cached = lru_cache(maxsize=64)(self._make)

    def make(self, constraint: Constraint) -> Guide:
        """A guide at the constraint's start; InvalidInputError when the constraint is none. May take a second."""
        return self._make_cached(constraint).fresh()

    def _make(self, constraint: Constraint) -> Guide:
        from llguidance import LLMatcher

        field = f"constraint.{_kind(constraint)}"
        try:
            grammar = _grammar(constraint)
        except ValueError as error:
            raise InvalidInputError(f"it cannot be read: {_line(error)}", field=field) from error
        matcher = LLMatcher(self._tokens, grammar)
        if matcher.is_error():
            raise InvalidInputError(f"it cannot be followed: {_line(matcher.get_error())}", field=field)
        return _Matched(matcher, self._vocabulary_size)

    @cached_property
    def _tokens(self) -> Any:
        from llguidance.hf import from_tokenizer

        return from_tokenizer(self._tokenizer, n_vocab=self._vocabulary_size, eos_token=self._stop_ids)


class _Matched:
    """A guide on one of llguidance's matchers."""

    def __init__(self, matcher: Any, vocabulary_size: int) -> None:
        self._matcher, self._vocabulary_size = matcher, vocabulary_size

    def allowed(self) -> npt.NDArray[np.bool_]:
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, count=self._vocabulary_size, bitorder="little").astype(bool)
        if self._matcher.is_error() or not allowed.any():
            raise InvalidInputError(
                f"the completion cannot go on: {_line(self._matcher.get_error() or 'no token is allowed')}",
                field="constraint",
                reason="CONSTRAINT_FAILED",
            )
        return allowed

    def take(self, token: int) -> None:
        self._matcher.consume_token(token)

    def fresh(self) -> _Matched:
        return _Matched(self._matcher.deep_copy(), self._vocabulary_size)


def _kind(constraint: Constraint) -> str:
    return "choices" if constraint.choices else "regex" if constraint.regex else "json_schema"


def _grammar(constraint: Constraint) -> str:
    from llguidance import LLMatcher

    if constraint.choices:
        # Lark's strings are written as JSON's.
        alternatives = " | ".join(json.dumps(choice) for choice in constraint.choices)
        return str(LLMatcher.grammar_from_lark(f"start: {alternatives}"))
    if constraint.regex:
        return str(LLMatcher.grammar_from_regex(constraint.regex))
    schema = json.loads(constraint.json_schema)
    return str(LLMatcher.grammar_from_json_schema(schema, defaults=_COMPACT_JSON))


def _line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
