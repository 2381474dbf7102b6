"""Held-out figures of the playground's models, all by the gold evaluator: accuracy, order bias, ranking by score."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from rlaif.playground.answers import compose, sample_kind
from rlaif.playground.gold import GoldScore, evaluate, prefers, prefers_by
from rlaif.playground.world import CATEGORIES, Prompt, evaluation_prompts, prompts_of
from rlaif_pipelines.playground.held_out_writing import writing_figures
from rlaif_pipelines.playground.inference import expected_scores, probabilities_first, sample_texts
from rlaif_pipelines.playground.judge_examples import JudgePrompts
from rlaif_pipelines.playground.principles import DIMENSIONS, HELD_OUT_WORDINGS, TRAINED_WORDINGS, Dimension

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

REFERENCE_WEIGHTS: Final[dict[Dimension, float]] = {
    "harmless": 6.0,
    "helpful": 2.0,
    "honest": 1.0,
    "brief": 0.5,
    "polite": 1.5,
}
"""Weights of the shipped constitution, for the one figure that needs weights."""

_SEED: Final = 4242

Pair = tuple[Prompt, str, str]
Figures = dict[str, Any]


def policy_figures(texts: Sequence[tuple[Prompt, str]]) -> Figures:
    """How a policy behaves on held-out prompts; means over categories where categories are mixed."""
    scored = [(prompt, evaluate(prompt.text, text)) for prompt, text in texts]
    harmful = [score for prompt, score in scored if prompt.category == "harmful"]
    harmless = [score for prompt, score in scored if prompt.category != "harmful"]
    return {
        "num_prompts": len(scored),
        "num_harmful_prompts": len(harmful),
        "harmful_compliance": _rounded(fmean(score.harmful_compliance for score in harmful)),
        "over_refusal": _rounded(fmean(score.over_refusal for score in harmless)),
        "mean_words": _rounded(_category_mean(scored, lambda score: float(score.num_words))),
        "garbage": _rounded(_category_mean(scored, lambda score: score.garbage)),
        "gold": _rounded(_category_mean(scored, lambda score: score.overall)),
    }


def judge_figures(
    judge: LlamaForCausalLM,
    policy: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    num_pairs: int,
    num_sampled: int,
    num_writings: int,
) -> Figures:
    """Accuracy on composed pairs, how well scores rank composed and sampled answers, and what revisions gain."""
    prompts = JudgePrompts(tokenizer)
    composed = composed_pairs(num_pairs)
    sampled = sampled_pairs(policy, tokenizer, num_per_category=num_sampled)
    trained = {name: TRAINED_WORDINGS[name][0] for name in DIMENSIONS}
    unseen = {name: HELD_OUT_WORDINGS[name][0] for name in DIMENSIONS}
    return {
        "num_pairs": num_pairs,
        "compare": compare_figures(judge, prompts, composed, trained),
        "compare_unseen_wording": compare_figures(judge, prompts, composed, unseen),
        "compare_policy_samples": compare_figures(judge, prompts, sampled, trained),
        "score": score_figures(judge, prompts, composed, trained),
        "score_unseen_wording": score_figures(judge, prompts, composed, unseen),
        "score_policy_samples": score_figures(judge, prompts, sampled, trained),
        "writing": writing_figures(
            judge,
            tokenizer,
            number=num_writings,
            trained=trained,
            unseen=unseen,
            sampled=[(prompt, first) for prompt, first, _ in sampled],
        ),
    }


def headlines(judge: Figures) -> list[str]:
    """The judge's figures that decide whether it may be shipped, a line each."""
    lines = [
        f"{name}: accuracy {found['accuracy']}, position bias {found['position_bias']}"
        for name, found in judge["compare"].items()
    ]
    for name in ("all_principles", "one_principle"):
        found = judge["writing"][name]
        win = found["win_rate"]
        lines.append(
            f"revisions of bad replies, {name}: better {win['value']} ({win['low']} to {win['high']}, "
            f"n={found['num_cases']}), unchanged {found['unchanged']}, "
            f"gravest fault named {found['names_gravest_fault']}"
        )
    return lines


def composed_pairs(number: int, *, seed: int = _SEED) -> list[Pair]:
    """Pairs of composed answers to held-out prompts, categories in turn."""
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    pools = {category: prompts_of("held_out", category=category) for category in CATEGORIES}
    pairs = []
    for index in range(number):
        category = CATEGORIES[index % len(CATEGORIES)]
        prompt = rng.choice(pools[category])
        first, second = (compose(rng, prompt, sample_kind(rng, category)).text for _ in range(2))
        pairs.append((prompt, first, second))
    return pairs


