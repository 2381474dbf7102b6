"""The shape of a decoder-only transformer, and what follows from it: weights, FLOPs, bytes of its cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from rlaif.core.errors import InvalidInputError

_MAX_SIZE: Final = 10_000_000
_REQUIRED: Final = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
_EXPERTS: Final = ("num_experts", "num_local_experts", "n_routed_experts")
_BIASED: Final = ("qwen2", "qwen2_moe")
_NORMED_HEADS: Final = ("qwen3", "qwen3_moe")
_KNOWN_TYPES: Final = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe")


@dataclass(frozen=True)
class Architecture:
    """Sizes as a config.json has them; `num_experts` 0 where every token goes through the same weights."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    vocab_size: int
    tied_embeddings: bool = False
    attention_bias: bool = False
    normed_heads: bool = False
    num_experts: int = 0
    experts_per_token: int = 0
    exact: bool = True
    """Whether its kind of model is one whose weights the formulas below count to the last one."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Architecture:
        """From the values of a config.json; InvalidInputError names what is missing or impossible."""
        config = config.get("text_config") or config
        missing = [name for name in _REQUIRED if config.get(name) is None]
        if missing:
            raise InvalidInputError(f"has no {', '.join(missing)}")
        heads, hidden = _size(config, "num_attention_heads"), _size(config, "hidden_size")
        experts = next((_size(config, name) for name in _EXPERTS if config.get(name)), 0)
        width = "moe_intermediate_size" if experts and config.get("moe_intermediate_size") else "intermediate_size"
        kind = str(config.get("model_type", ""))
        return cls(
            num_layers=_size(config, "num_hidden_layers"),
            hidden_size=hidden,
            num_heads=heads,
            num_kv_heads=_size(config, "num_key_value_heads", heads),
            head_size=_size(config, "head_dim", hidden // heads),
            intermediate_size=_size(config, width, 4 * hidden),
            vocab_size=_size(config, "vocab_size"),
            tied_embeddings=bool(config.get("tie_word_embeddings", False)),
            attention_bias=kind in _BIASED,
            normed_heads=kind in _NORMED_HEADS,
            num_experts=experts,
            experts_per_token=_size(config, "num_experts_per_tok", 1) if experts else 0,
            exact=kind in _KNOWN_TYPES and not config.get("attention_bias") and not config.get("mlp_bias"),
        )

    @property
    def num_parameters(self) -> int:
        """All weights."""
        return self._parameters(max(1, self.num_experts))

    @property
    def num_active_parameters(self) -> int:
        """Weights that one token goes through."""
        return self._parameters(max(1, self.experts_per_token))

    @property
    def num_multiplied(self) -> int:
        """N of the FLOPs: weights that one token is multiplied by, which are all but the input embeddings."""
        looked_up = 0 if self.tied_embeddings else self.vocab_size * self.hidden_size
        return self.num_active_parameters - looked_up

    def forward_flops(self, context: float) -> float:
        """FLOPs of one token forward that attends to `context` tokens: 2N + 4 · layers · heads · head_size · context.

        Kaplan et al. 2020 (2001.08361) §2.1 and table 1, whose attention term, of a whole causal sequence of n tokens,
        is this one at the mean context n / 2. N here counts the output head too, and not the norms' nothing.
        """
        return 2.0 * self.num_multiplied + 4.0 * self.num_layers * self.num_heads * self.head_size * context

    def training_flops(self, context: float, *, checkpointing: bool = False, adapter: bool = False) -> float:
        """FLOPs of one token forward and backward: three times forward, 6N and its attention (2001.08361 §2.1).

        With `checkpointing` the forward pass is made twice (2205.05198 §5). With an adapter the backward pass computes
        gradients of activations alone: as dear as forward, in place of twice (2106.09685 §4.2 names the saving).
        """
        passes = (2.0 if adapter else 3.0) + (1.0 if checkpointing else 0.0)
        return passes * self.forward_flops(context)

    def cache_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Keys and values of one token: 2 · layers · kv_heads · head_size · bytes (Pope et al. 2022, 2211.05102 §2)."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_size * bytes_per_value

    def adapter_parameters(self, rank: int) -> int:
        """Weights of adapters on all linear layers but the head: rank · (inputs + outputs) each (2106.09685 §4.1)."""
        queries, keys = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        attention = 2 * (self.hidden_size + queries) + 2 * (self.hidden_size + keys)
        mlp = 3 * (self.hidden_size + self.intermediate_size) * max(1, self.num_experts)
        return rank * self.num_layers * (attention + mlp)

    def _parameters(self, num_experts: int) -> int:
        hidden, queries, keys = self.hidden_size, self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        attention = 2 * hidden * queries + 2 * hidden * keys
        attention += (queries + 2 * keys) if self.attention_bias else 0
        mlp = 3 * hidden * self.intermediate_size * num_experts  # gate, up and down
        mlp += hidden * self.num_experts  # the router
        norms = 2 * hidden + (2 * self.head_size if self.normed_heads else 0)
        embeddings = self.vocab_size * hidden * (1 if self.tied_embeddings else 2)
        return self.num_layers * (attention + mlp + norms) + embeddings + hidden


def _size(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_SIZE:
        raise InvalidInputError(f"{name} = {value!r}: must be a whole number from 1 to {_MAX_SIZE:,}")
    return value
