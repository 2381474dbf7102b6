"""The tokenizer of the server's model, here: exact token ids are what the engines agree on. No model library loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from rlaif.core.errors import InvalidInputError, UnavailableError
from rlaif.engine.protocol import TokenIds

_FIELD = "engine.openai.tokenizer"


def load_tokenizer(uri: str) -> Any:
    """The tokenizer of a folder or hub id, chat template included; no code from there is run."""
    folder = Path(uri.removeprefix("file://")).expanduser()
    local = folder.is_dir()
    if not local and (folder.exists() or uri.startswith(("/", ".", "~", "file:")) or uri.count("/") > 1):
        raise InvalidInputError(f"tokenizer folder {uri} does not exist", field=_FIELD)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(folder) if local else uri, trust_remote_code=False, local_files_only=local
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInputError(f"{uri}: the tokenizer cannot be loaded: {_line(error)}", field=_FIELD) from error
    except OSError as error:
        if local:
            raise InvalidInputError(f"{uri}: the tokenizer cannot be loaded: {_line(error)}", field=_FIELD) from error
        raise UnavailableError(
            f"tokenizer {uri} is no folder, and cannot be had from the model hub: {_line(error)}", field=_FIELD
        ) from error
    if not tokenizer.chat_template:
        raise InvalidInputError(f"{uri}: the tokenizer has no chat template", field=_FIELD)
    return tokenizer


def token_names(tokenizer: Any) -> dict[str, TokenIds]:
    """What a server may call a token, its piece in the vocabulary or its text, and every token that it may mean."""
    names: dict[str, TokenIds] = {}
    ids = range(len(tokenizer))
    texts = tokenizer.backend_tokenizer.decode_batch([[each] for each in ids], skip_special_tokens=False)
    for each, piece, text in zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), texts, strict=True):
        for name in {piece, text}:
            names[name] = (*names.get(name, ()), each)
    return names


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
