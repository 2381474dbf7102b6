"""Shared prefixes: the same numbers as sequences computed whole, for any trees, and never for a model that cannot."""

# ruff: noqa: N806 - tensors carry shape suffixes

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
)

from model_fixtures import make_llama
from rlaif.core.errors import InvalidInputError
from rlaif_pipelines.training.losses import CHUNK_LOGITS, sum_by_sequence
from rlaif_pipelines.training.model import PolicyLogprobs, RewardScores
from rlaif_pipelines.training.packing import Layout, Rows, Tree, layout_for
from tensor_sizes import LargestTensor

VOCABULARY = 97
SMALL = {"n_embd": 32, "n_layer": 2, "n_head": 4}


def llama(**config: Any) -> Any:
    return make_llama(vocabulary_size=VOCABULARY, **config)


def gpt2() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=256, initializer_range=0.2, eos_token_id=3, bos_token_id=3, **SMALL
        )
    )


def trees(seed: int) -> list[Tree]:
    """Pairs, a group of five, a conversation of one branch, one without a prefix, and one longer than the others."""
    rng = random.Random(seed)

    def tokens(low: int, high: int) -> list[int]:
        return [rng.randrange(4, VOCABULARY) for _ in range(rng.randint(low, high))]

    pairs = [Tree(tokens(1, 12), [tokens(1, 20), tokens(1, 20)]) for _ in range(5)]
    group = Tree(tokens(5, 9), [tokens(2, 9) for _ in range(5)])
    turns = tokens(9, 9)
    conversation = Tree(tokens(2, 2), [turns], asked=[[index % 3 == 0 for index in range(len(turns))]])
    return [*pairs, group, conversation, Tree((), [tokens(4, 6)]), Tree(tokens(30, 30), [tokens(30, 30)])]


def plain(layout: Layout) -> Layout:
    return Layout(pad_id=layout.pad_id, shares_prefixes=False)


def gradients(model: Any) -> Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


