"""What every engine refuses before it computes anything."""

from __future__ import annotations

from collections.abc import Sequence

from rlaif.core.errors import InvalidInputError
from rlaif.engine.protocol import ChoiceRequest, GenerateRequest


def check_generate(
    requests: Sequence[GenerateRequest], *, context_length: int, vocabulary_size: int | None = None
) -> None:
    """Raises InvalidInputError for a prompt that leaves no room for a completion or holds what is no token."""
    for index, request in enumerate(requests):
        if not request.prompt_ids or len(request.prompt_ids) >= context_length:
            raise InvalidInputError(
                f"the prompt has {len(request.prompt_ids)} tokens; at least 1 and at most "
                f"{context_length - 1} fit the model's context of {context_length}",
                reason="PROMPT_TOO_LONG" if request.prompt_ids else None,
                field=f"prompts[{index}]",
            )
        for token in (min(request.prompt_ids), max(request.prompt_ids)):
            if token < 0 or (vocabulary_size is not None and token >= vocabulary_size):
                raise InvalidInputError(
                    f"{token} is no token of the model, whose ids end at {(vocabulary_size or 0) - 1}"
                    if token >= 0
                    else f"{token} is no token id",
                    reason="TOKEN_OUT_OF_VOCABULARY",
                    field=f"prompts[{index}]",
                )


def check_choices(requests: Sequence[ChoiceRequest], *, context_length: int) -> None:
    """Raises InvalidInputError for a prompt that does not fit or a request that asks nothing."""
    for index, request in enumerate(requests):
        if not request.prefix_ids or not request.suffixes or not all(request.suffixes):
            raise InvalidInputError("a prefix and non-empty suffixes are needed", field=f"requests[{index}]")
        if not request.choices or not all(request.choices):
            raise InvalidInputError("non-empty choices are needed", field=f"requests[{index}].choices")
        longest = len(request.prefix_ids) + max(map(len, request.suffixes)) + max(map(len, request.choices))
        if longest > context_length:
            raise InvalidInputError(
                f"the prompt and its answer have {longest} tokens, the model's context holds {context_length}",
                reason="PROMPT_TOO_LONG",
                field=f"requests[{index}]",
            )
