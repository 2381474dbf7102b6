"""Key-value cache that appends in place and whose rows are slots: one that finished makes room for a newcomer.

Transformers' own copies the whole cache for every new token, and its rows start and end together.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

_MIN_GROWTH = 32


class SlotLayer(DynamicLayer):
    """A layer's keys and values as a window of a larger buffer, shape (rows, heads, tokens, head size).

    Every row ends in the window's last column; what a shorter row has to its left is finite and masked out.
    """

    keys: torch.Tensor
    values: torch.Tensor
    _stop: int

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._hold(keys, values, num_rows=keys.shape[0], width=keys.shape[-2])

    @property
    def width(self) -> int:
        """Columns of the window."""
        return int(self.keys.shape[-2])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values with the new ones appended."""
        num_new = key_states.shape[-2]
        if self._stop + num_new > self._key_buffer.shape[-2]:
            self._hold(self.keys, self.values, num_rows=self.keys.shape[0], width=self.width, num_new=num_new)
        start, self._stop = self._stop, self._stop + num_new
        rows = self.keys.shape[0]
        self._key_buffer[:rows, :, start : self._stop] = key_states
        self._value_buffer[:rows, :, start : self._stop] = value_states
        self._view(rows, self.width + num_new)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps only these rows."""
        keys, values = self.keys[indices], self.values[indices]
        self._hold(keys, values, num_rows=len(indices), width=self.width)

    def narrow(self, width: int) -> None:
        """Forgets all but the last `width` columns."""
        self._view(self.keys.shape[0], width)

    def put(self, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, num_rows: int) -> None:
        """Replaces the rows `slots` of what are then `num_rows` rows; the new ones end in the last column."""
        num_columns = keys.shape[-2]
        width = max(self.width, num_columns)
        if num_rows > self._key_buffer.shape[0] or width > self._stop:
            self._hold(self.keys, self.values, num_rows=num_rows, width=width)
        self._view(num_rows, width)
        for window, new in ((self.keys, keys), (self.values, values)):
            # What a row leaves behind may not be a number, and nothing times that is nothing.
            window[slots] = 0
            window[slots, :, width - num_columns :] = new

    def _hold(self, keys: torch.Tensor, values: torch.Tensor, *, num_rows: int, width: int, num_new: int = 1) -> None:
        room = max(num_new, _MIN_GROWTH, width // 4)
        self._key_buffer = _enlarged(keys, num_rows=num_rows, width=width, room=room)
        self._value_buffer = _enlarged(values, num_rows=num_rows, width=width, room=room)
        self._stop = width
        self._view(num_rows, width)

    def _view(self, num_rows: int, width: int) -> None:
        start = self._stop - width
        self.keys = self._key_buffer[:num_rows, :, start : self._stop]
        self.values = self._value_buffer[:num_rows, :, start : self._stop]


def takes_newcomers(cache: Any) -> bool:
    """Whether rows of this prefilled cache can be replaced one by one: sliding-window and recurrent ones cannot."""
    layers = getattr(cache, "layers", ())
    return bool(layers) and all(type(layer) in (DynamicLayer, SlotLayer) and layer.is_initialized for layer in layers)


def buffer_cache(cache: Any, rows: torch.Tensor) -> None:
    """Selects `rows` of a prefilled cache and turns its plain layers into slots."""
    cache.batch_select_indices(rows)
    for index, layer in enumerate(getattr(cache, "layers", ())):
        # Sliding-window and recurrent layers keep their own way.
        if type(layer) is DynamicLayer and layer.is_initialized:
            cache.layers[index] = SlotLayer(layer.keys, layer.values)


def put_rows(cache: Any, slots: torch.Tensor, prefilled: Any, rows: torch.Tensor, *, num_rows: int) -> None:
    """Puts `rows` of a prefilled cache into the slots of one that `takes_newcomers`."""
    for layer, new in zip(cache.layers, prefilled.layers, strict=True):
        layer.put(slots, new.keys[rows], new.values[rows], num_rows=num_rows)


def narrow_cache(cache: Any, width: int) -> None:
    """Forgets all but the last `width` columns of one that `takes_newcomers`."""
    for layer in cache.layers:
        layer.narrow(width)


def _enlarged(states: torch.Tensor, *, num_rows: int, width: int, room: int) -> torch.Tensor:
    """The states at the end of `width` columns, with room to their right and below."""
    rows, heads, columns, size = states.shape
    buffer = states.new_zeros((num_rows, heads, width + room, size))
    buffer[:rows, :, width - columns : width] = states
    return buffer
