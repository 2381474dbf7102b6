"""Log-probabilities of answers by prefill alone, the shared prefix computed once.

Shapes: B rows, M tokens of the longest row, Q positions read, V vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from rlaif.engine.checks import check_choices
from rlaif.engine.hf.forward import ModelRunner, positions_of
from rlaif.engine.hf.worker import CancelledWorkError
from rlaif.engine.protocol import ChoiceLogprobs, ChoiceRequest, EngineWork
from rlaif.engine.tree import TokenTree, build_tree, pack_trees

# One list a tree, one tuple a query, one value a target.
TreeLogprobs = list[tuple[float, ...]]


@dataclass(frozen=True)
class ChoiceScorer:
    """Scores choices with one model; `packed` when its attention honours tree-shaped masks."""

    runner: ModelRunner
    context_length: int
    terminator: int | None
    max_batch_tokens: int
    packed: bool
    work: EngineWork = field(default_factory=EngineWork)
    """Counts what is scored."""

    def check(self, requests: Sequence[ChoiceRequest]) -> None:
        """Raises InvalidInputError for a prompt that does not fit or a request that asks nothing."""
        check_choices(requests, context_length=self.context_length)

    def score(self, requests: Sequence[ChoiceRequest], *, cancelled: threading.Event) -> list[ChoiceLogprobs]:
        """Log-probabilities of every choice after every suffix, in order."""
        trees = [build_tree(request, terminator=self.terminator) for request in requests]
        read: list[TreeLogprobs | None] = [None] * len(trees)
        packed = [index for index, tree in enumerate(trees) if self._can_pack(tree)]
        plain = [index for index, tree in enumerate(trees) if not self._can_pack(tree)]
        for indices, size, forward in (
            (packed, lambda tree: tree.num_tokens, self._forward_packed),
            (plain, lambda tree: tree.depth_tokens * len(tree.segments), self._forward_plain),
        ):
            for batch in _batches(indices, [size(tree) for tree in trees], self.max_batch_tokens):
                if cancelled.is_set():
                    raise CancelledWorkError
                self._count([trees[index] for index in batch])
                for index, values in zip(batch, forward([trees[index] for index in batch]), strict=True):
                    read[index] = values
        return [_collect(tree, values) for tree, values in zip(trees, read, strict=True) if values is not None]

    def _count(self, trees: Sequence[TokenTree]) -> None:
        for tree in trees:
            given = sum(len(tree.path(segment)) for segment in {query.segment for query in tree.queries})
            self.work.prompt_tokens += given
            self.work.computed_prompt_tokens += tree.num_tokens if self._can_pack(tree) else given

    def _can_pack(self, tree: TokenTree) -> bool:
        # A ready-made mask replaces the model's own, sliding window included.
        return self.packed and (self.runner.window is None or tree.depth_tokens <= self.runner.window)

    def _forward_packed(self, trees: Sequence[TokenTree]) -> list[TreeLogprobs]:
        runner = self.runner
        packed = pack_trees(trees, pad_id=runner.pad_id)
        visible_BMM = torch.from_numpy(packed.visible_BMM).to(runner.device)
        dtype = runner.activation_dtype
        mask_B1MM = torch.zeros(visible_BMM.shape, dtype=dtype, device=runner.device)
        mask_B1MM = mask_B1MM.masked_fill_(~visible_BMM, torch.finfo(dtype).min)[:, None]
        rows = [row for row, tree in enumerate(trees) for _ in tree.queries]
        columns = [
            packed.starts[row][query.segment] + query.offset for row, tree in enumerate(trees) for query in tree.queries
        ]
        with runner.precision():
            hidden_BMD = runner.model.base_model(
                input_ids=torch.from_numpy(packed.ids_BM).to(runner.device),
                position_ids=torch.from_numpy(packed.positions_BM).to(runner.device),
                attention_mask=mask_B1MM,
                use_cache=False,
            ).last_hidden_state
            logits_QV = runner.model.get_output_embeddings()(hidden_BMD[rows, columns])
        return _read(trees, logits_QV.float())

    def _forward_plain(self, trees: Sequence[TokenTree]) -> list[TreeLogprobs]:
        """Every path from the root on a row of its own."""
        runner = self.runner
        segments = [(tree, index) for tree in trees for index in sorted({query.segment for query in tree.queries})]
        paths = [tree.path(index) for tree, index in segments]
        num_logits = max(len(tree.segments[index].ids) for tree, index in segments)
        ids_BM, mask_BM = runner.left_padded(paths)
        logits_BKV, _ = runner.forward(ids_BM, mask_BM, positions_of(mask_BM), num_logits=num_logits)
        row_of = {(id(tree), index): row for row, (tree, index) in enumerate(segments)}
        rows = [row_of[id(tree), query.segment] for tree in trees for query in tree.queries]
        columns = [
            num_logits - len(tree.segments[query.segment].ids) + query.offset
            for tree in trees
            for query in tree.queries
        ]
        return _read(trees, logits_BKV[rows, columns])


def packing_error(runner: ModelRunner, *, vocabulary_size: int, context_length: int) -> tuple[float, float]:
    """(largest difference between the packed and the plain path, how far a leak between suffixes would move them).

    Compares log-probabilities on a small probe. Raises what the model raises when it takes no ready-made mask.
    """
    ids = [(7 * step + 3) % vocabulary_size for step in range(20)]
    prefix, suffixes = tuple(ids[:6]), (tuple(ids[6:9]), tuple(ids[9:14]), tuple(ids[14:16]))
    choices = tuple((token,) for token in sorted(set(ids[16:])))
    probes = [ChoiceRequest(prefix, suffixes, choices), ChoiceRequest(prefix[:4], suffixes[:1], choices)]
    leaked = [ChoiceRequest(prefix + suffixes[0] + suffixes[1], (suffixes[2],), choices)]

    def scored(requests: Sequence[ChoiceRequest], *, packed: bool) -> torch.Tensor:
        scorer = ChoiceScorer(runner, context_length, None, max_batch_tokens=4096, packed=packed)
        results = scorer.score(requests, cancelled=threading.Event())
        return torch.tensor([row for result in results for row in result.logprobs])

    plain = scored(probes, packed=False)
    error = (scored(probes, packed=True) - plain).abs().max()
    leak = (scored(leaked, packed=False)[0] - plain[2]).abs().max()
    return float(error), float(leak)


def _read(trees: Sequence[TokenTree], logits_QV: torch.Tensor) -> list[TreeLogprobs]:
    logprobs_QV = torch.log_softmax(logits_QV, dim=-1)
    queries = [query for tree in trees for query in tree.queries]
    rows = [row for row, query in enumerate(queries) for _ in query.targets]
    targets = [target for query in queries for target in query.targets]
    values = iter(logprobs_QV[rows, targets].tolist())
    return [[tuple(next(values) for _ in query.targets) for query in tree.queries] for tree in trees]


def _collect(tree: TokenTree, values: TreeLogprobs) -> ChoiceLogprobs:
    return ChoiceLogprobs(
        tuple(tuple(sum(values[query][target] for query, target in places) for places in row) for row in tree.cells)
    )


def _batches(indices: Sequence[int], sizes: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices sorted by size, in groups whose padded size is at most `max_tokens`; a larger one stands alone."""
    batch: list[int] = []
    for index in sorted(indices, key=lambda index: (sizes[index], index)):
        if batch and sizes[index] * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
