"""Token trees: what several continuations share is computed once.

A request becomes segments of tokens, each after its parent; a token sees its ancestors and what comes before it in
its own segment. Shapes: B trees, M tokens of the longest tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlaif.engine.protocol import ChoiceRequest, TokenIds


@dataclass(frozen=True)
class Segment:
    """Tokens that follow the segment `parent`; the root has parent -1."""

    ids: TokenIds
    parent: int


@dataclass(frozen=True)
class Query:
    """Which log-probabilities to read at position `offset` of a segment."""

    segment: int
    offset: int
    targets: TokenIds


@dataclass(frozen=True)
class TokenTree:
    """Segments, root first, parents before children. `cells[s][c]` are the (query, target) places a choice sums."""

    segments: tuple[Segment, ...]
    queries: tuple[Query, ...]
    cells: tuple[tuple[tuple[tuple[int, int], ...], ...], ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of all segments."""
        return sum(len(segment.ids) for segment in self.segments)

    def path(self, segment: int) -> TokenIds:
        """Ids from the root through `segment`."""
        parent = self.segments[segment].parent
        return (self.path(parent) if parent >= 0 else ()) + self.segments[segment].ids

    @property
    def depth_tokens(self) -> int:
        """Tokens of the longest path."""
        return max(len(self.path(index)) for index in range(len(self.segments)))


def build_tree(request: ChoiceRequest, *, terminator: int | None) -> TokenTree:
    """The request as a tree.

    Distinct one-token choices are read off one position. Longer ones become branches that end in `terminator`
    (if given), because one may begin another, as "1" begins "10".
    """
    segments = [Segment(request.prefix_ids, -1)]
    queries: list[Query] = []
    cells: list[tuple[tuple[tuple[int, int], ...], ...]] = []
    single = all(len(choice) == 1 for choice in request.choices) and len(set(request.choices)) == len(request.choices)
    for suffix in request.suffixes:
        at = len(segments)
        segments.append(Segment(suffix, 0))
        if single:
            queries.append(Query(at, len(suffix) - 1, tuple(choice[0] for choice in request.choices)))
            cells.append(tuple(((len(queries) - 1, column),) for column in range(len(request.choices))))
            continue
        first_query = len(queries)
        queries.append(Query(at, len(suffix) - 1, tuple(choice[0] for choice in request.choices)))
        row = []
        for column, choice in enumerate(request.choices):
            places = [(first_query, column)]
            following = choice[1:] if terminator is None else (*choice[1:], terminator)
            branch = choice if terminator is not None else choice[:-1]
            if branch:
                segments.append(Segment(branch, at))
            for offset, target in enumerate(following):
                queries.append(Query(len(segments) - 1, offset, (target,)))
                places.append((len(queries) - 1, 0))
            row.append(tuple(places))
        cells.append(tuple(row))
    return TokenTree(tuple(segments), tuple(queries), tuple(cells))


@dataclass(frozen=True)
class PackedTrees:
    """Trees side by side, one a row, padded on the right. `starts[b][segment]` is the segment's first column."""

    ids_BM: npt.NDArray[np.int64]
    positions_BM: npt.NDArray[np.int64]
    visible_BMM: npt.NDArray[np.bool_]
    starts: list[list[int]]


def pack_trees(trees: Sequence[TokenTree], *, pad_id: int) -> PackedTrees:
    """Every tree as one row whose attention mask is its shape."""
    num_columns = max(tree.num_tokens for tree in trees)
    ids_BM = np.full((len(trees), num_columns), pad_id, dtype=np.int64)
    positions_BM = np.zeros((len(trees), num_columns), dtype=np.int64)
    visible_BMM = np.zeros((len(trees), num_columns, num_columns), dtype=np.bool_)
    causal_MM = np.tri(num_columns, dtype=np.bool_)
    all_starts = []
    for row, tree in enumerate(trees):
        starts: list[int] = []
        depths: list[int] = []
        column = 0
        for segment in tree.segments:
            length = len(segment.ids)
            end = column + length
            depth = depths[segment.parent] + len(tree.segments[segment.parent].ids) if segment.parent >= 0 else 0
            ids_BM[row, column:end] = segment.ids
            positions_BM[row, column:end] = np.arange(depth, depth + length)
            visible_BMM[row, column:end, column:end] = causal_MM[:length, :length]
            ancestor = segment.parent
            while ancestor >= 0:
                start = starts[ancestor]
                visible_BMM[row, column:end, start : start + len(tree.segments[ancestor].ids)] = True
                ancestor = tree.segments[ancestor].parent
            starts.append(column)
            depths.append(depth)
            column = end
        # A row of the softmax that sees nothing would be NaN.
        visible_BMM[row, column:, 0] = True
        all_starts.append(starts)
    return PackedTrees(ids_BM, positions_BM, visible_BMM, all_starts)
