"""Text to token ids and back, such that what people or models wrote can never become a control token.

The chat template is rendered with a sentinel in place of each content and cut there. The template's own pieces are
tokenised with special tokens, the contents without.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer

from rlaif.core.conversation import Message
from rlaif.core.errors import InvalidInputError
from rlaif.engine.protocol import TokenIds

# Tabs show whether the template strips its contents; no template puts one beside a content.
_SENTINEL = "\tqzContent{index}Zq\t"
_SENTINEL_PATTERN = re.compile(r"(\t?)qzContent(\d+)Zq(\t?)")


@dataclass(frozen=True)
class _Slot:
    """Where the content of message `index` goes, and which of its ends the template strips."""

    index: int
    strips_start: bool
    strips_end: bool


class ChatCodec:
    """A tokenizer and its chat template. Thread-safe."""

    def __init__(self, tokenizer: Any) -> None:
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise InvalidInputError("the model's tokenizer has no tokenizer.json form", field="model")
        if not tokenizer.chat_template:
            raise InvalidInputError("the model's tokenizer has no chat template", field="model")
        self._tokenizer = tokenizer
        # Whether special tokens are parsed is a state of a Tokenizer; switching it is not thread-safe, hence copies.
        self._opening = _copy(tokenizer, prefix_space=True, parse_special=True)
        self._control = _copy(tokenizer, prefix_space=False, parse_special=True)
        self._content = _copy(tokenizer, prefix_space=False, parse_special=False)
        self._special_ids = frozenset(tokenizer.all_special_ids)
        self._layout = lru_cache(maxsize=256)(self._make_layout)
        self._question_ids = lru_cache(maxsize=1024)(self._encode_content)
        self._head, self._slot, self._tail = self._single_turn()
        self._tail_text = self._render(("user",))[-1]

    @property
    def tokenizer(self) -> Any:
        """The tokenizer itself, not to be changed."""
        return self._tokenizer

    @property
    def vocabulary_size(self) -> int:
        """Tokens, the added ones included."""
        return len(self._tokenizer)

    @property
    def end_of_turn(self) -> int | None:
        """The special token with which the template ends an assistant's turn, if it uses one."""
        closing = self._layout(("user", "assistant"), False)[-1]
        if isinstance(closing, _Slot) or not closing or closing[0] not in self._special_ids:
            return self._tokenizer.eos_token_id
        return closing[0]

    def encode_chat(self, messages: Sequence[Message]) -> TokenIds:
        """Ids of the conversation in the chat template, generation prompt included."""
        ids: list[int] = []
        for piece in self._layout(tuple(message.role for message in messages), True):
            ids += self._fill(piece, messages) if isinstance(piece, _Slot) else piece
        return tuple(ids)

    def encode_response(self, text: str) -> TokenIds:
        """Ids of a whole response as they follow the generation prompt, end of turn included."""
        if self.end_of_turn is None:
            raise InvalidInputError("the model's tokenizer has no end-of-turn token", field="model")
        return (*self._encode_content(text), self.end_of_turn)

    def encode_responses(self, texts: Sequence[str]) -> list[TokenIds]:
        """`encode_response` of each, in one call that leaves the interpreter to other threads."""
        end = self.end_of_turn
        if end is None:
            raise InvalidInputError("the model's tokenizer has no end-of-turn token", field="model")
        encodings = self._content.encode_batch_fast(list(texts), add_special_tokens=False)
        return [(*encoding.ids, end) for encoding in encodings]

    def encode_judge_prompt(self, context: str, question: str) -> tuple[TokenIds, TokenIds]:
        """(prefix, suffix) ids of one user turn whose context and question are tokenised apart."""
        context = context.lstrip() if self._slot.strips_start else context
        question = question.rstrip() if self._slot.strips_end else question
        return self._head + self._encode_content(context), self._question_ids(question) + self._tail

    def encode_choices(self, labels: Sequence[str]) -> tuple[TokenIds, ...]:
        """Ids of each label as it would follow the generation prompt."""
        return tuple(self._encode_label(label) for label in labels)

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _encode_content(self, text: str) -> TokenIds:
        return tuple(self._content.encode(text, add_special_tokens=False).ids)

    def _encode_label(self, label: str) -> TokenIds:
        joint = tuple(self._control.encode(self._tail_text + label, add_special_tokens=False).ids)
        if joint[: len(self._tail)] == self._tail and len(joint) > len(self._tail):
            return joint[len(self._tail) :]
        return self._encode_content(label)

    def _fill(self, slot: _Slot, messages: Sequence[Message]) -> TokenIds:
        content = messages[slot.index].content
        content = content.lstrip() if slot.strips_start else content
        return self._encode_content(content.rstrip() if slot.strips_end else content)

    def _single_turn(self) -> tuple[TokenIds, _Slot, TokenIds]:
        layout = self._layout(("user",), True)
        slots = [position for position, piece in enumerate(layout) if isinstance(piece, _Slot)]
        if len(slots) != 1:
            raise InvalidInputError("the model's chat template shows a user's turn more than once", field="model")
        slot = layout[slots[0]]
        assert isinstance(slot, _Slot)
        return _join(layout[: slots[0]]), slot, _join(layout[slots[0] + 1 :])

    def _make_layout(self, roles: tuple[str, ...], generation_prompt: bool) -> tuple[TokenIds | _Slot, ...]:
        pieces = self._render(roles, generation_prompt=generation_prompt)
        layout: list[TokenIds | _Slot] = [tuple(self._opening.encode(pieces[0], add_special_tokens=False).ids)]
        for start, index, end, text in zip(pieces[1::4], pieces[2::4], pieces[3::4], pieces[4::4], strict=True):
            layout.append(_Slot(index=int(index), strips_start=not start, strips_end=not end))
            layout.append(tuple(self._control.encode(text, add_special_tokens=False).ids))
        shown = {piece.index for piece in layout if isinstance(piece, _Slot)}
        for turn, role in enumerate(roles):
            if turn not in shown:
                raise InvalidInputError(
                    f"the model's chat template leaves out the {role}'s turn", field=f"messages[{turn}].role"
                )
        return tuple(layout)

    def _render(self, roles: Sequence[str], *, generation_prompt: bool = True) -> list[str]:
        """Template text, then (tab, message index, tab, template text) for each content."""
        turns = [{"role": role, "content": _SENTINEL.format(index=index)} for index, role in enumerate(roles)]
        try:
            text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation_prompt)
        except TemplateError as error:
            raise InvalidInputError(f"the model's chat template refuses this: {error}", field="messages") from error
        return _SENTINEL_PATTERN.split(str(text))


def _join(pieces: Iterable[TokenIds | _Slot]) -> TokenIds:
    return tuple(token for piece in pieces if not isinstance(piece, _Slot) for token in piece)


def _copy(tokenizer: Any, *, prefix_space: bool, parse_special: bool) -> Tokenizer:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if not prefix_space:
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
