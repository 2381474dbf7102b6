"""`rlaif labels` against a real ledger: people's labels in, quality, calibrations, training rows out."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from label_fixtures import abstention, judge_label, pair_subject
from ledger_fixtures import make_score, serving_ledger
from rlaif.cli import main
from rlaif.client.ledger import LedgerClient
from rlaif.core.calibration import parse_calibration, scale
from rlaif.runtime.settings import ClientSettings
from rlaif.v1 import ledger_service_pb2 as pb


class Served:
    """A ledger that serves from a thread of its own, for a command that blocks."""

    def __init__(self, database_url: str) -> None:
        self._ready, self._stop = threading.Event(), None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(database_url)))
        self._thread.start()
        assert self._ready.wait(60)

    async def _serve(self, database_url: str) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with serving_ledger(database_url) as ledger:
            self.address = ledger.client.target
            self._ready.set()
            await self._stop.wait()

    def record(self, labels: Sequence[pb.Label]) -> None:
        async def record() -> None:
            from rlaif.client.ledger import AioLedgerClient

            client = AioLedgerClient(ClientSettings(target=self.address))
            import uuid

            await client.record(labels, str(uuid.uuid4()))
            await client.close()

        asyncio.run(record())

    def labels(self) -> list[pb.Label]:
        with LedgerClient(ClientSettings(target=self.address)) as client:
            return list(client.export_labels())

    def events(self, event_type: str) -> list[pb.Event]:
        with LedgerClient(ClientSettings(target=self.address)) as client:
            return list(client.list_events(event_type))

    def close(self) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    ledger = Served(f"sqlite:///{tmp_path}/ledger.sqlite")
    yield ledger
    ledger.close()


def rlaif(*arguments: object) -> int:
    return main.execute(["labels", *map(str, arguments)])


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def overconfident(number: int) -> tuple[list[pb.Label], list[dict[str, Any]]]:
    """Labels of a judge three times too sure in log-odds, and people's votes on the same pairs."""
    rng = random.Random(4)
    labels, votes = [], []
    for index in range(number):
        probability = scale(rng.random(), temperature=1 / 3)
        subject = pair_subject(f"Question {index}?", f"Answer {index}.", f"No answer {index}.")
        labels.append(judge_label(subject, when_first=probability, when_second=probability))
        prefers_first = rng.random() < scale(probability, temperature=3)
        votes.append(
            {
                "prompt": f"Question {index}?",
                "first": f"Answer {index}.",
                "second": f"No answer {index}.",
                "preference": "first" if prefers_first else "second",
            }
        )
    return labels, votes


