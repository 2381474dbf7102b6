"""The rows that are decoded together: newcomers take the slots of those that finished.

Shapes: P prompts of a prefill, B slots, T columns of the cache, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rlaif.engine.hf.cache import buffer_cache, narrow_cache, put_rows, takes_newcomers
from rlaif.engine.hf.forward import ModelRunner, positions_of
from rlaif.engine.hf.rows import Row
from rlaif.engine.sampling import Sampler


class Prefill:
    """The prompts of some rows on their way through the model, each distinct one once, in pieces if need be."""

    def __init__(self, runner: ModelRunner, rows: Sequence[Row], *, max_tokens: int) -> None:
        """`max_tokens` is the most tokens of one piece; 0 takes the prompts whole."""
        self.rows = list(rows)
        self._runner = runner
        prompts = list(dict.fromkeys(row.request.prompt_ids for row in rows))
        place = {prompt: index for index, prompt in enumerate(prompts)}
        self.prompt_of_row = [place[row.request.prompt_ids] for row in rows]
        self._ids_PT, self.mask_PT = runner.left_padded(prompts)
        self.num_tokens = sum(map(len, prompts))
        """Tokens of the distinct prompts, without padding."""
        self.positions_PT = positions_of(self.mask_PT)
        self._num_columns = max(1, max_tokens // len(prompts)) if max_tokens else self.num_columns
        self._done = 0
        self.cache: Any = None
        self.logits_PV: torch.Tensor | None = None

    @property
    def num_columns(self) -> int:
        """Tokens of the longest prompt."""
        return int(self._ids_PT.shape[1])

    def advance(self) -> bool:
        """Runs the next piece; whether it was the last."""
        start, stop = self._done, min(self._done + self._num_columns, self.num_columns)
        logits_PKV, self.cache = self._runner.forward(
            self._ids_PT[:, start:stop],
            self.mask_PT[:, :stop],
            self.positions_PT[:, start:stop],
            cache=self.cache,
            use_cache=True,
        )
        self.logits_PV, self._done = logits_PKV[:, -1], stop
        return stop == self.num_columns


class RunningBatch:
    """Slots with a row each, or none, and what the model needs to continue them all by one token."""

    def __init__(self, runner: ModelRunner, *, context_length: int) -> None:
        self._runner, self._context_length = runner, context_length
        self._forget()

    def _forget(self) -> None:
        self.slots: list[Row | None] = []
        self.num_rows = 0
        """Slots that hold a row."""
        self._cache: Any = None
        self._mask_BT: torch.Tensor
        self._positions_B1: torch.Tensor
        self._logits_BV: torch.Tensor
        self._sampler: Sampler
        self._takes_newcomers = True

    @property
    def rows(self) -> list[Row]:
        """The rows being continued."""
        return [row for row in self.slots if row is not None]

    @property
    def num_tokens(self) -> int:
        """Keys and values held, padding included."""
        return len(self.slots) * int(self._mask_BT.shape[1]) if self.num_rows else 0

    @property
    def takes_newcomers(self) -> bool:
        """Whether rows can join now: where the cache is of another kind, only an empty batch takes any."""
        return not self.num_rows or self._takes_newcomers

    def clear(self) -> None:
        """Drops everything."""
        self._forget()

    def join(self, prefill: Prefill) -> None:
        """Continues the prefilled rows, those dropped meanwhile left out."""
        joining = [
            (row, place) for row, place in zip(prefill.rows, prefill.prompt_of_row, strict=True) if not row.job.gone
        ]
        if not joining:
            return
        if not self.num_rows:
            self._forget()
        device = self._runner.device
        rows = [row for row, _ in joining]
        prompts_R = torch.tensor([place for _, place in joining], device=device)
        slots = self._take_slots(rows)
        assert prefill.logits_PV is not None
        mask_RT, logits_RV = prefill.mask_PT[prompts_R], prefill.logits_PV[prompts_R]
        positions_R1 = prefill.positions_PT[prompts_R, -1:]
        if self._cache is None:
            self._cache, self._takes_newcomers = prefill.cache, takes_newcomers(prefill.cache)
            buffer_cache(self._cache, prompts_R)
            self._mask_BT, self._positions_B1, self._logits_BV = mask_RT, positions_R1, logits_RV
        else:
            slots_R = torch.tensor(slots, device=device)
            num_slots, old = len(self.slots), self._mask_BT
            put_rows(self._cache, slots_R, prefill.cache, prompts_R, num_rows=num_slots)
            width = max(old.shape[1], mask_RT.shape[1])
            self._mask_BT = old.new_zeros((num_slots, width))
            self._mask_BT[: old.shape[0], width - old.shape[1] :] = old
            self._mask_BT[slots_R] = 0
            self._mask_BT[slots_R, width - mask_RT.shape[1] :] = mask_RT
            self._positions_B1 = _with_rows(self._positions_B1, slots_R, positions_R1, num_rows=num_slots)
            self._logits_BV = _with_rows(self._logits_BV, slots_R, logits_RV, num_rows=num_slots)
        self._sampler = self._make_sampler()

    def draw(self, allowed: Mapping[int, npt.NDArray[np.bool_]]) -> tuple[list[int], list[float]]:
        """(tokens, log-probabilities) of the slots; those of empty slots mean nothing.

        A slot that `allowed` names draws from those tokens alone.
        """
        for slot, allowed_V in allowed.items():
            self._logits_BV[slot].masked_fill_(torch.from_numpy(~allowed_V).to(self._runner.device), -torch.inf)
        uniforms_B = torch.tensor(
            [0.0 if row is None else row.uniforms.draw() for row in self.slots], dtype=torch.float64
        )
        tokens_B, logprobs_B = self._sampler.draw(self._logits_BV, uniforms_B.to(self._runner.device))
        return tokens_B.tolist(), logprobs_B.tolist()

    def free(self, leaves: Callable[[Row], bool]) -> None:
        """Empties the slots of the rows that leave."""
        self.slots = [None if row is None or leaves(row) else row for row in self.slots]
        self.num_rows = sum(row is not None for row in self.slots)

    def forward(self, tokens: Sequence[int], *, compact_below: float) -> None:
        """Continues every slot by its token, or drops everything when no slot holds a row.

        Empty slots are computed too, until less than `compact_below` of all hold a row: then they are given up.
        """
        if not self.num_rows:
            self._forget()
            return
        device = self._runner.device
        tokens_B = torch.tensor(tokens, device=device)
        if self.num_rows <= compact_below * len(self.slots):
            tokens_B = tokens_B[self._compact()]
        if self._takes_newcomers:
            width = max(row.length for row in self.rows) - 1
            narrow_cache(self._cache, width)
            self._mask_BT = self._mask_BT[:, -width:]
        # Slots that are empty are still counted on, and a model has no positions past its context.
        self._positions_B1 = (self._positions_B1 + 1).clamp_(max=self._context_length - 1)
        self._mask_BT = torch.cat([self._mask_BT, self._mask_BT.new_ones(len(self.slots), 1)], dim=-1)
        logits_BKV, self._cache = self._runner.forward(
            tokens_B[:, None], self._mask_BT, self._positions_B1, cache=self._cache, use_cache=True
        )
        self._logits_BV = logits_BKV[:, -1]

    def _compact(self) -> torch.Tensor:
        kept = [slot for slot, row in enumerate(self.slots) if row is not None]
        kept_B = torch.tensor(kept, device=self._runner.device)
        self.slots = [self.slots[slot] for slot in kept]
        if self._takes_newcomers:
            # The columns that only the leaving rows filled are not copied.
            narrow_cache(self._cache, min(int(self._mask_BT.shape[1]), max(row.length for row in self.rows) - 1))
        self._cache.batch_select_indices(kept_B)
        self._mask_BT, self._positions_B1 = self._mask_BT[kept_B], self._positions_B1[kept_B]
        self._sampler = self._sampler.select(kept_B)
        return kept_B

    def _take_slots(self, rows: Sequence[Row]) -> list[int]:
        empty = [slot for slot, row in enumerate(self.slots) if row is None]
        num_new = max(0, len(rows) - len(empty))
        taken = [*empty[: len(rows)], *range(len(self.slots), len(self.slots) + num_new)]
        self.slots += [None] * num_new
        for slot, row in zip(taken, rows, strict=True):
            self.slots[slot] = row
        self.num_rows += len(rows)
        return taken

    def _make_sampler(self) -> Sampler:
        device = self._runner.device
        temperatures = [0.0 if row is None else row.request.temperature for row in self.slots]
        top_ps = [1.0 if row is None else row.request.top_p for row in self.slots]
        return Sampler(
            torch.tensor(temperatures, device=device), torch.tensor(top_ps, dtype=torch.float64, device=device)
        )


def _with_rows(values: torch.Tensor, slots: torch.Tensor, new: torch.Tensor, *, num_rows: int) -> torch.Tensor:
    if num_rows > values.shape[0]:
        values = torch.cat([values, values.new_zeros((num_rows - values.shape[0], *values.shape[1:]))])
    values[slots] = new
    return values
