"""What servers answer, read strictly: a number that is not where the protocol puts it is no number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.core.errors import UnavailableError
from rlaif.engine.protocol import EngineWork, StopReason

Malformed = Callable[[str], UnavailableError]
"""Makes the error for an answer that is not what the protocol says."""

_STOP_REASONS: dict[str, StopReason] = {
    "stop": "end_of_turn",
    "eos_token": "end_of_turn",
    "stop_sequence": "stop_sequence",
    "length": "max_tokens",
}
_TOKEN_ID = "token_id:"  # noqa: S105 - vLLM's spelling of a token by its id


@dataclass(frozen=True)
class Position:
    """One place in a text: the token that stands there, and the likeliest ones with natural log-probabilities.

    A server may list a token more than once, and the one that stands there beside the likeliest.
    """

    token: str
    logprob: float
    listed: tuple[tuple[str, float], ...]

    @property
    def mass(self) -> float:
        """Probability of all tokens listed, in [0, 1]."""
        return min(1.0, math.fsum(math.exp(logprob) for _, logprob in self.listed))


def only_choice(answer: Mapping[str, Any], malformed: Malformed) -> Mapping[str, Any]:
    """The one choice that was asked for."""
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        found = len(choices) if isinstance(choices, list) else "no"
        raise malformed(f"{found} choices where 1 was asked for")
    return choices[0]


def stop_reason_of(choice: Mapping[str, Any], malformed: Malformed, *, stop_sequences: Sequence[str]) -> StopReason:
    """Why the text ended. Where a server does not tell a stop sequence from the turn's end, it is the turn's end."""
    finish = choice.get("finish_reason")
    if not isinstance(finish, str) or finish not in _STOP_REASONS:
        raise malformed(f"the finish_reason {str(finish)[:40]!r}")
    reason = _STOP_REASONS[finish]
    # vLLM names the sequence; what it names by number is a token that ends the turn.
    if reason == "end_of_turn" and choice.get("stop_reason") in stop_sequences:
        return "stop_sequence"
    return reason


def count_prompt(work: EngineWork, usage: Any) -> None:
    """Adds what an answer tells of its prompt; a server that tells nothing of its cache is taken to have none."""
    if not isinstance(usage, dict):
        return
    details = usage.get("prompt_tokens_details")
    given, cached = _count(usage, "prompt_tokens"), _count(details, "cached_tokens")
    work.prompt_tokens += given
    work.computed_prompt_tokens += max(0, given - cached)


def _count(values: Any, name: str) -> int:
    value = values.get(name) if isinstance(values, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def token_id_of(token: str) -> int | None:
    """The id where a server spells the token by it."""
    digits = token.removeprefix(_TOKEN_ID)
    return int(digits) if digits != token and digits.isdecimal() else None


def read_positions(logprobs: Any, malformed: Malformed) -> list[Position] | None:
    """The places of a text, in either of the protocol's two forms; None when the server gave none."""
    if not isinstance(logprobs, dict):
        return None
    content = logprobs.get("content")
    if isinstance(content, list):
        return [_chat_position(each, malformed) for each in content]
    tokens, values = logprobs.get("tokens"), logprobs.get("token_logprobs")
    if not isinstance(tokens, list) or not isinstance(values, list) or len(tokens) != len(values):
        return None
    tops = logprobs.get("top_logprobs")
    tops = tops if isinstance(tops, list) and len(tops) == len(tokens) else [None] * len(tokens)
    return [_completion_position(*each, malformed) for each in zip(tokens, values, tops, strict=True)]


def _chat_position(entry: Any, malformed: Malformed) -> Position:
    if not isinstance(entry, dict):
        raise malformed("a log-probability without its token")
    token, logprob = _pair(entry.get("token"), entry.get("logprob"), malformed)
    tops = entry.get("top_logprobs") or []
    if not isinstance(tops, list) or not all(isinstance(top, dict) for top in tops):
        raise malformed("likeliest tokens that are no list")
    listed = [_pair(top.get("token"), top.get("logprob"), malformed) for top in tops]
    return Position(token, logprob, _with((token, logprob), listed))


def _completion_position(token: Any, value: Any, tops: Any, malformed: Malformed) -> Position:
    # The first token of an echoed prompt follows nothing: null is what the protocol says there.
    token, logprob = _pair(token, math.nan if value is None else value, malformed)
    if isinstance(tops, list):
        tops = {str(top.get("token")): top.get("logprob") for top in tops if isinstance(top, dict)}
    listed = [_pair(*top, malformed) for top in tops.items()] if isinstance(tops, dict) else []
    return Position(token, logprob, tuple(listed) if math.isnan(logprob) else _with((token, logprob), listed))


def _with(own: tuple[str, float], listed: Iterable[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    found = tuple(listed)
    return found if own[0] in {token for token, _ in found} else (*found, own)


def _pair(token: Any, logprob: Any, malformed: Malformed) -> tuple[str, float]:
    if not isinstance(token, str) or isinstance(logprob, bool) or not isinstance(logprob, int | float):
        raise malformed("a log-probability that is no number")
    if logprob > 1e-3:
        raise malformed(f"a log-probability of {logprob:g}, above 0")
    return token, float(logprob)
