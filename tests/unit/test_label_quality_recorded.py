"""The statistics on verdicts that others recorded, against what is known of them and against other code."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats.contingency import crosstab
from statsmodels.stats.proportion import proportion_confint

from rlaif.core.agreement import (
    cohen_kappa,
    human_agreement,
    human_agreement_with_ties,
    human_kappa,
    people_kappa,
    single_order_agreement,
)
from rlaif.core.judged_pair import JudgedPair
from rlaif.core.position import order_inconsistency, shown_first_share

DATA = Path(os.environ.get("RLAIF_SHARED", "")) / "data"


def data_file(*parts: str) -> Path:
    path = DATA.joinpath(*parts)
    if not os.environ.get("RLAIF_SHARED") or not path.exists():
        pytest.skip(f"RLAIF_SHARED names no folder that holds data/{'/'.join(parts)}")
    return path


def llmbar(judge: str, strategy: str) -> list[JudgedPair]:
    """The recorded verdicts of one configuration on LLMBar's own subsets; `ab` and `ba` name the output preferred."""
    with gzip.open(data_file("llmbar", "judge_verdicts_both_orders.jsonl.gz"), "rt") as lines:
        rows = [json.loads(line) for line in lines]
    pairs = []
    for row in rows:
        if (row["judge"], row["strategy"]) != (judge, strategy) or not row["subset"].startswith("LLMBar/"):
            continue
        orders = [{"1": 1.0, "2": 0.0, None: None}[row[order]] for order in ("ab", "ba")]
        when_first, when_second = orders
        decided = when_first is not None and when_second is not None
        pairs.append(
            JudgedPair(
                pair=f"{row['subset']}/{row['idx']}",
                probability_first=(when_first + when_second) / 2 if decided else None,
                order_consistent=when_first == when_second,
                probability_when_first=when_first if decided else None,
                probability_when_second=when_second if decided else None,
                human_votes=(float(row["label"] == 1),),
                category=row["subset"],
            )
        )
    return pairs


@pytest.mark.parametrize(
    ("judge", "strategy", "accuracy", "inconsistency"),
    [
        ("GPT-4", "Vanilla_NoRules", 0.765, 0.088),
        ("GPT-4", "Vanilla", 0.845, 0.072),
        ("ChatGPT", "Vanilla_NoRules", 0.400, 0.389),
    ],
)
def test_accuracy_and_order_inconsistency_on_llmbar(
    judge: str, strategy: str, accuracy: float, inconsistency: float
) -> None:
    pairs = llmbar(judge, strategy)
    found, inconsistent = single_order_agreement(pairs), order_inconsistency(pairs)
    assert found.num_samples == inconsistent.num_samples == 419
    assert found.value == pytest.approx(accuracy, abs=0.0005)
    assert inconsistent.value == pytest.approx(inconsistency, abs=0.0005)
    expected = proportion_confint(round(inconsistent.value * 419), 419, method="wilson")
    assert (inconsistent.low, inconsistent.high) == pytest.approx(expected)


def test_both_orders_together_say_no_less_than_one_alone() -> None:
    pairs = llmbar("GPT-4", "Vanilla_NoRules")
    both, one = human_agreement(pairs), single_order_agreement(pairs)
    # Inconsistent pairs are ties of the two orders, and no longer count: 382 are left.
    assert both.num_samples == 419 - round(0.0883 * 419)
    assert both.value is not None
    assert one.value is not None
    assert both.value > one.value
    direction = shown_first_share(pairs)
    assert direction.num_samples == 37
    assert direction.value == pytest.approx(
        sum(pair.probability_when_first == 1.0 for pair in pairs if not pair.order_consistent) / 37
    )


def test_verdicts_that_are_missing_are_abstentions() -> None:
    with gzip.open(data_file("llmbar", "judge_verdicts_both_orders.jsonl.gz"), "rt") as lines:
        missing = {
            (row["judge"], row["strategy"])
            for row in map(json.loads, lines)
            if None in (row["ab"], row["ba"]) and row["subset"].startswith("LLMBar/")
        }
    judge, strategy = sorted(missing)[0]
    pairs = llmbar(judge, strategy)
    abstained = [pair for pair in pairs if pair.probability_first is None]
    assert abstained
    assert order_inconsistency(pairs).num_samples == len(pairs) - len(abstained)


