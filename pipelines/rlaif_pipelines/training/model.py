"""Models as folders: loaded from safetensors alone, saved with what made them.

Shape legend: B rows; T tokens of a row; N tokens asked about; S branches; H heads; D hidden width; V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
import yaml
from safetensors import SafetensorError
from torch import Tensor

from rlaif.core.errors import InvalidInputError
from rlaif.runtime.artifacts import folder_digest
from rlaif.runtime.store import is_remote, local_folder
from rlaif_pipelines.training.config.common import LoraSettings
from rlaif_pipelines.training.lora import add_adapter, has_adapter, merged_state, without_adapter, write_adapter
from rlaif_pipelines.training.losses import token_logprobs
from rlaif_pipelines.training.packing import model_output

Precision = Literal["float32", "bfloat16_autocast", "bfloat16"]

_UNLIMITED = 1_000_000
_HEAD = "score"
_LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError)


@dataclass(frozen=True)
class Base:
    """A causal language model's folder, its tokenizer and what identifies it."""

    folder: Path
    uri: str
    """What names it: the folder, or the URI that it was fetched from."""
    digest: str
    tokenizer: Any
    context_length: int

    @property
    def pad_id(self) -> int:
        """Token that fills up a batch; attention never sees it."""
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        return 0


def open_base(uri: str) -> Base:
    """The model of that folder or URI; InvalidInputError says what it lacks."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder = local_folder(uri)
    if not (folder / "config.json").is_file():
        raise InvalidInputError(f"{folder} holds no config.json: it is not a model folder", field="policy")
    digest = folder_digest(folder)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except _LOAD_ERRORS as error:
        raise InvalidInputError(f"{folder}: the tokenizer cannot be loaded: {_line(error)}", field="policy") from error
    text_config = config.get_text_config()
    if len(tokenizer) > text_config.vocab_size:
        raise InvalidInputError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model only {text_config.vocab_size}",
            field="policy",
        )
    lengths = [getattr(text_config, "max_position_embeddings", None), tokenizer.model_max_length]
    # Tokenizers without a limit say 1e30.
    context_length = int(min([length for length in lengths if length and length < 1e9], default=_UNLIMITED))
    return Base(
        folder=folder,
        uri=uri if is_remote(uri) else str(folder),
        digest=digest,
        tokenizer=tokenizer,
        context_length=context_length,
    )


def load_policy(
    base: Base, *, precision: Precision, attention: str, lora: LoraSettings | None = None, seed: int = 0
) -> Any:
    """The base's causal language model, ready to be trained; with `lora` an adapter on it, begun by the seed."""
    model = _load(transformers.AutoModelForCausalLM, base, precision=precision, attention=attention)
    if lora is not None:
        add_adapter(model, lora, seed=seed)
    return model


def new_reward_model(
    base: Base,
    *,
    seed: int,
    precision: Precision,
    attention: str,
    num_side_heads: int = 0,
    lora: LoraSettings | None = None,
) -> Any:
    """The base's trunk with a fresh scalar head, decided by the seed, on each sequence's last token.

    Side heads stand behind the reward's; `save_reward_model` leaves them out. With `lora` the trunk's weights stay.
    """
    torch.manual_seed(seed)
    model = _load(
        transformers.AutoModelForSequenceClassification,
        base,
        precision=precision,
        attention=attention,
        num_labels=1 + num_side_heads,
    )
    model.config.pad_token_id = base.pad_id
    if lora is not None:
        add_adapter(model, lora, seed=seed, classifies=True)
    return model


