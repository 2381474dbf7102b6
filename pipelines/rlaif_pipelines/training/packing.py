"""Prefix sharing: what several continuations have in common is computed once, and short rows are put side by side.

A tree is a prefix and its branches: a labelled pair is a prompt with two, a group of completions one with G, a
conversation one with a single branch. Branches stand behind their prefix in one row; the attention mask keeps them
apart, and in every branch the positions go on from the prefix. A model that cannot take such rows gets plain ones, a
branch each, with the same places to read: callers see no difference.

Shape legend: B rows; T tokens of a row; S branches, tree by tree; N tokens asked about, branch by branch.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from rlaif.core.errors import InvalidInputError

LENGTH_STEP = 16
"""Rows are padded to a multiple of this: matrix libraries compile a kernel for every new shape."""

_LOG = logging.getLogger(__name__)

_KERNELS = ("sdpa", "eager")
_WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window", "local_attention", "window_size")
_KERNEL_SHARE = 0.5
"""How much of a matrix product's speed an attention kernel reaches."""
_LOOK_AHEAD = 64
"""Trees tried for the gaps of a pass before it is closed."""


@dataclass(frozen=True)
class Tree:
    """A prefix and what continues it, as token ids; the prefix may be empty."""

    prefix: Sequence[int]
    branches: Sequence[Sequence[int]]
    asked: Sequence[Sequence[bool]] | None = None
    """Which tokens of each branch a log-probability is wanted of; None: all. Nothing predicts a row's first token."""