def test_people_are_imported_once_and_measured(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, votes = overconfident(120)
    served.record(labels)
    file = jsonl(tmp_path / "people.jsonl", *votes)
    assert rlaif("import", file, "--target", served.address, "--annotator", "ada", "--category", "eggs") == 0
    assert "120 labels recorded, 0 were there already" in capsys.readouterr().out
    assert rlaif("import", file, "--target", served.address, "--annotator", "ada", "--category", "eggs", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"num_read": 120, "num_new": 0, "num_skipped": 0}
    assert rlaif("quality", "--target", served.address, "--by", "category", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["num_labels"], report["num_reviewed"]) == (120, 120)
    found = {(each["statistic"], each["slice"]): each for each in report["statistics"]}
    expected = sum(
        (label.verdict.probability_first > 0.5) == (vote["preference"] == "first")
        for label, vote in zip(labels, votes, strict=True)
    )
    assert found["human_agreement", "category=eggs"]["value"] == pytest.approx(expected / 120)
    assert found["ece", ""]["value"] > 0.05
    assert rlaif("quality", "--target", served.address, "--by", "category") == 0
    page = capsys.readouterr().out
    assert "120 comparisons, 120 of them voted on by people" in page
    assert "agreement with people" in page
    assert "category=eggs" in page


def test_two_people_without_a_name_are_two(served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    file = jsonl(tmp_path / "trl.jsonl", row, row)
    assert rlaif("import", file, "--target", served.address, "--digests", "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_new"] == 2
    assert [list(label.subject.responses) for label in served.labels()] == [[], []]


def test_a_wrong_line_is_named_and_nothing_is_imported(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    file = jsonl(tmp_path / "people.jsonl", good, {"prompt": "a", "chosen": "b", "rejected": 3})
    assert rlaif("import", file, "--target", served.address) == 2
    assert f"{file}:2: chosen: chosen and rejected must both be texts" in capsys.readouterr().err
    assert served.labels() == []
    assert rlaif("import", file, "--target", served.address, "--skip-invalid") == 0
    told = capsys.readouterr()
    assert f"skipped {file}:2: " in told.err
    assert len(served.labels()) == 1


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "1: not valid JSON"),
        ("[]", "1: row: must be a JSON object"),
        ('{"prompt": "\\ud800", "chosen": "b", "rejected": "c"}', "1: row: holds half a character"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c", "score": NaN}', "1: row: holds NaN"),
        (
            '{"prompt": "a", "chosen": "b", "rejected": "c", "language": "en_GB"}',
            "1: language: 'en_GB' is no BCP 47 tag",
        ),
    ],
)
def test_what_is_no_preference_is_refused(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, told: str
) -> None:
    file = tmp_path / "people.jsonl"
    file.write_text(line + "\n")
    assert rlaif("import", file, "--target", served.address) == 2
    assert told in capsys.readouterr().err
    assert served.labels() == []


def test_what_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rlaif("import", tmp_path / "none.jsonl", "--ledger", tmp_path) == 2
    assert "there is no such file" in capsys.readouterr().err
    assert rlaif("quality", tmp_path) == 2
    assert "has no ledger.sqlite" in capsys.readouterr().err


def test_a_calibration_is_fitted_written_and_recorded(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, votes = overconfident(400)
    served.record(labels)
    rlaif("import", jsonl(tmp_path / "people.jsonl", *votes), "--target", served.address)
    assert rlaif("calibrate", "--target", served.address, "-o", tmp_path / "calibrations") == 0
    (path,) = (tmp_path / "calibrations").iterdir()
    calibration = parse_calibration(path.read_text(), source=str(path))
    assert path.stem == calibration.calibration_id
    assert calibration.num_labels == 400
    assert 1.5 < calibration.temperature < 6
    assert calibration.after.nll < calibration.before.nll
    provenance = labels[0].verdict.provenance
    assert calibration.key.judge_digest == provenance.model.digest
    assert calibration.key.template_sha256 == provenance.template_sha256
    assert calibration.key.constitution_sha256 == provenance.constitution.sha256
    (event,) = served.events("calibration_fitted")
    assert event.subject == calibration.name
    assert calibration.calibration_id in capsys.readouterr().out


def test_forty_nine_labels_are_too_few(served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels, votes = overconfident(60)
    served.record(labels)
    assert rlaif("calibrate", "--target", served.address, "-o", tmp_path / "out") == 1
    assert "people have voted on none" in capsys.readouterr().err
    rlaif("import", jsonl(tmp_path / "people.jsonl", *votes[:49]), "--target", served.address)
    assert rlaif("calibrate", "--target", served.address, "-o", tmp_path / "out") == 1
    assert "49 human-reviewed labels are fewer than the 50" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_calibration_that_does_not_help_is_not_written(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A judge that is right as often as it says: one temperature fitted on the other folds can only add noise.
    labels, votes = [], []
    for index in range(100):
        subject = pair_subject(f"Question {index}?", "Yes.", "No.")
        labels.append(judge_label(subject, when_first=0.75, when_second=0.75))
        votes.append({"prompt": f"Question {index}?", "first": "Yes.", "second": "No.", "preference": "first"})
        if index % 4 == 0:
            votes[-1]["preference"] = "second"
    served.record(labels)
    rlaif("import", jsonl(tmp_path / "people.jsonl", *votes), "--target", served.address)
    out = tmp_path / "out"
    assert rlaif("calibrate", "--target", served.address, "-o", out) == 3
    assert "does not help" in capsys.readouterr().out
    assert not out.exists()
    assert rlaif("calibrate", "--target", served.address, "-o", out, "--anyway", "--json") == 0
    assert json.loads(capsys.readouterr().out)["calibrations"][0]["helps"] is False
    assert len(list(out.iterdir())) == 1


def record_mixture(served: Served) -> None:
    """A label whose texts are kept, one of digests, an abstention, a tie, a score."""
    kept = pair_subject("How do I boil an egg?", "No.", "In water.", category="cooking")
    digests = pair_subject("How do I pick a lock?", "I will not say.", "With two picks.", texts=False)
    served.record(
        [
            judge_label(kept, when_first=0.2, when_second=0.3),
            judge_label(digests, when_first=0.9, when_second=0.8),
            abstention(pair_subject("Why?", "Because.", "Therefore.")),
            judge_label(pair_subject("Who?", "I.", "You."), when_first=0.5, when_second=0.5),
            make_score("a reward"),
        ]
    )


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_what_is_exported_is_what_datasets_and_trl_load(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    import datasets

    record_mixture(served)
    texts = {
        "prompt": "How do I pick a lock?",
        "first": "I will not say.",
        "second": "With two picks.",
    }
    output = tmp_path / f"labels{suffix}"
    known = jsonl(tmp_path / "texts.jsonl", texts)
    assert rlaif("export", "--target", served.address, "-o", output, "--texts", known) == 0
    said = capsys.readouterr().out
    assert "2 labels written" in said
    assert "left out: 1 without a verdict, 1 scores, which are no comparisons, 1 ties" in said
    loaded = datasets.load_dataset(
        "parquet" if suffix == ".parquet" else "json",
        data_files=str(output),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    egg, lock = loaded
    assert egg["prompt"] == [{"role": "user", "content": "How do I boil an egg?"}]
    assert egg["chosen"] == [{"role": "assistant", "content": "In water."}]
    assert egg["rejected"] == [{"role": "assistant", "content": "No."}]
    assert egg["probability_chosen"] == pytest.approx(0.75)
    assert egg["category"] == "cooking"
    assert lock["chosen"][0]["content"] == "I will not say."
    assert lock["probability_chosen"] == pytest.approx(0.85)
    assert (lock["source"], lock["constitution"]) == ("ai", "constitutions/default")


def test_labels_of_unknown_texts_are_left_out_and_said(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served.record([judge_label(pair_subject("Who?", "I.", "You.", texts=False), when_first=0.9, when_second=0.8)])
    output = tmp_path / "labels.jsonl"
    assert rlaif("export", "--target", served.address, "-o", output) == 1
    assert "kept only digests of all 1 labels" in capsys.readouterr().err
    assert list(tmp_path.glob("*labels*")) == []


def test_what_people_said_is_exported_too(served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = jsonl(tmp_path / "in.jsonl", {"prompt": "How do I boil an egg?", "chosen": "In water.", "rejected": "No."})
    assert rlaif("import", file, "--target", served.address, "--annotator", "ada") == 0
    output = tmp_path / "people.jsonl"
    assert rlaif("export", "--target", served.address, "-o", output, "--source", "human") == 0
    row = json.loads(output.read_text())
    assert (row["source"], row["annotator"], row["probability_chosen"]) == ("human", "ada", 1.0)
    # It can be read back in.
    assert rlaif("import", output, "--target", served.address, "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"num_read": 1, "num_new": 0, "num_skipped": 0}


def test_a_run_folder_is_read_without_a_service_that_runs(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record_mixture(served)
    jsonl(
        tmp_path / "labels.jsonl",
        {
            "messages": [{"role": "user", "content": "How do I pick a lock?"}],
            "first": "I will not say.",
            "second": "With two picks.",
        },
    )
    assert rlaif("export", tmp_path, "-o", tmp_path / "out.jsonl", "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_rows"] == 2
    assert rlaif("quality", tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_labels"] == 4
