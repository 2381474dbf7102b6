"""Loads the members of a reward model: sequence classifiers with one output. What is wrong is named by member."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from rlaif.core.errors import CorruptionError, InvalidInputError
from rlaif.engine.codec import ChatCodec
from rlaif.engine.hf.loading import find_model_folder, load_tokenizer
from rlaif.engine.protocol import ModelIdentity
from rlaif.runtime.artifacts import folder_digest

_TOKENIZER_FILES = ("tokenizer*", "chat_template*", "special_tokens_map.json", "vocab*", "merges.txt", "*.model")


@dataclass(frozen=True)
class RewardModelOptions:
    """How members are run."""

    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_batch_tokens: int = 4096


@dataclass(frozen=True)
class MemberFiles:
    """A member whose files were found and checked, without its weights."""

    identity: ModelIdentity
    folder: Path
    codec: ChatCodec
    context_length: int


@dataclass(frozen=True)
class Member:
    """One loaded classifier."""

    identity: ModelIdentity
    model: Any
    codec: ChatCodec
    context_length: int

    @property
    def pad_id(self) -> int | None:
        """Token that its head does not pool."""
        pad_id: int | None = self.model.config.pad_token_id
        return pad_id


def find_members(references: Sequence[ModelIdentity]) -> list[MemberFiles]:
    """Finds the folders, checks their digests and reads their tokenizers, one of each kind.

    InvalidInputError names the member's field; its reason is DIGEST_MISMATCH when a digest that is given is another's.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    codecs: dict[str, ChatCodec] = {}
    found = []
    for index, reference in enumerate(references):
        field = f"members[{index}]"
        folder, digest = _find_folder(reference, field=field)
        with _named(f"{field}.uri"):
            tokenizer = load_tokenizer(folder)
            fingerprint = _tokenizer_fingerprint(folder)
            if fingerprint not in codecs:
                codecs[fingerprint] = ChatCodec(tokenizer)
        found.append(
            MemberFiles(
                identity=ModelIdentity(uri=reference.uri, digest=digest, version=reference.version),
                folder=folder,
                codec=codecs[fingerprint],
                context_length=_context_length(folder, tokenizer),
            )
        )
    return found


def load_member(files: MemberFiles, *, index: int, options: RewardModelOptions) -> Member:
    """The member with its weights on the device."""
    model = _load_classifier(files.folder, field=f"members[{index}].uri", options=options)
    return Member(files.identity, model, files.codec, files.context_length)


def _find_folder(reference: ModelIdentity, *, field: str) -> tuple[Path, str]:
    """(local folder, its digest), the digest being the one asked for."""
    try:
        with _named(f"{field}.uri"):
            folder = find_model_folder(reference.uri, digest=reference.digest)
            digest = folder_digest(folder)
    except CorruptionError as error:
        if not reference.digest:
            raise
        raise InvalidInputError(error.message, field=f"{field}.digest", reason="DIGEST_MISMATCH") from error
    if reference.digest and reference.digest != digest:
        raise InvalidInputError(
            f"{reference.uri} has the digest {digest}, not {reference.digest}",
            field=f"{field}.digest",
            reason="DIGEST_MISMATCH",
        )
    return folder, digest


def _load_classifier(folder: Path, *, field: str, options: RewardModelOptions) -> Any:
    try:
        model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype=torch.bfloat16 if options.dtype == "bfloat16" else torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInputError(f"{folder}: the reward model cannot be loaded: {cause}", field=field) from error
    missing = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if missing:
        raise InvalidInputError(
            f"{folder}: the weights lack {len(missing)} tensors of a reward model, the first is {missing[0]}",
            field=field,
        )
    if model.config.num_labels != 1 or not hasattr(model, "score"):
        raise InvalidInputError(
            f"{folder} has {model.config.num_labels} outputs; a reward model has one, on a decoder's last token",
            field=field,
        )
    model.requires_grad_(False)
    return model.eval().to(options.device)


def _context_length(folder: Path, tokenizer: Any) -> int:
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    lengths = (getattr(config.get_text_config(), "max_position_embeddings", None), tokenizer.model_max_length)
    # Tokenizers without a limit report one of about 1e30.
    known = [int(length) for length in lengths if length and length < 1e9]
    return min(known, default=2**31)


def _tokenizer_fingerprint(folder: Path) -> str:
    """Equal for folders whose tokenizers and chat templates are the same files."""
    files = sorted({file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern) if file.is_file()})
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


@contextmanager
def _named(field: str) -> Iterator[None]:
    """Errors about a model folder name the member instead of the model."""
    try:
        yield
    except InvalidInputError as error:
        raise InvalidInputError(error.message, reason=error.reason, field=field, metadata=error.metadata) from error
