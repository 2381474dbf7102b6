"""Finds, checks and loads models: safetensors only, no code from model folders, one clear sentence when refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open

from rlaif.core.errors import InvalidInputError, UnavailableError
from rlaif.engine.codec import ChatCodec
from rlaif.engine.hf.adapters import plain_state
from rlaif.engine.settings import Attention, Dtype
from rlaif.runtime.store import local_folder

# Measured on CPUs at 128, where eager takes 0.8 of the time of sdpa to score.
_SMALL_HIDDEN_SIZE = 256
_WEIGHTS = "*.safetensors"
_PICKLED_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")
_HUB_FILES = ("*.json", "*.jinja", "*.model", _WEIGHTS)


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model in evaluation mode, with its codec."""

    folder: Path
    model: Any
    codec: ChatCodec
    stop_ids: frozenset[int]
    context_length: int


def load_causal_model(
    uri: str, *, device: str, dtype: Dtype, attention: Attention, context_length: int | None = None
) -> LoadedModel:
    """The model of that folder or hub id; InvalidInputError says what is wrong with it.

    `context_length` shortens the model's own, or stands in where the model has none.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder = find_model_folder(uri)
    tokenizer = load_tokenizer(folder)
    model = load_weights(folder, device=device, dtype=dtype, attention=attention)
    codec = ChatCodec(tokenizer)
    check_vocabulary(folder, codec, embedded=model.get_input_embeddings().weight.shape[0])
    return LoadedModel(
        folder=folder,
        model=model,
        codec=codec,
        stop_ids=stop_ids(model.generation_config, codec, tokenizer),
        context_length=find_context_length(model.config, tokenizer, limit=context_length),
    )


def find_model_folder(uri: str, *, digest: str = "") -> Path:
    """The local folder of a model; fetches it from object storage, checked against a digest, or by its hub id."""
    folder = local_folder(uri, digest=digest)
    if not folder.is_dir():
        if folder.exists():
            raise InvalidInputError(f"model {uri} is a file; a model folder or a hub id is needed", field="model")
        if uri.startswith(("/", ".", "~", "file:")) or uri.count("/") > 1:
            raise InvalidInputError(f"model folder {uri} does not exist", field="model")
        folder = _download(uri)
    _check_folder(folder)
    return folder


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer."""
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise InvalidInputError(f"{folder} holds no tokenizer (tokenizer.json)", field="model")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInputError(f"{folder}: the tokenizer cannot be loaded: {_line(error)}", field="model") from error
    if not tokenizer.chat_template:
        raise InvalidInputError(f"{folder}: the tokenizer has no chat template", field="model")
    return tokenizer


def read_config(folder: Path) -> Any:
    """The folder's config, of a causal language model."""
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInputError(f"{folder}: the model cannot be loaded: {_line(error)}", field="model") from error
    _check_architecture(folder, config)
    return config


def check_vocabulary(folder: Path, codec: ChatCodec, *, embedded: int) -> None:
    """Raises InvalidInputError where the tokenizer has ids that the model's `embedded` rows do not reach."""
    if codec.vocabulary_size > embedded:
        raise InvalidInputError(
            f"{folder}: the tokenizer has {codec.vocabulary_size} tokens, the model only {embedded}", field="model"
        )


def load_weights(folder: Path, *, device: str, dtype: Dtype, attention: Attention) -> Any:
    """The folder's model, every weight found."""
    try:
        config = read_config(folder)
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=torch.bfloat16 if dtype == "bfloat16" else torch.float32,
            attn_implementation=_attention(attention, config, device=device),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(f"{folder}: the model cannot be loaded: {_line(error)}", field="model") from error
    missing = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if missing:
        raise InvalidInputError(
            f"{folder}: the weights lack {len(missing)} tensors of the model, the first is {missing[0]}", field="model"
        )
    model.requires_grad_(False)
    return model.eval().to(device)


def stop_ids(generation_config: Any, codec: ChatCodec, tokenizer: Any) -> frozenset[int]:
    """Ids that end a completion: the generation config's, the tokenizer's and the chat template's."""
    configured = getattr(generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in (*ids, tokenizer.eos_token_id, codec.end_of_turn) if token is not None)


def find_context_length(config: Any, tokenizer: Any, *, limit: int | None) -> int:
    """Tokens that model, tokenizer and `limit` all allow."""
    own = getattr(config.get_text_config(), "max_position_embeddings", None)
    lengths = [own, tokenizer.model_max_length, limit]
    # Tokenizers without a limit say 1e30.
    known = [int(length) for length in lengths if length and length < 1e9]
    if not known:
        raise InvalidInputError("the model does not say its context length; set engine.context_length", field="model")
    return min(known)


def resolve_dtype(dtype: Dtype, *, device: str) -> Dtype:
    """What auto stands for on this machine; any other is itself."""
    if dtype != "auto":
        return dtype
    if not device.startswith("cpu"):
        return "bfloat16"
    # On other processors bfloat16 is emulated, which is several times slower than float32.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bfloat16_autocast" if native else "float32"


def copy_weights(model: Any, folder: Path) -> bool:
    """Puts the folder's weights into the loaded model, all or none; False when their names or shapes differ.

    An adapter on it stays as it is.
    """
    _check_folder(folder)
    state = plain_state(model)
    files = sorted(folder.glob(_WEIGHTS))
    try:
        shapes: dict[str, tuple[int, ...]] = {}
        for path in files:
            with safe_open(path, framework="pt") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if any(name not in state or tuple(state[name].shape) != shape for name, shape in shapes.items()):
            return False
        # Tied weights are stored once, under one of their names; stored twice, they are not tied.
        stored = {state[name].data_ptr() for name in shapes}
        if len(stored) < len(shapes) or stored != {tensor.data_ptr() for tensor in state.values()}:
            return False
        tensors: dict[str, torch.Tensor] = {}
        for path in files:
            with safe_open(path, framework="pt") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InvalidInputError(f"{folder}: the weights cannot be read: {_line(error)}", field="model") from error
    for name, tensor in tensors.items():
        state[name].copy_(tensor)
    return True


def _attention(attention: Attention, config: Any, *, device: str) -> str:
    if attention != "auto":
        return attention
    small = getattr(config.get_text_config(), "hidden_size", _SMALL_HIDDEN_SIZE + 1) <= _SMALL_HIDDEN_SIZE
    return "eager" if small and device.startswith("cpu") else "sdpa"


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise InvalidInputError(f"{folder} holds no config.json: it is not a model folder", field="model")
    if any(folder.glob(_WEIGHTS)):
        return
    pickled = next((path.name for pattern in _PICKLED_WEIGHTS for path in sorted(folder.glob(pattern))), None)
    if pickled:
        raise InvalidInputError(
            f"{folder} holds weights only as pickle ({pickled}), which can run code; save them as safetensors",
            field="model",
        )
    raise InvalidInputError(f"{folder} holds no weights (*.safetensors)", field="model")


def _check_architecture(folder: Path, config: Any) -> None:
    for name in config.architectures or ():
        if name.endswith(("ForSequenceClassification", "ForTokenClassification")):
            raise InvalidInputError(f"{folder} is a {name}, not a causal language model", field="model")


def _download(uri: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(uri, allow_patterns=list(_HUB_FILES)))
    except (RepositoryNotFoundError, GatedRepoError, HFValidationError) as error:
        raise InvalidInputError(
            f"model {uri} is neither a folder nor a hub id that can be read: {_line(error)}", field="model"
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise UnavailableError(
            f"model {uri} is no folder, and the model hub cannot be reached: {_line(error)}", field="model"
        ) from error


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