@dataclass(frozen=True)
class Rows:
    """What a model is given for some trees, and where to read its answer; places count through all rows."""

    ids_BT: Tensor
    positions_BT: Tensor
    mask: Tensor
    """True where there is a token (BT: plain rows), or where one may attend to another (B1TT: shared prefixes)."""
    sources_N: Tensor
    """Places whose hidden states predict the tokens asked about."""
    targets_N: Tensor
    """The ids of those tokens."""
    branches_N: Tensor
    """The branch that each of them is of, ascending."""
    ends_S: Tensor
    """Each branch's last token that is not padding: where a reward model's head reads."""

    @property
    def num_branches(self) -> int:
        """S."""
        return len(self.ends_S)

    def to(self, device: torch.device) -> Rows:
        """The same on that device."""
        return Rows(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    @property
    def for_logprobs(self) -> tuple[Tensor, ...]:
        """What `PolicyLogprobs` takes."""
        return self.ids_BT, self.positions_BT, self.mask, self.sources_N, self.targets_N

    @property
    def for_rewards(self) -> tuple[Tensor, ...]:
        """What `RewardScores` takes."""
        return self.ids_BT, self.positions_BT, self.mask, self.ends_S


@dataclass(frozen=True)
class _Piece:
    """A tree's prefix with those of its branches that share a row."""

    members: tuple[int, ...]
    num_tokens: int


@dataclass(frozen=True)
class Layout:
    """How trees become rows for one model."""

    pad_id: int
    shares_prefixes: bool = True
    attention_tokens: float = float("inf")
    """Length of a row at which its attention costs as much as everything else."""

    def rows(self, trees: Sequence[Tree]) -> Rows:
        """One pass over the trees, filled in the order given."""
        pieces = [self._pieces(tree) for tree in trees]
        width = padded_length(max(piece.num_tokens for of_tree in pieces for piece in of_tree))
        drawing = _Drawing(trees, pad_id=self.pad_id, width=width)
        free: list[int] = []
        for number, of_tree in enumerate(pieces):
            for piece in of_tree:
                row = self._fit(free, piece, width=width)
                drawing.place(number, piece.members, row=row, column=width - free[row])
                free[row] -= self._taken(piece, width=width)
        return drawing.finish(len(free), shares_prefixes=self.shares_prefixes)

    def plan(self, trees: Sequence[Tree], *, max_tokens: int, num_processes: int = 1) -> list[list[int]]:
        """Positions of the trees of each pass, in the order in which they fill its rows.

        A pass holds at most `max_tokens`, padding included; a larger tree has one alone. The widest go first, and the
        gaps that they leave are filled with what fits. The number of passes is a multiple of `num_processes`: pass i is
        process i mod num_processes's, and all processes run the same number, which collective operations need.
        """
        if len(trees) < num_processes:
            raise InvalidInputError(f"{len(trees)} sequences cannot be spread over {num_processes} processes")
        pieces = [self._pieces(tree) for tree in trees]
        widest = [max(piece.num_tokens for piece in of_tree) for of_tree in pieces]
        waiting = sorted(range(len(trees)), key=lambda position: (-widest[position], position))
        passes: list[list[int]] = []
        while waiting:
            width = padded_length(widest[waiting[0]])
            free: list[int] = []
            taken: list[int] = []
            missed = 0
            for position in waiting:
                fitted = list(free)
                for piece in pieces[position]:
                    row = self._fit(fitted, piece, width=width)
                    fitted[row] -= self._taken(piece, width=width)
                if taken and len(fitted) * width > max_tokens:
                    missed += 1
                    if missed == _LOOK_AHEAD:
                        break
                    continue
                free = fitted
                taken.append(position)
            passes.append(taken)
            gone = set(taken)
            waiting = [position for position in waiting if position not in gone]
        return _spread(passes, num_processes=num_processes)

    def _pieces(self, tree: Tree) -> list[_Piece]:
        """The tree cut where sharing stops to pay: in a row of L tokens, each costs 1 + L / attention_tokens."""
        prefix, lengths = len(tree.prefix), [len(branch) for branch in tree.branches]
        if not self.shares_prefixes:
            return [_Piece((index,), prefix + length) for index, length in enumerate(lengths)]
        best: list[_Piece] = []
        lowest = float("inf")
        for number in range(1, len(lengths) + 1):
            cuts = [len(lengths) * index // number for index in range(number + 1)]
            pieces = [
                _Piece(tuple(range(start, stop)), prefix + sum(lengths[start:stop])) for start, stop in pairwise(cuts)
            ]
            cost = sum(piece.num_tokens * (1.0 + piece.num_tokens / self.attention_tokens) for piece in pieces)
            if cost < lowest:
                best, lowest = pieces, cost
        return best

    def _fit(self, free: list[int], piece: _Piece, *, width: int) -> int:
        """The first row with room for the piece, `free` being what rows have left; opens one where there is none."""
        needed = self._taken(piece, width=width)
        for row, left in enumerate(free):
            if needed <= left:
                return row
        free.append(width)
        return len(free) - 1

    def _taken(self, piece: _Piece, *, width: int) -> int:
        return piece.num_tokens if self.shares_prefixes else width


def padded_length(length: int) -> int:
    """The length a row of so many tokens is padded to."""
    return -(-length // LENGTH_STEP) * LENGTH_STEP


class _Drawing:
    """Rows while they are filled."""

    def __init__(self, trees: Sequence[Tree], *, pad_id: int, width: int) -> None:
        self._trees = trees
        self._pad_id = pad_id
        self._width = width
        starts = [0]
        for tree in trees:
            starts.append(starts[-1] + len(tree.branches))
        self._first_branch = starts
        self._segments: list[tuple[int, int, Sequence[int], int, int, int]] = []
        """Row, column, ids, first position, piece, branch within it (0: the prefix)."""
        self._num_pieces = 0
        self._sources: list[list[int]] = [[] for _ in range(starts[-1])]
        self._targets: list[list[int]] = [[] for _ in range(starts[-1])]
        self._ends = [0] * starts[-1]

    def place(self, number: int, members: Sequence[int], *, row: int, column: int) -> None:
        """Puts a tree's prefix and these of its branches into the row, from that column on."""
        tree = self._trees[number]
        self._num_pieces += 1
        depth, start = len(tree.prefix), row * self._width + column
        self._segments.append((row, column, tree.prefix, 0, self._num_pieces, 0))
        column += depth
        for order, member in enumerate(members, start=1):
            ids = tree.branches[member]
            self._segments.append((row, column, ids, depth, self._num_pieces, order))
            branch = self._first_branch[number] + member
            place = row * self._width + column
            # The first token of a branch is predicted by the last of its prefix, the others by the one before.
            sources = [start + depth - 1 if depth else -1, *range(place, place + len(ids) - 1)][: len(ids)]
            asked = tree.asked[member] if tree.asked is not None else [True] * len(ids)
            wanted = [index for index in range(len(ids)) if asked[index] and sources[index] >= 0]
            self._sources[branch] = [sources[index] for index in wanted]
            self._targets[branch] = [ids[index] for index in wanted]
            path = [*range(start, start + depth), *range(place, place + len(ids))]
            content = [spot for spot, token in zip(path, (*tree.prefix, *ids), strict=True) if token != self._pad_id]
            self._ends[branch] = (content or path)[-1]
            column += len(ids)

    def finish(self, num_rows: int, *, shares_prefixes: bool) -> Rows:
        """The tensors."""
        shape = (num_rows, self._width)
        ids_BT = torch.full(shape, self._pad_id, dtype=torch.long)
        positions_BT = torch.zeros(shape, dtype=torch.long)
        pieces_BT = torch.zeros(shape, dtype=torch.int32)
        branches_BT = torch.zeros(shape, dtype=torch.int32)
        for row, column, ids, position, piece, branch in self._segments:
            columns = slice(column, column + len(ids))
            ids_BT[row, columns] = torch.tensor(ids, dtype=torch.long)
            positions_BT[row, columns] = torch.arange(position, position + len(ids))
            pieces_BT[row, columns] = piece
            branches_BT[row, columns] = branch
        counts_S = torch.tensor([len(targets) for targets in self._targets])
        return Rows(
            ids_BT=ids_BT,
            positions_BT=positions_BT,
            mask=_tree_mask(pieces_BT, branches_BT) if shares_prefixes else pieces_BT > 0,
            sources_N=torch.tensor([place for places in self._sources for place in places], dtype=torch.long),
            targets_N=torch.tensor([token for tokens in self._targets for token in tokens], dtype=torch.long),
            branches_N=torch.arange(len(counts_S)).repeat_interleave(counts_S),
            ends_S=torch.tensor(self._ends),
        )


def _tree_mask(pieces_BT: Tensor, branches_BT: Tensor) -> Tensor:
    """mask_B1TT: a token sees its own piece's prefix and its own branch, up to itself; padding sees padding."""
    same_piece_BTT = pieces_BT[:, :, None] == pieces_BT[:, None, :]
    seen_BTT = (branches_BT[:, None, :] == 0) | (branches_BT[:, :, None] == branches_BT[:, None, :])
    width = pieces_BT.shape[1]
    causal_TT = torch.ones((width, width), dtype=torch.bool).tril()
    return (same_piece_BTT & seen_BTT & causal_TT).unsqueeze(1)


def _spread(passes: list[list[int]], *, num_processes: int) -> list[list[int]]:
    """The passes, some of them cut in two or put together, so that every process has the same number."""
    num_trees = sum(map(len, passes))
    wanted = -(-len(passes) // num_processes) * num_processes
    if wanted > num_trees:
        wanted -= num_processes
    while len(passes) < wanted:
        largest = max(range(len(passes)), key=lambda index: len(passes[index]))
        group = passes.pop(largest)
        passes[largest:largest] = [group[::2], group[1::2]]
    while len(passes) > wanted:
        last = passes.pop()
        passes[-1] = passes[-1] + last
    return passes


def model_output(model: Any, ids_BT: Tensor, positions_BT: Tensor, mask: Tensor) -> Any:
    """What a model, or its trunk, says of plain rows or of rows that share prefixes."""
    if mask.ndim == 2:
        return model(input_ids=ids_BT, attention_mask=mask.long(), use_cache=False)
    if model.config._attn_implementation != "sdpa":
        dtype = model.dtype
        mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
    return model(input_ids=ids_BT, attention_mask=mask, position_ids=positions_BT, use_cache=False)


def layout_for(model: Any, *, pad_id: int, share_prefixes: bool = True) -> Layout:
    """The layout of the model's rows. Whether prefixes can be shared is tried out: both ways must say the same."""
    layout = Layout(pad_id=pad_id, attention_tokens=_attention_tokens(model))
    if share_prefixes and _shares(model, layout):
        return layout
    if share_prefixes:
        _LOG.warning(
            "%s cannot share prefixes: every sequence is computed whole, with the same result",
            type(model).__name__,
        )
    return replace(layout, shares_prefixes=False)


def _attention_tokens(model: Any) -> float:
    """A token costs 2 operations a weight, and 4 a width of the heads for each token that it may attend to."""
    config = model.config.get_text_config()
    width = getattr(config, "hidden_size", None)
    num_layers = getattr(config, "num_hidden_layers", None)
    if not width or not num_layers:
        return float("inf")
    embedded = {id(part.weight) for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part}
    num_weights = sum(p.numel() for p in model.parameters() if id(p) not in embedded)
    return max(1.0, _KERNEL_SHARE * 2 * num_weights / num_layers / (4 * width))


def _shares(model: Any, layout: Layout) -> bool:
    """Whether the model takes a mask and positions of our own, and then says what it says of plain rows."""
    config, trunk = model.config.get_text_config(), model.base_model
    if not {"attention_mask", "position_ids"} <= inspect.signature(trunk.forward).parameters.keys():
        return False
    if trunk.config._attn_implementation not in _KERNELS:
        return False
    # A window counts columns of a row, which are no longer distances; short rows would not show it.
    kinds = {*(getattr(config, "layer_types", None) or ()), *(getattr(config, "attention_layers", None) or ())}
    if any(getattr(config, name, None) for name in _WINDOWS) or not kinds <= {"full_attention", "global"}:
        return False
    return _agrees(trunk, layout, vocabulary=config.vocab_size)


@torch.no_grad()
def _agrees(trunk: Any, layout: Layout, *, vocabulary: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (48,), generator=generator).tolist()
    trees = [Tree(ids[:9], (ids[9:20], ids[20:28])), Tree(ids[28:33], (ids[33:40], ids[40:48]))]
    severed = [Tree((), tree.branches) for tree in trees]
    was_training = trunk.training
    trunk.eval()
    try:
        shared = _last_states(trunk, replace(layout, attention_tokens=float("inf")).rows(trees))
        plain = _last_states(trunk, replace(layout, shares_prefixes=False).rows(trees))
        without = _last_states(trunk, replace(layout, shares_prefixes=False).rows(severed))
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError, AssertionError):
        return False
    finally:
        trunk.train(was_training)
    error, size, effect = (float(states.float().norm()) for states in (shared - plain, plain, without - plain))
    tolerance = 1e-4 if plain.dtype == torch.float32 else 3e-2
    # Small against what the prefix does at all too: a model whose weights hardly attend would pass with any mask.
    return error <= tolerance * size and error < 0.1 * effect


def _last_states(trunk: Any, rows: Rows) -> Tensor:
    device = next(trunk.parameters()).device
    inputs = (tensor.to(device) for tensor in (rows.ids_BT, rows.positions_BT, rows.mask))
    states_BTD: Tensor = model_output(trunk, *inputs).last_hidden_state
    return states_BTD.flatten(0, 1)[rows.ends_S.to(device)]
