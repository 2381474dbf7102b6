"""Reward models: ensembles of sequence classifiers with one output, on transformers.

A response is scored as the policy would have written it: the conversation in the chat template, the generation prompt,
the response, the end of turn. The value is the head's output on the last token that is not padding.

Shapes: B sequences, T tokens of the longest, D hidden size.
"""

# ruff: noqa: N806 - tensors carry shape suffixes

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from rlaif.core.conversation import Conversation
from rlaif.core.errors import InvalidInputError
from rlaif.engine.codec import ChatCodec
from rlaif.engine.hf.loading import find_model_folder, load_tokenizer
from rlaif.engine.hf.worker import Worker
from rlaif.engine.protocol import ModelIdentity, TokenIds
from rlaif.runtime.artifacts import folder_digest

FailureReason = Literal["TOO_LONG", "NOT_FINITE"]


@dataclass(frozen=True)
class RewardEstimate:
    """Mean and standard deviation over the members, or why there is none."""

    mean: float | None
    spread: float
    failure_reason: FailureReason | None = None


@dataclass(frozen=True)
class RewardModelOptions:
    """How members are run."""

    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_batch_tokens: int = 4096


@dataclass(frozen=True)
class _Member:
    """One loaded classifier."""

    identity: ModelIdentity
    model: Any
    codec: ChatCodec
    context_length: int


@dataclass(frozen=True)
class RewardEnsemble:
    """Loaded members of one reward model."""

    members: tuple[_Member, ...]

    @property
    def identities(self) -> tuple[ModelIdentity, ...]:
        """Weights of the members."""
        return tuple(member.identity for member in self.members)


class RewardModelEngine:
    """Loads and runs reward models in one thread, in order of arrival; each call is a batch of its own."""

    def __init__(self, options: RewardModelOptions, *, num_threads: int = 0) -> None:
        self._options = options
        self._worker = Worker(num_threads=num_threads)

    async def load(self, references: Sequence[ModelIdentity]) -> RewardEnsemble:
        """The ensemble; a digest that is given must be the folder's. InvalidInputError names the member."""
        return await self._worker.run(
            lambda _: RewardEnsemble(
                tuple(
                    _load_member(reference, field=f"members[{index}]", options=self._options)
                    for index, reference in enumerate(references)
                )
            )
        )

    async def score(self, ensemble: RewardEnsemble, inputs: Sequence[tuple[Conversation, str]]) -> list[RewardEstimate]:
        """One estimate an input, in order; the same inputs give the same floats."""
        return await self._worker.run(lambda _: self._score(ensemble, inputs))

    def close(self) -> None:
        """Ends the thread."""
        self._worker.close()

    def _score(self, ensemble: RewardEnsemble, inputs: Sequence[tuple[Conversation, str]]) -> list[RewardEstimate]:
        by_member = [self._score_member(member, inputs) for member in ensemble.members]
        return [_estimate(values) for values in zip(*by_member, strict=True)]

    def _score_member(self, member: _Member, inputs: Sequence[tuple[Conversation, str]]) -> list[float | None]:
        """Value of each input; None when it does not fit."""
        sequences = [_encode(member.codec, conversation, response) for conversation, response in inputs]
        fitting = [index for index, ids in enumerate(sequences) if len(ids) <= member.context_length]
        values: list[float | None] = [None] * len(inputs)
        for batch in _micro_batches(fitting, sequences, max_tokens=self._options.max_batch_tokens):
            scores = _forward(member.model, [sequences[index] for index in batch])
            for index, value in zip(batch, scores, strict=True):
                values[index] = value
        return values


def _load_member(reference: ModelIdentity, *, field: str, options: RewardModelOptions) -> _Member:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder = find_model_folder(reference.uri)
    digest = folder_digest(folder)
    if reference.digest and reference.digest != digest:
        raise InvalidInputError(
            f"{reference.uri} has the digest {digest}, not {reference.digest}",
            field=f"{field}.digest",
            reason="DIGEST_MISMATCH",
        )
    tokenizer = load_tokenizer(folder)
    return _Member(
        identity=ModelIdentity(uri=reference.uri, digest=digest, version=reference.version),
        model=_load_classifier(folder, field=f"{field}.uri", options=options),
        codec=ChatCodec(tokenizer),
        context_length=_context_length(folder, tokenizer),
    )


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


def _encode(codec: ChatCodec, conversation: Conversation, response: str) -> TokenIds:
    return codec.encode_chat(conversation) + codec.encode_response(response)


def _micro_batches(indices: Iterable[int], sequences: Sequence[TokenIds], *, max_tokens: int) -> Iterable[list[int]]:
    """Longest first, so that sequences of like length share a batch and padding is small."""
    batch: list[int] = []
    for index in sorted(indices, key=lambda index: (-len(sequences[index]), index)):
        if batch and (len(batch) + 1) * len(sequences[batch[0]]) > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _forward(model: Any, sequences: Sequence[TokenIds]) -> list[float]:
    width = max(map(len, sequences))
    filler = model.config.pad_token_id if model.config.pad_token_id is not None else 0
    ids_BT = torch.tensor([[*ids, *[filler] * (width - len(ids))] for ids in sequences], device=model.device)
    mask_BT = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in sequences], device=model.device)
    hidden_BTD = model.base_model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
    last_B = torch.tensor([_pooled_position(ids, model.config.pad_token_id) for ids in sequences], device=model.device)
    pooled_BD = hidden_BTD[torch.arange(len(sequences), device=model.device), last_B]
    return [float(value) for value in model.score(pooled_BD)[:, 0].float().tolist()]


def _pooled_position(ids: TokenIds, pad_id: int | None) -> int:
    """Last token that is not the padding token, as transformers' own classifiers pool: some models pad with their
    end-of-turn token, and were then trained on the token before it."""
    for position in range(len(ids) - 1, -1, -1):
        if ids[position] != pad_id:
            return position
    return len(ids) - 1


def _estimate(values: Sequence[float | None]) -> RewardEstimate:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return RewardEstimate(None, 0.0, "TOO_LONG")
    if not all(math.isfinite(value) for value in known):
        return RewardEstimate(None, 0.0, "NOT_FINITE")
    return RewardEstimate(statistics.fmean(known), statistics.pstdev(known))