def sampled_pairs(
    policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, num_per_category: int, seed: int = _SEED
) -> list[Pair]:
    """Two fresh samples of the policy to held-out prompts of every category."""
    chosen = evaluation_prompts(num_harmful=num_per_category, num_other=num_per_category)
    first = sample_texts(policy, tokenizer, chosen, seed=seed)
    second = sample_texts(policy, tokenizer, chosen, seed=seed + 1)
    return list(zip(chosen, first, second, strict=True))


def compare_figures(
    judge: LlamaForCausalLM, prompts: JudgePrompts, pairs: Sequence[Pair], wordings: Mapping[Dimension, str]
) -> Figures:
    """Per principle: accuracy of both orders averaged and of one, order consistency, bias to the first place."""
    texts = [wordings[name] for name in DIMENSIONS]
    forward = probabilities_first(judge, prompts, pairs, texts)
    turned = [(prompt, second, first) for prompt, first, second in pairs]
    backward = probabilities_first(judge, prompts, turned, texts)
    gold = [(evaluate(prompt.text, first), evaluate(prompt.text, second)) for prompt, first, second in pairs]
    figures: Figures = {}
    for column, name in enumerate(DIMENSIONS):
        ahead = [row[column] for row in forward]
        behind = [row[column] for row in backward]
        averaged = [(a + 1.0 - b) / 2 for a, b in zip(ahead, behind, strict=True)]
        truth = [prefers_by(name, first, second) for first, second in gold]
        figures[name] = {
            "accuracy": _accuracy(averaged, truth),
            "accuracy_one_order": _accuracy(ahead, truth),
            "order_consistency": _share(
                [(a > 0.5) == (b < 0.5) for a, b, t in zip(ahead, behind, truth, strict=True) if t != 0.5]
            ),
            "position_bias": _rounded((fmean(ahead) + fmean(behind)) / 2 - 0.5),
            "num_decided": sum(t != 0.5 for t in truth),
            "accuracy_by_category": _by_category(pairs, averaged, truth),
        }
    return figures


def score_figures(
    judge: LlamaForCausalLM, prompts: JudgePrompts, pairs: Sequence[Pair], wordings: Mapping[Dimension, str]
) -> Figures:
    """How often the reply with the higher expected score is the better by gold, per principle and weighted."""
    texts = [wordings[name] for name in DIMENSIONS]
    first = expected_scores(judge, prompts, [(prompt, reply) for prompt, reply, _ in pairs], texts)
    second = expected_scores(judge, prompts, [(prompt, reply) for prompt, _, reply in pairs], texts)
    gold = [(evaluate(prompt.text, one), evaluate(prompt.text, two)) for prompt, one, two in pairs]
    figures: Figures = {}
    for column, name in enumerate(DIMENSIONS):
        leads = [0.5 + a[column] - b[column] for a, b in zip(first, second, strict=True)]
        truth = [prefers_by(name, one, two) for one, two in gold]
        figures[name] = {"accuracy": _accuracy(leads, truth), "accuracy_by_category": _by_category(pairs, leads, truth)}
    weights = [REFERENCE_WEIGHTS[name] for name in DIMENSIONS]
    leads = [
        0.5 + sum(w * (a - b) for w, a, b in zip(weights, one, two, strict=True))
        for one, two in zip(first, second, strict=True)
    ]
    truth = [prefers(one, two) for one, two in gold]
    figures["weighted"] = {
        "accuracy": _accuracy(leads, truth),
        "accuracy_by_category": _by_category(pairs, leads, truth),
    }
    return figures


def _by_category(pairs: Sequence[Pair], chances: Sequence[float], truth: Sequence[float]) -> dict[str, float | None]:
    grouped: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for (prompt, _, _), chance, true in zip(pairs, chances, truth, strict=True):
        grouped[prompt.category].append((chance, true))
    return {name: _accuracy(*zip(*grouped[name], strict=True)) for name in CATEGORIES if grouped[name]}


def _accuracy(chances: Sequence[float], truth: Sequence[float]) -> float | None:
    """Share of decided pairs called right; none if no pair is decided."""
    return _share([(chance > 0.5) == (true > 0.5) for chance, true in zip(chances, truth, strict=True) if true != 0.5])


def _share(facts: Sequence[bool]) -> float | None:
    return _rounded(fmean(facts)) if facts else None


def _category_mean(scored: Sequence[tuple[Prompt, GoldScore]], value: Any) -> float:
    means = []
    for category in CATEGORIES:
        values = [value(score) for prompt, score in scored if prompt.category == category]
        if values:
            means.append(fmean(values))
    return fmean(means)


def _rounded(value: float) -> float:
    return round(value, 4)
