"""Labels from files: what is read, what is left out and counted, what is refused and in which words."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from rlaif.core.errors import InvalidInputError
from rlaif_pipelines.training.config.dpo import DpoTraining
from rlaif_pipelines.training.config.pairs import LabelFile
from rlaif_pipelines.training.config.reward import RewardTraining
from rlaif_pipelines.training.data import split_by_prompt
from rlaif_pipelines.training.labels import LabelledPair, Labels, read_labels
from training_fakes import label, write_lines

NAN, INF = float("nan"), float("inf")
TURN = [{"role": "user", "content": "How do I boil water?"}]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def read(path: Path, *, allow_one_class: bool = False, **file: Any) -> Labels:
    return read_labels([LabelFile(path=path, **file)], allow_one_class=allow_one_class)


def read_rows(tmp_path: Path, *rows: dict[str, Any], **file: Any) -> Labels:
    return read(write_lines(tmp_path / "labels.jsonl", rows), **file)


def said_of(pair: LabelledPair, text: str) -> float:
    """P(this text preferred)."""
    return pair.probability_first if pair.first == text else 1.0 - pair.probability_first


def test_what_says_nothing_is_counted_and_left_out(tmp_path: Path) -> None:
    rows = [label(0), label(1, probability_first=None), label(2, weight=0), label(3, weight=2.5)]
    labels = read_rows(tmp_path, *rows, label(4, first="Same.", second="Same."))
    assert [pair.weight for pair in labels.pairs] == [1.0, 2.5]
    assert {name: labels.total(name) for name in ("num_abstained", "num_weightless", "num_identical")} == {
        "num_abstained": 1,
        "num_weightless": 1,
        "num_identical": 1,
    }


WRONG_ROWS: list[tuple[dict[str, object], str]] = [
    ({"probability_first": 1.2}, "probability_first is 1.2, not in [0, 1]"),
    ({"probability_first": -0.1}, "probability_first is -0.1, not in [0, 1]"),
    ({"probability_first": NAN}, "probability_first is nan, not in [0, 1]"),
    ({"probability_first": INF}, "probability_first is inf, not in [0, 1]"),
    ({"probability_first": True}, "probability_first is True, not in [0, 1]"),
    ({"probability_first": "0.7"}, "probability_first is '0.7', not in [0, 1]"),
    ({"weight": -1}, "weight is -1, neither 0 nor a number from 1e-06 to 1e+06"),
    ({"weight": INF}, "weight is inf, neither 0 nor a number from 1e-06 to 1e+06"),
    ({"weight": NAN}, "weight is nan, neither 0 nor a number from 1e-06 to 1e+06"),
    ({"weight": 1e-300}, "weight is 1e-300, neither 0 nor a number from 1e-06 to 1e+06"),
    ({"weight": 10**400}, f"weight is {10**400}, neither 0 nor a number from 1e-06 to 1e+06"),
    ({"weight": None}, "weight is None, neither 0 nor a number from 1e-06 to 1e+06"),
    ({"margin": -1}, "margin is -1, not a number from 0 to 1e+06"),
    ({"margin": NAN}, "margin is nan, not a number from 0 to 1e+06"),
    (
        {"votes": [{"principle_id": "brief", "probability_first": 2}]},
        "votes holds {'principle_id': 'brief', 'probability_first': 2}, not a principle's probability",
    ),
    ({"first": None}, "first must be text"),
    ({"second": 5}, "second must be text"),
    ({"prompt_id": 5}, "prompt_id must be text"),
    ({"category": ["a"]}, "category must be text"),
    ({"source": "guess"}, "source is 'guess', not one of ai, human"),
    ({"language": "!"}, "language: '!' is no BCP 47 tag such as en or pt-BR"),
    ({"messages": []}, "messages: a conversation needs at least one user turn"),
    ({"messages": "hi"}, "messages must be a list of turns"),
    ({"first": "half \ud800"}, "holds half a character (a lone surrogate)"),
]


@pytest.mark.parametrize(("changes", "sentence"), WRONG_ROWS)
def test_a_wrong_label_is_named_by_its_line(changes: dict[str, object], sentence: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "labels.jsonl", [label(0), label(1, **changes)])
    with pytest.raises(InvalidInputError) as caught:
        read(path)
    assert str(caught.value) == f"{path}, line 2: {sentence}"


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            {"messages": TURN, "first": "a", "second": "b"},
            "there is neither probability_first nor a preference of first, second, tie, abstain",
        ),
        ({"prompt": "Why?", "first": "a", "preference": "first"}, "second must be text"),
        ({"first": "a", "second": "b", "preference": "first"}, "prompt: must be a text or a list of messages"),
        ({"prompt": "Why?", "chosen": "a"}, "rejected must be text or a list of messages"),
        (
            {"prompt": "Why?", "chosen": "a", "rejected": "b", "probability_chosen": 2},
            "probability_chosen is 2, not in",
        ),
        ({"chosen": "no transcript", "rejected": "b"}, "chosen: must be a transcript"),
    ],
)
def test_a_row_without_what_it_needs_says_what(row: dict[str, object], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read_rows(tmp_path, row)
    assert f"line 1: {sentence}" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "holds no labels"),
        (b"\n \n", "holds no labels"),
        (b"{\n", "line 1: not JSON"),
        (b"\xff\xfe\n", "line 1: not UTF-8"),
        (b"\x7fELF\x02\x01\x01\x00\x00", "line 1: not JSON"),
        (b"[1]\n", "line 1: not a JSON object"),
        (b"[" * 200_000, "line 1: too deep or too long for JSON"),
        (b'{"weight": ' + b"1" * 5000 + b"}", "line 1: too deep or too long for JSON"),
        (b"PAR1\x15\x04", "is Parquet; write it as JSON lines"),
    ],
)
def test_a_file_that_holds_no_labels_is_refused_in_a_sentence(content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=sentence):
        read(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"cannot read .*gone\.jsonl: No such file or directory"):
        read(tmp_path / "gone.jsonl")
    with pytest.raises(InvalidInputError, match="Is a directory"):
        read(tmp_path)
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b"{}")[:-4])
    with pytest.raises(InvalidInputError, match=r"is no whole \.gz file"):
        read(tmp_path / "cut.jsonl.gz")


def test_labels_that_all_say_nothing_are_refused(tmp_path: Path) -> None:
    rows = [label(0, probability_first=None), label(1, weight=0), label(2, first="a", second="a")]
    sentence = r"none of the 3 labels can be trained on \(1 abstained, 1 weigh nothing, 1 compare a text with itself\)"
    with pytest.raises(InvalidInputError, match=sentence):
        read_rows(tmp_path, *rows)


@pytest.mark.parametrize(("probability", "which"), [(0.9, "first"), (0.1, "second")])
def test_labels_that_all_prefer_one_side_are_refused_unless_told_otherwise(
    probability: float, which: str, tmp_path: Path
) -> None:
    rows = [label(n, probability_first=probability) for n in range(16)] + [label(17, probability_first=0.5)]
    path = write_lines(tmp_path / "labels.jsonl", rows)
    with pytest.raises(InvalidInputError, match=f"all 16 decided labels prefer the {which} response") as caught:
        read(path)
    assert caught.value.reason == "ONE_CLASS"
    assert len(read(path, allow_one_class=True).pairs) == 17
    few = write_lines(tmp_path / "few.jsonl", rows[:15])
    assert len(read(few).pairs) == 15


def test_rows_that_name_the_better_response_are_not_one_sided(tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(40)]
    labels = read_rows(tmp_path, *rows)
    assert {pair.preferred for pair in labels.pairs} == {1, -1}
    assert all(said_of(pair, f"good {n}") == 1.0 for n, pair in enumerate(labels.pairs))


def test_a_principle_that_abstained_has_no_vote(tmp_path: Path) -> None:
    votes = [
        {"principle_id": "polite", "probability_first": 0.7, "weight": 1.0},
        {"principle_id": "brief", "probability_first": None, "weight": 1.0},
    ]
    labels = read_rows(tmp_path, label(0), label(1, votes=votes))
    assert [dict(pair.votes) for pair in labels.pairs] == [{}, {"polite": 0.7}]
    assert labels.principles == ("polite",)


def test_every_form_that_people_have_their_labels_in_is_read(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "Why?", "first": "a", "second": "b", "preference": "second", "annotator": "ada"},
        {"messages": TURN, "first": "a", "second": "b", "preference": "tie"},
        {"messages": TURN, "first": "a", "second": "c", "preference": "abstain"},
        {"chosen": "\n\nHuman: Why?\n\nAssistant: c", "rejected": "\n\nHuman: Why?\n\nAssistant: d"},
        {
            "prompt": TURN,
            "chosen": answer("e"),
            "rejected": answer("f"),
            "probability_chosen": 0.75,
            "source": "human",
            "language": "de",
        },
    ]
    path = tmp_path / "people.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    labels = read(path)
    assert [said_of(pair, text) for pair, text in zip(labels.pairs, "aace", strict=True)] == [0.0, 0.5, 1.0, 0.75]
    assert [pair.source for pair in labels.pairs] == ["human", "ai", "ai", "human"]
    assert labels.pairs[3].language == "de"
    assert labels.total("num_abstained") == 1


def test_labels_of_one_pair_become_one_that_leaves_the_loss_as_it_was(tmp_path: Path) -> None:
    vote = {"prompt": "Why?", "first": "a", "second": "b"}
    turned = {"prompt": "Why?", "first": "b", "second": "a"}
    rows = [vote | {"preference": "first"}, turned | {"preference": "first"}, vote | {"preference": "tie", "weight": 2}]
    labels = read_rows(tmp_path, *rows)
    (pair,) = labels.pairs
    # One person for a, one for b, two undecided: (1 + 0 + 2·½) / 4.
    assert (pair.first, pair.probability_first, pair.weight) == ("a", pytest.approx(0.5), 4.0)
    assert labels.total("num_merged") == 2


def test_files_are_mixed_by_weight_and_named_in_the_record(tmp_path: Path) -> None:
    judge = write_lines(tmp_path / "labels.jsonl", [label(0), label(1)])
    people = write_lines(tmp_path / "people.jsonl", [label(2, weight=2.0), label(3, probability_first=None)])
    labels = read_labels([LabelFile(path=judge), LabelFile(path=people, weight=5.0, source="human", smoothing=0.1)])
    assert [(pair.source, pair.weight) for pair in labels.pairs] == [("ai", 1.0), ("ai", 1.0), ("human", 10.0)]
    of_judge, of_people = labels.provenance()
    assert (of_judge["path"], of_judge["num_pairs"], of_judge["weight"]) == (str(judge), 2, 1.0)
    assert (of_people["num_pairs"], of_people["num_abstained"], of_people["smoothing"]) == (1, 1, 0.1)
    assert len(of_people["sha256"]) == 64
    # Trained on softened, measured as labelled.
    assert labels.pairs[2].smoothed().probability_first == pytest.approx(
        0.9 * labels.pairs[2].probability_first + 0.1 * (1 - labels.pairs[2].probability_first)
    )
    assert labels.pairs[0].smoothed() == labels.pairs[0]


def test_people_s_votes_fall_on_the_side_of_their_conversation(tmp_path: Path) -> None:
    judge = write_lines(tmp_path / "labels.jsonl", [label(n) for n in range(60)])
    votes = [
        {"messages": label(n)["messages"], "first": f"x{n}", "second": f"y{n}", "preference": "first"} for n in range(8)
    ]
    people = write_lines(tmp_path / "people.jsonl", votes)
    labels = read_labels([LabelFile(path=judge), LabelFile(path=people)])
    ids = {pair.conversation: pair.prompt_id for pair in labels.pairs[:60]}
    assert all(pair.prompt_id == ids[pair.conversation] for pair in labels.pairs[60:])


def test_slices_say_what_is_known_of_a_pair(tmp_path: Path) -> None:
    row = label(0, first="a" * 300, second="b", probability_first=0.3, category="fact", language="en")
    assert read_rows(tmp_path, row).pairs[0].slices == {
        "category": "fact",
        "source": "ai",
        "language": "en",
        "length": "256-1023",
        "certainty": "0.6-0.75",
        "better": "shorter",
    }


def test_all_pairs_of_a_prompt_fall_on_one_side(tmp_path: Path) -> None:
    pairs = read_rows(tmp_path, *[label(n) for n in range(200)]).pairs
    train, held_out = split_by_prompt(pairs, held_out_fraction=0.3, seed=1)
    assert train
    assert held_out
    assert not {pair.prompt_id for pair in train} & {pair.prompt_id for pair in held_out}
    assert split_by_prompt(pairs, held_out_fraction=0.0, seed=1) == (list(pairs), [])
    one = [pair for pair in pairs if pair.prompt_id == held_out[0].prompt_id]
    assert split_by_prompt(one, held_out_fraction=0.3, seed=1) == (one, [])


def test_texts_survive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps(label(4, first="zwei\nZeilen „ü“"), ensure_ascii=False) + "\n\n", encoding="utf-8")
    assert read(path).pairs[0].first == "zwei\nZeilen „ü“"


@pytest.mark.parametrize("settings", [DpoTraining, RewardTraining])
@pytest.mark.parametrize(
    "labels",
    ["judge.jsonl", ["judge.jsonl"], {"path": "judge.jsonl"}, [{"path": "judge.jsonl", "weight": 1.0}]],
)
def test_one_file_needs_no_list(settings: Any, labels: Any) -> None:
    found = settings.model_validate({"out": "out", "policy": "model", "labels": labels})
    assert found.labels == (LabelFile(path=Path("judge.jsonl")),)
    assert settings.model_validate(found.model_dump(mode="json")) == found


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"beta": 0}, "beta"),
        ({"beta": -0.1}, "beta"),
        ({"beta": NAN}, "beta"),
        ({"beta": INF}, "beta"),
        ({"loss": "best"}, "loss"),
        ({"sft_weight": -1}, "sft_weight"),
        ({"target_margin": INF}, "target_margin"),
        ({"labels": []}, "labels"),
        ({"labels": [{"path": "a", "weight": 0}]}, "weight"),
        ({"labels": [{"path": "a", "smoothing": 0.5}]}, "smoothing"),
        ({"labels": [{"path": "a", "mass": 1}]}, "mass"),
        ({"batch_pairs": 0}, "batch_pairs"),
        ({"temperature": 1}, "temperature"),
    ],
)
def test_wrong_settings_of_preference_optimisation_name_their_key(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        DpoTraining.model_validate({"out": "out", "policy": "model", "labels": "labels.jsonl"} | changes)


def test_a_loss_brings_its_beta_unless_one_is_given() -> None:
    common = {"out": "out", "policy": "model", "labels": "labels.jsonl"}
    assert DpoTraining.model_validate(common).beta == 0.1
    assert DpoTraining.model_validate(common | {"loss": "simpo"}).beta == 2.0
    assert DpoTraining.model_validate(common | {"loss": "simpo", "beta": 3.0}).beta == 3.0