def test_the_annotators_of_xstest_agree() -> None:
    answers = []
    for path in sorted(data_file("xstest", "completions").glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as lines:
            answers += [(row["annotation_1"][0], row["annotation_2"][0]) for row in csv.DictReader(lines)]
    found = cohen_kappa(answers)
    assert found.num_samples == 2250
    assert found.value == pytest.approx(0.9365, abs=0.00005)
    assert found.low is not None
    assert found.high is not None
    assert 0.91 < found.low < 0.9365 < found.high < 0.96


KEYS = ["question_id", "turn", "model_a", "model_b"]
VOTES = {"model_a": 1.0, "model_b": 0.0}


def read_mt_bench(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in data_file("mt_bench", name).read_text().splitlines()]


def in_one_order(row: dict[str, object]) -> tuple[tuple[object, ...], float]:
    """What was compared, models by name, and P(first preferred): kappa must not depend on who is named first."""
    question, turn, a, b = (row[key] for key in KEYS)
    vote = VOTES.get(str(row["winner"]), 0.5)
    return ((question, turn, a, b), vote) if str(a) < str(b) else ((question, turn, b, a), 1 - vote)


def mt_bench() -> list[JudgedPair]:
    """GPT-4's verdicts with people's votes; GPT-4 was asked in both orders, and what was inconsistent is a tie."""
    votes: dict[tuple[object, ...], list[float]] = defaultdict(list)
    for compared, vote in map(in_one_order, read_mt_bench("human.jsonl")):
        votes[compared].append(vote)
    return [
        JudgedPair(pair=repr(compared), probability_first=verdict, human_votes=tuple(votes[compared]))
        for compared, verdict in map(in_one_order, read_mt_bench("gpt4_pair.jsonl"))
    ]


def mt_bench_table() -> pd.DataFrame:
    """The same by pandas alone: one row for each person's vote beside GPT-4's, in one order of the models."""
    frames = []
    for name in ("human.jsonl", "gpt4_pair.jsonl"):
        frame = pd.read_json(data_file("mt_bench", name), lines=True)
        exchanged = frame["model_a"] > frame["model_b"]
        frame["winner"] = frame["winner"].where(frame["winner"].isin(["model_a", "model_b"]), "tie")
        turned = frame["winner"].map({"model_a": "model_b", "model_b": "model_a", "tie": "tie"})
        frame["winner"] = frame["winner"].where(~exchanged, turned)
        low, high = (
            frame["model_a"].where(~exchanged, frame["model_b"]),
            frame["model_b"].where(~exchanged, frame["model_a"]),
        )
        frames.append(frame.assign(model_a=low, model_b=high))
    people, gpt4 = frames
    return people.merge(gpt4, on=KEYS, suffixes=("_human", "_gpt4"))


def test_gpt4s_agreement_with_people_on_mt_bench_equals_another_computation() -> None:
    pairs, table = mt_bench(), mt_bench_table()
    _, counts = crosstab(table["winner_gpt4"], table["winner_human"], levels=(("model_a", "model_b", "tie"),) * 2)
    shares = counts / counts.sum()
    with_ties = human_agreement_with_ties(pairs)
    assert with_ties.value == pytest.approx(np.trace(shares), abs=1e-12)
    decided = counts[:2, :2]
    without_ties = human_agreement(pairs)
    assert without_ties.value == pytest.approx(np.trace(decided) / decided.sum(), abs=1e-12)
    # Published: 66 % with ties, 85 % without (arXiv 2306.05685, Table 5, first turn).
    assert 0.6 < np.trace(shares) < 0.7
    assert 0.8 < np.trace(decided) / decided.sum() < 0.9


def test_gpt4s_kappa_with_people_on_mt_bench_equals_another_computation() -> None:
    table = mt_bench_table()
    _, counts = crosstab(table["winner_gpt4"], table["winner_human"], levels=(("model_a", "model_b", "tie"),) * 2)
    shares = counts / counts.sum()
    expected = np.sum(shares.sum(axis=0) * shares.sum(axis=1))
    found = human_kappa(mt_bench())
    assert found.value == pytest.approx((np.trace(shares) - expected) / (1 - expected), abs=1e-12)
    assert found.num_samples == len(table.drop_duplicates(KEYS))


def test_the_kappa_of_mt_benchs_people_equals_another_computation() -> None:
    pairs = mt_bench()
    found = people_kappa(pairs)
    # Another way to P̄: every two votes on one pair, each pair of models weighing the same.
    voted = {pair.pair: pair.human_votes for pair in pairs if len(pair.human_votes) > 1}
    observed = np.mean([np.mean([a == b for a, b in itertools.combinations(votes, 2)]) for votes in voted.values()])
    shares = np.unique(np.concatenate([np.array(votes) for votes in voted.values()]), return_counts=True)[1]
    expected = np.sum((shares / shares.sum()) ** 2)
    assert found.value == pytest.approx((observed - expected) / (1 - expected), abs=1e-12)
    assert found.num_samples == len(voted)
