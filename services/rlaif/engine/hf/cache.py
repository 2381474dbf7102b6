"""Key-value cache that appends in place: transformers' own copies the whole cache for every new token."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

_GROWTH = 32


class BufferedLayer(DynamicLayer):
    """A layer's keys and values as the filled part of a larger buffer, shape (rows, heads, tokens, head size)."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._keep(keys, values)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values with the new ones appended."""
        start = self.keys.shape[-2]
        stop = start + key_states.shape[-2]
        if stop > self._key_buffer.shape[-2]:
            self._keep(self.keys, self.values, num_new=stop - start)
        self._key_buffer[:, :, start:stop] = key_states
        self._value_buffer[:, :, start:stop] = value_states
        self.keys, self.values = self._key_buffer[:, :, :stop], self._value_buffer[:, :, :stop]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps only these rows."""
        self._keep(self.keys[indices], self.values[indices])

    def _keep(self, keys: torch.Tensor, values: torch.Tensor, *, num_new: int = 1) -> None:
        length = keys.shape[-2]
        self._key_buffer = _enlarged(keys, length + max(num_new, _GROWTH))
        self._value_buffer = _enlarged(values, length + max(num_new, _GROWTH))
        self.keys, self.values = self._key_buffer[:, :, :length], self._value_buffer[:, :, :length]


def buffer_cache(cache: Any, rows: torch.Tensor) -> None:
    """Selects `rows` of a prefilled cache and turns its plain layers into buffered ones."""
    cache.batch_select_indices(rows)
    for index, layer in enumerate(getattr(cache, "layers", ())):
        # Sliding-window and recurrent layers keep their own way.
        if type(layer) is DynamicLayer and layer.is_initialized:
            cache.layers[index] = BufferedLayer(layer.keys, layer.values)


def _enlarged(states: torch.Tensor, length: int) -> torch.Tensor:
    buffer = states.new_empty((*states.shape[:-2], length, states.shape[-1]))
    buffer[:, :, : states.shape[-2]] = states
    return buffer