class PolicyLogprobs(torch.nn.Module):
    """What a policy says of given completions: log-probability and entropy of every completion token, flat."""

    def __init__(self, model: Any, *, temperature: float = 1.0, autocast: bool = False) -> None:
        super().__init__()
        self.model = model
        self._temperature = temperature
        self._autocast = autocast
        self._head_is_linear = _head_is_linear(model)

    def forward(
        self, ids_BT: Tensor, positions_BT: Tensor, mask: Tensor, sources_N: Tensor, targets_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(logprobs_N, entropy_N) of the tokens asked about, from `Rows.for_logprobs`."""
        with torch.autocast(ids_BT.device.type, dtype=torch.bfloat16, enabled=self._autocast):
            if not self._head_is_linear:
                logits_BTV = model_output(self.model, ids_BT, positions_BT, mask).logits
                logits_NV = logits_BTV.flatten(0, 1).index_select(0, sources_N)
                return _logprobs_of_logits(logits_NV.float() / self._temperature, targets_N)
            hidden_BTD = model_output(self.model.base_model, ids_BT, positions_BT, mask).last_hidden_state
            hidden_ND = hidden_BTD.flatten(0, 1).index_select(0, sources_N)
            weight_VD = self.model.get_output_embeddings().weight
            return token_logprobs(
                hidden_ND, weight_VD=weight_VD.to(hidden_ND.dtype), targets_N=targets_N, temperature=self._temperature
            )


class RewardScores(torch.nn.Module):
    """What a reward model says of every branch: its reward, then what its side heads say."""

    def __init__(self, model: Any, *, autocast: bool = False) -> None:
        super().__init__()
        self.model = model
        self._autocast = autocast

    def forward(self, ids_BT: Tensor, positions_BT: Tensor, mask: Tensor, ends_S: Tensor) -> Tensor:
        """values_SH of the branches, fp32, from `Rows.for_rewards`; the reward is the first of the H heads."""
        with torch.autocast(ids_BT.device.type, dtype=torch.bfloat16, enabled=self._autocast):
            hidden_BTD = model_output(self.model.base_model, ids_BT, positions_BT, mask).last_hidden_state
            values_SH: Tensor = getattr(self.model, _HEAD)(hidden_BTD.flatten(0, 1).index_select(0, ends_S))
        return values_SH.float()


def save_reward_model(
    model: Any, folder: Path, *, base: Base, card: str, state: Mapping[str, Tensor] | None = None
) -> None:
    """Writes a reward model with its reward's head alone, as any other sequence classifier with one label."""
    weights = dict(state if state is not None else model.state_dict())
    model.config.num_labels = 1
    heads = {name: tensor[:1].contiguous() for name, tensor in weights.items() if name.startswith(_HEAD)}
    save_model(model, folder, base=base, card=card, state={**weights, **heads})


def save_model(model: Any, folder: Path, *, base: Base, card: str, state: Mapping[str, Tensor] | None = None) -> None:
    """Writes a plain Hugging Face folder: configuration, safetensors, tokenizer, model card; an adapter is merged."""
    if has_adapter(model):
        merged = merged_state(model, state if state is not None else model.state_dict())
        with without_adapter(model):
            model.save_pretrained(folder, state_dict=merged)
    else:
        model.save_pretrained(folder, state_dict=dict(state) if state is not None else None)
    base.tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")


def save_adapter(model: Any, folder: Path, *, base: Base, card: str, state: Mapping[str, Tensor] | None = None) -> None:
    """Writes a model's adapter alone, and which model it must be put on."""
    write_adapter(model, folder, state if state is not None else model.state_dict())
    write_base(folder, base)
    (folder / "README.md").write_text(card, encoding="utf-8")


def write_base(folder: Path, base: Base) -> None:
    """Notes beside an adapter which weights it belongs to."""
    (folder / "base.json").write_text(json.dumps({"digest": base.digest}) + "\n", encoding="utf-8")


def model_card(*, title: str, base: Base, facts: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> str:
    """A model card that says what the weights came from: facts as a table, settings as YAML."""
    rows = "".join(f"| {key} | {_cell(value)} |\n" for key, value in {"base digest": base.digest, **facts}.items())
    front = f"---\nlibrary_name: transformers\nbase_model: {json.dumps(base.uri)}\ntags: [rlaif]\n---\n"
    card = f"{front}\n# {title}\n\nTrained from AI feedback with kube-rlaif.\n\n| | |\n|---|---|\n{rows}"
    if not settings:
        return card
    return f"{card}\n## Settings\n\n```yaml\n{yaml.safe_dump(dict(settings), allow_unicode=True)}```\n"


def _load(model_class: Any, base: Base, *, precision: Precision, attention: str, **options: Any) -> Any:
    try:
        model, report = model_class.from_pretrained(
            base.folder,
            dtype=torch.bfloat16 if precision == "bfloat16" else torch.float32,
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    except _LOAD_ERRORS as error:
        raise InvalidInputError(f"{base.folder}: the model cannot be loaded: {_line(error)}", field="policy") from error
    lacking = [*report["missing_keys"], *report["mismatched_keys"]]
    # A new head is not among the base's weights.
    missing = sorted(name for name in map(str, lacking) if not (options and name.startswith(_HEAD)))
    if missing:
        raise InvalidInputError(
            f"{base.folder}: the weights lack {len(missing)} tensors of the model, the first is {missing[0]}",
            field="policy",
        )
    return model


@torch.no_grad()
def _head_is_linear(model: Any) -> bool:
    """Whether logits are just hidden states times the output embedding; some models scale, cap or shift them."""
    ids_BT = torch.zeros((1, 2), dtype=torch.long, device=model.device)
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    hidden_BTD = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    head = model.get_output_embeddings()
    if head is None or hidden_BTD.shape[-1] != head.weight.shape[-1]:
        return False
    return bool(torch.allclose(logits_BTV, hidden_BTD @ head.weight.T, rtol=1e-3, atol=1e-3))


def _logprobs_of_logits(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    logprobs_NV = logits_NV.log_softmax(dim=-1)
    entropy_N = -(logprobs_NV.detach().exp() * logprobs_NV.detach()).sum(dim=-1)
    return logprobs_NV.gather(1, targets_N[:, None]).squeeze(1), entropy_N


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