@pytest.mark.parametrize("attention_tokens", [20.0, float("inf")])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_log_probabilities_and_gradients_are_those_of_whole_sequences(
    make: Callable[[], Any], attention: str, attention_tokens: float
) -> None:
    model = make().eval()
    model.set_attn_implementation(attention)
    assert layout_for(model, pad_id=0).shares_prefixes
    layout = Layout(pad_id=0, attention_tokens=attention_tokens)
    policy = PolicyLogprobs(model)
    answers = []
    for each in (layout, plain(layout)):
        rows = each.rows(trees(1))
        logprobs_N, entropy_N = policy(*rows.for_logprobs)
        weights_N = torch.linspace(-1.0, 1.0, len(logprobs_N))
        (logprobs_N * weights_N).sum().backward()
        answers.append((logprobs_N.detach(), entropy_N, rows.branches_N, gradients(model)))
    (ours, our_entropy, our_branches, our_gradient), (whole, entropy, branches, gradient) = answers
    assert torch.equal(our_branches, branches)
    torch.testing.assert_close(ours, whole, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(our_entropy, entropy, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(our_gradient, gradient, atol=1e-4, rtol=1e-4)


def test_log_probabilities_are_those_of_the_model_itself() -> None:
    model, found = llama().eval(), trees(2)
    logprobs_N, _ = PolicyLogprobs(model)(*Layout(pad_id=0).rows(found).for_logprobs)
    expected = []
    with torch.no_grad():
        for tree in found:
            for number, branch in enumerate(tree.branches):
                ids = torch.tensor([[*tree.prefix, *branch]])
                logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(dim=-1)
                of_tokens = logprobs.gather(1, ids[0, 1:, None])[:, 0][max(0, len(tree.prefix) - 1) :]
                asked = torch.tensor(tree.asked[number] if tree.asked else [True] * len(branch))
                expected.append(of_tokens[asked[-len(of_tokens) :]])
    torch.testing.assert_close(logprobs_N.detach(), torch.cat(expected), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("pad_id", [0, 50])
def test_rewards_are_those_of_the_classifier_itself(pad_id: int) -> None:
    """Also where the padding token occurs in a text: then the token before it is read, as transformers does."""
    torch.manual_seed(0)
    config = llama().config
    config.num_labels, config.pad_token_id = 1, pad_id
    model = LlamaForSequenceClassification(config).eval()
    assert layout_for(model, pad_id=pad_id).shares_prefixes
    pairs = [Tree([5, 6, 7], [[8, 9, 50], [10]]), Tree([5, 50], [[50], [11, 12, 13]])]
    values_SH = RewardScores(model)(*Layout(pad_id=pad_id).rows(pairs).for_rewards)
    sequences = [[*tree.prefix, *branch] for tree in pairs for branch in tree.branches]
    expected = [model(input_ids=torch.tensor([ids])).logits[0] for ids in sequences]
    torch.testing.assert_close(values_SH, torch.stack(expected), atol=2e-5, rtol=1e-5)


def test_a_prefix_is_computed_once() -> None:
    tree = Tree(range(4, 36), [[40] * 8, [41] * 8])
    assert Layout(pad_id=0).rows([tree]).ids_BT.shape == (1, 48)
    assert Layout(pad_id=0, shares_prefixes=False).rows([tree]).ids_BT.shape == (2, 48)


def test_no_token_sees_another_tree_or_branch() -> None:
    rows = Layout(pad_id=0).rows([Tree([4, 5], [[6, 7], [8]]), Tree([9], [[10, 11]])])
    seen = {
        query: sorted(rows.ids_BT[0][rows.mask[0, 0, column]].tolist())
        for column, query in enumerate(rows.ids_BT[0].tolist())
        if query
    }
    assert seen == {
        4: [4],
        5: [4, 5],
        6: [4, 5, 6],
        7: [4, 5, 6, 7],
        8: [4, 5, 8],
        9: [9],
        10: [9, 10],
        11: [9, 10, 11],
    }
    assert rows.positions_BT[0, :8].tolist() == [0, 1, 2, 3, 2, 0, 1, 2]
    assert rows.branches_N.tolist() == [0, 0, 1, 2, 2]
    assert rows.sources_N.tolist() == [1, 2, 1, 5, 6]
    assert rows.targets_N.tolist() == [6, 7, 8, 10, 11]
    assert rows.ends_S.tolist() == [3, 4, 7]


def test_long_branches_do_not_share_where_attention_would_cost_more() -> None:
    wide = Tree([1], [[2] * 40, [3] * 40])
    assert Layout(pad_id=0, attention_tokens=1e9).rows([wide]).ids_BT.shape == (1, 96)
    assert Layout(pad_id=0, attention_tokens=100.0).rows([wide]).ids_BT.shape == (2, 48)


@pytest.mark.parametrize("shares_prefixes", [True, False])
def test_a_plan_holds_every_tree_once_and_keeps_to_its_size(shares_prefixes: bool) -> None:
    rng = random.Random(0)
    found = [Tree([5] * rng.randint(1, 60), [[6] * rng.randint(1, 60), [7] * rng.randint(1, 60)]) for _ in range(40)]
    layout = Layout(pad_id=0, shares_prefixes=shares_prefixes, attention_tokens=500.0)
    passes = layout.plan(found, max_tokens=512)
    assert sorted(position for group in passes for position in group) == list(range(40))
    sizes = [layout.rows([found[position] for position in group]).ids_BT.numel() for group in passes]
    assert max(sizes) <= 512
    num_tokens = sum(len(tree.prefix) + sum(map(len, tree.branches)) for tree in found)
    assert not shares_prefixes or sum(sizes) < 1.15 * num_tokens


def test_a_tree_larger_than_a_pass_runs_alone() -> None:
    found = [Tree([5] * 100, [[6] * 100]), Tree([5], [[6]])]
    assert Layout(pad_id=0).plan(found, max_tokens=32) == [[0], [1]]


@pytest.mark.parametrize(("num_trees", "num_processes"), [(9, 2), (9, 4), (3, 2), (5, 4), (4, 4)])
def test_every_process_runs_the_same_number_of_passes(num_trees: int, num_processes: int) -> None:
    found = [Tree([5] * 30, [[6] * 30]) for _ in range(num_trees)]
    for max_tokens in (16, 256, 100_000):
        passes = Layout(pad_id=0).plan(found, max_tokens=max_tokens, num_processes=num_processes)
        assert len(passes) % num_processes == 0
        assert all(passes)
        assert sorted(position for group in passes for position in group) == list(range(num_trees))


def test_fewer_trees_than_processes_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="1 sequences cannot be spread over 2 processes"):
        Layout(pad_id=0).plan([Tree([5], [[6]])], max_tokens=64, num_processes=2)


def mistral() -> Any:
    config = MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=16,
    )
    return MistralForCausalLM(config)


def gpt_neo() -> Any:
    config = GPTNeoConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]
    )
    return GPTNeoForCausalLM(config)


