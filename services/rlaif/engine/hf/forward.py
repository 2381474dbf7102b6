"""One forward pass of a causal language model, whatever its architecture.

Shapes: B rows, T tokens, S tokens cached and new, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from rlaif.core.errors import UnsupportedError


@dataclass(frozen=True)
class ModelRunner:
    """A model, and the precision of its matrix products."""

    model: Any
    autocast: bool
    pad_id: int

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self.model.device)

    @property
    def activation_dtype(self) -> torch.dtype:
        """Type of the queries and keys."""
        return torch.bfloat16 if self.autocast else self.model.dtype

    @property
    def window(self) -> int | None:
        """Tokens that sliding-window attention looks back; None without it."""
        window = getattr(self.model.config.get_text_config(), "sliding_window", None)
        return int(window) if window else None

    def precision(self) -> AbstractContextManager[Any]:
        """Context of the matrix products."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.autocast else nullcontext()

    def left_padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids_BT, mask_BT) of rows that all end in the last column."""
        longest = max(map(len, rows))
        ids = [[self.pad_id] * (longest - len(row)) + list(row) for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)

    def forward(
        self,
        ids_BT: torch.Tensor,
        mask_BS: torch.Tensor,
        positions_BT: torch.Tensor,
        *,
        cache: Any = None,
        use_cache: bool = False,
        num_logits: int = 1,
    ) -> tuple[torch.Tensor, Any]:
        """(logits_BKV of the last `num_logits` positions, cache); logits are float32."""
        optional = {"position_ids": positions_BT, "logits_to_keep": num_logits}
        optional = {name: value for name, value in optional.items() if name in self._parameters}
        with self.precision():
            output = self.model(
                input_ids=ids_BT, attention_mask=mask_BS, past_key_values=cache, use_cache=use_cache, **optional
            )
        new_cache = output.get("past_key_values")
        if use_cache and new_cache is None:
            raise UnsupportedError(
                f"{type(self.model).__name__} keeps no key-value cache, which sampling needs", reason="NO_CACHE"
            )
        return output.logits[:, -num_logits:].float(), new_cache

    @cached_property
    def _parameters(self) -> frozenset[str]:
        return frozenset(inspect.signature(self.model.forward).parameters)


def positions_of(mask_BT: torch.Tensor) -> torch.Tensor:
    """Position ids that count the tokens not padded."""
    return (mask_BT.cumsum(dim=-1) - 1).clamp_(min=0)
