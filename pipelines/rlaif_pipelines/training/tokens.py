"""Text to token ids, the same way as the engines: what people or models wrote never becomes a control token.

The chat template is rendered with a sentinel in place of each content and cut there. Its own pieces are tokenised with
special tokens, the contents without. tests/integration/test_training_tokens.py holds this against the engine's codec.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from rlaif.core.conversation import Conversation
from rlaif.core.errors import InvalidInputError

# Tabs show whether the template strips its contents; no template puts one beside a content.
_SENTINEL = "\tqzContent{index}Zq\t"
_SENTINEL_PATTERN = re.compile(r"(\t?)qzContent(\d+)Zq(\t?)")


class ChatEncoder:
    """Token ids of prompts and responses under one tokenizer's chat template."""

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise InvalidInputError("the policy's tokenizer has no chat template", field="policy")
        self._tokenizer = tokenizer
        self._opening = _copy(tokenizer, starts_text=True, parse_special=True)
        self._control = _copy(tokenizer, starts_text=False, parse_special=True)
        self._content = _copy(tokenizer, starts_text=False, parse_special=False)
        self._pieces = lru_cache(maxsize=64)(self._render)
        self._end_of_turn = self._find_end_of_turn()

    def prompt(self, conversation: Conversation) -> tuple[int, ...]:
        """Ids of the conversation, generation prompt included."""
        pieces = self._pieces(tuple(message.role for message in conversation), True)
        ids = self._encode(self._opening, pieces[0])
        for start, index, end, text in zip(pieces[1::4], pieces[2::4], pieces[3::4], pieces[4::4], strict=True):
            content = conversation[int(index)].content
            content = content if start else content.lstrip()
            ids += self._encode(self._content, content if end else content.rstrip())
            ids += self._encode(self._control, text)
        return tuple(ids)

    def response(self, text: str) -> tuple[int, ...]:
        """Ids of a whole response, end of turn included."""
        return (*self._encode(self._content, text), self._end_of_turn)

    def _find_end_of_turn(self) -> int:
        closing = self._encode(self._control, self._pieces(("user", "assistant"), False)[-1])
        if closing and closing[0] in self._tokenizer.all_special_ids:
            return closing[0]
        if self._tokenizer.eos_token_id is None:
            raise InvalidInputError("the policy's tokenizer has no end-of-turn token", field="policy")
        return int(self._tokenizer.eos_token_id)

    def _render(self, roles: Sequence[str], generation_prompt: bool) -> list[str]:
        """Template text, then (tab, message index, tab, template text) for each content."""
        turns = [{"role": role, "content": _SENTINEL.format(index=index)} for index, role in enumerate(roles)]
        text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation_prompt)
        return _SENTINEL_PATTERN.split(str(text))

    @staticmethod
    def _encode(tokenizer: Any, text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)


def _copy(tokenizer: Any, *, starts_text: bool, parse_special: bool) -> Any:
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if not starts_text:
        state["normalizer"] = _without_prefix_space(state["normalizer"])
        state["pre_tokenizer"] = _without_prefix_space(state["pre_tokenizer"])
    copy = Tokenizer.from_str(json.dumps(state))
    copy.encode_special_tokens = not parse_special
    copy.no_truncation()
    copy.no_padding()
    return copy


def _without_prefix_space(part: Any) -> Any:
    """A normalizer or pre-tokenizer that treats its input as the middle of a text: SentencePiece adds a space else."""
    if not isinstance(part, dict):
        return part
    if part["type"] == "Prepend":
        return None
    changed = dict(part)
    for members in ("normalizers", "pretokenizers"):
        if members in part:
            changed[members] = [kept for member in part[members] if (kept := _without_prefix_space(member)) is not None]
    if "prepend_scheme" in part:
        changed["prepend_scheme"] = "never"
    if "add_prefix_space" in part:
        changed["add_prefix_space"] = False
    return changed