def bloom() -> Any:
    return BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4))


@pytest.mark.parametrize("make", [mistral, gpt_neo, bloom])
def test_a_model_that_cannot_share_prefixes_gets_plain_rows(make: Callable[[], Any]) -> None:
    """A window, local layers, positions that are not given."""
    torch.manual_seed(0)
    model = make().eval()
    layout = layout_for(model, pad_id=0)
    assert not layout.shares_prefixes
    rows = layout.rows(trees(3))
    assert rows.mask.ndim == 2
    sums_S = branch_sums(PolicyLogprobs(model), rows)
    alone = [branch_sums(PolicyLogprobs(model), layout.rows([tree])) for tree in trees(3)]
    torch.testing.assert_close(sums_S, torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_a_model_that_says_something_else_of_shared_prefixes_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama().eval()
    inner = model.model.forward

    def forgets_the_mask(
        input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, **more: Any
    ) -> Any:
        return inner(input_ids=input_ids, attention_mask=None, position_ids=position_ids, **more)

    monkeypatch.setattr(model.model, "forward", forgets_the_mask)
    assert not layout_for(model, pad_id=0).shares_prefixes


@pytest.mark.parametrize(
    "tree",
    [
        Tree([5] * 32, [[6] * 512, [7] * 512]),
        Tree([5] * 32, [[6] * 64] * 16),
        Tree((), [[6] * 2048], asked=[[index % 2 == 0 for index in range(2048)]]),
    ],
    ids=["pair", "group", "conversation"],
)
def test_no_matrix_of_all_tokens_by_the_vocabulary_is_made(tree: Tree) -> None:
    vocabulary = 2**15
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    model = make_llama(vocabulary_size=vocabulary, num_attention_heads=1, num_key_value_heads=1, **small)
    policy, rows = PolicyLogprobs(model), Layout(pad_id=0).rows([tree])
    assert len(rows.targets_N) * vocabulary > 1.9 * CHUNK_LOGITS
    with LargestTensor() as largest:
        logprobs_N, _ = policy(*rows.for_logprobs)
        logprobs_N.sum().backward()
    assert largest.num_elements <= CHUNK_LOGITS


def test_sharing_can_be_turned_off() -> None:
    assert not layout_for(llama(), pad_id=0, share_prefixes=False).shares_prefixes


def test_gradient_checkpointing_and_bfloat16_take_shared_prefixes() -> None:
    model = llama().train()
    found = trees(4)
    layout = Layout(pad_id=0)
    whole = branch_sums(PolicyLogprobs(model), layout.rows(found))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    sums_S = branch_sums(PolicyLogprobs(model), layout.rows(found), backward=True)
    torch.testing.assert_close(sums_S, whole)
    autocast = branch_sums(PolicyLogprobs(model, autocast=True), layout.rows(found), backward=True)
    torch.testing.assert_close(autocast, whole, atol=0.5, rtol=0.05)
    half = llama().bfloat16()
    assert layout_for(half, pad_id=0).shares_prefixes
    torch.testing.assert_close(branch_sums(PolicyLogprobs(half), layout.rows(found)), whole, atol=1.0, rtol=0.1)


def branch_sums(policy: PolicyLogprobs, rows: Rows, *, backward: bool = False) -> Tensor:
    logprobs_N, _ = policy(*rows.for_logprobs)
    sums_S = sum_by_sequence(logprobs_N, sequence_N=rows.branches_N, num_sequences=rows.num_branches)
    if backward:
        sums_S.sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in policy.parameters())
    return sums_S.detach()
