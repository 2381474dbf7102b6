"""Token trees: what is packed, what sees what, and when packing is refused."""

from __future__ import annotations

import numpy as np

from model_fixtures import make_llama
from rlaif.engine.hf.choices import packing_error
from rlaif.engine.hf.forward import ModelRunner
from rlaif.engine.protocol import ChoiceRequest
from rlaif.engine.tree import build_tree, pack_trees


def test_single_token_choices_need_no_tokens_of_their_own() -> None:
    tree = build_tree(ChoiceRequest((1, 2), ((3,), (4, 5)), ((8,), (9,))), terminator=7)
    assert [segment.ids for segment in tree.segments] == [(1, 2), (3,), (4, 5)]
    assert [(query.segment, query.offset, query.targets) for query in tree.queries] == [
        (1, 0, (8, 9)),
        (2, 1, (8, 9)),
    ]


def test_longer_choices_become_branches_with_a_terminator() -> None:
    tree = build_tree(ChoiceRequest((1,), ((3,),), ((8,), (8, 9))), terminator=7)
    assert [(segment.ids, segment.parent) for segment in tree.segments] == [
        ((1,), -1),
        ((3,), 0),
        ((8,), 1),
        ((8, 9), 1),
    ]
    assert tree.path(3) == (1, 3, 8, 9)
    read = [[tree.queries[query].targets[target] for query, target in places] for places in tree.cells[0]]
    assert read == [[8, 7], [8, 9, 7]]


def test_suffixes_see_the_prefix_and_themselves_but_not_each_other() -> None:
    tree = build_tree(ChoiceRequest((1, 2), ((3, 4), (5,)), ((8,), (9,))), terminator=None)
    small = build_tree(ChoiceRequest((1,), ((3,),), ((8,), (9,))), terminator=None)
    packed = pack_trees([tree, small], pad_id=0)
    assert packed.ids_BM.tolist() == [[1, 2, 3, 4, 5], [1, 3, 0, 0, 0]]
    assert packed.positions_BM.tolist() == [[0, 1, 2, 3, 2], [0, 1, 0, 0, 0]]
    assert packed.starts == [[0, 2, 4], [0, 1]]
    expected = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert packed.visible_BMM[0].astype(int).tolist() == expected
    assert np.all(packed.visible_BMM.any(axis=-1))


def test_the_probe_tells_an_architecture_that_honours_the_mask_from_one_that_does_not() -> None:
    model = make_llama(vocabulary_size=50).eval()
    runner = ModelRunner(model, autocast=False, pad_id=0)
    error, leak = packing_error(runner, vocabulary_size=50, context_length=256)
    assert error < 1e-4
    assert leak > 1e-2

    inner = model.model.forward

    def ignoring(**inputs: object) -> object:
        mask = inputs.pop("attention_mask")
        return inner(**inputs, attention_mask=mask if getattr(mask, "ndim", 2) == 2 else None)

    model.model.forward = ignoring
    error, _ = packing_error(runner, vocabulary_size=50, context_length=256)
    assert error > 1e-2
