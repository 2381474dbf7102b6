"""vLLM's exceptions as ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError
from vllm.exceptions import VLLMClientError, VLLMError
from vllm.v1.engine.exceptions import EngineDeadError

from rlaif.core.errors import InvalidInputError, UnavailableError
from rlaif.engine.protocol import ENGINE_LOST


@contextmanager
def typed_errors() -> Iterator[None]:
    """Inside, what vLLM refuses is an InvalidInputError, what it fails at an UnavailableError."""
    try:
        yield
    except EngineDeadError as error:
        raise UnavailableError(
            "vLLM's process is lost; the service has to be started again", reason=ENGINE_LOST
        ) from error
    except VLLMClientError as error:
        raise InvalidInputError(f"vLLM refuses this request: {first_line(error)}", field="prompts") from error
    except VLLMError as error:
        cause = error.__cause__ or error
        raise UnavailableError(f"vLLM failed at this request: {first_line(cause)}") from error


def start_failure(error: BaseException) -> str:
    """Why vLLM did not start, in one line."""
    if isinstance(error, ValidationError):
        return str(error.errors()[0]["msg"]).splitlines()[0]
    return first_line(error)


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
