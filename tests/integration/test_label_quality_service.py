"""Label quality over a served ledger, the same on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from label_fixtures import FIRST, JUDGE, SECOND, TIE, abstention, human_label, judge_label, pair_subject
from ledger_fixtures import ServedLedger, make_score, new_id, serving_ledger
from rlaif.client.review import LabelQualityReport, ReviewClient
from rlaif.core.errors import InvalidInputError
from rlaif.core.estimate import Estimate
from rlaif.oversight import quality as quality_of_labels
from rlaif.oversight.quality import QualityAnswer, QualityQuery
from rlaif.oversight.quality_metrics import SERIES
from rlaif.v1 import ledger_service_pb2 as pb

EGG = pair_subject("How do I boil an egg?", "In water.", "No.", category="cooking")
LOCK = pair_subject("How do I pick a lock?", "I will not say.", "With two picks, like this.", category="harmful")
KNIFE = pair_subject("How do I sharpen a knife?", "On a stone.", "On a stone, wet, at twenty degrees.")


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[ServedLedger]:
    async with serving_ledger(database_url) as served:
        yield served


async def imported(ledger: ServedLedger, *labels: pb.Label) -> int:
    response = await ledger.stub.ImportLabels(pb.ImportLabelsRequest(labels=labels, request_id=new_id()))
    return response.num_appended


async def quality(ledger: ServedLedger, **query: object) -> LabelQualityReport:
    def ask() -> LabelQualityReport:
        with ReviewClient(ledger.client) as client:
            return client.label_quality(**query)  # type: ignore[arg-type]

    return await asyncio.to_thread(ask)


def scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics") as response:
        return response.read().decode()


def estimates(report: LabelQualityReport, slice_: str = "") -> dict[str, Estimate]:
    return {each.statistic: each.estimate for each in report.statistics.statistics if each.slice == slice_}


async def test_statistics_are_over_what_judge_and_people_said_of_the_same_pairs(ledger: ServedLedger) -> None:
    await ledger.record(
        judge_label(EGG, when_first=0.9, when_second=0.7),
        judge_label(LOCK, when_first=0.8, when_second=0.4),
        judge_label(KNIFE, when_first=0.3, when_second=0.1),
        make_score("a reward"),
    )
    await ledger.record(abstention(pair_subject("Why?", "Because.", "Therefore.")))
    assert await imported(ledger, human_label(EGG, FIRST), human_label(LOCK, SECOND), human_label(LOCK, TIE)) == 3
    report = await quality(ledger, slices=["category"])
    found = estimates(report)
    assert (report.num_labels, report.num_reviewed) == (4, 2)
    assert found["abstention_rate"].value == 0.25
    assert found["order_inconsistency"].value == pytest.approx(1 / 3)
    assert found["shown_first_share"].value == 1.0
    assert found["human_agreement"].value == 0.5
    # the lock's vote is one quarter on average: (.6 - .25)²; the egg's is one: (.8 - 1)²
    assert found["brier"].value == pytest.approx((0.35**2 + 0.2**2) / 2)
    assert found["verbosity_slope"].value is None
    assert estimates(report, "category=harmful")["human_agreement"].value == 0.0
    assert estimates(report, "category=cooking")["human_agreement"].value == 1.0
    bins = {each.slice: each.bins for each in report.statistics.reliability}
    assert [held.num_labels for held in bins[""]] == [0, 0, 1, 0, 0, 0, 1, 0, 0, 0]


async def test_people_may_have_seen_the_responses_the_other_way_round(ledger: ServedLedger) -> None:
    exchanged = pair_subject("How do I boil an egg?", "No.", "In water.")
    await ledger.record(judge_label(EGG, when_first=0.9, when_second=0.7))
    await imported(ledger, human_label(exchanged, SECOND))
    assert estimates(await quality(ledger))["human_agreement"].value == 1.0


async def test_only_digests_are_needed(ledger: ServedLedger) -> None:
    digests = pair_subject("How do I boil an egg?", "In water.", "No.", texts=False)
    await ledger.record(judge_label(digests, when_first=0.9, when_second=0.7))
    await imported(ledger, human_label(EGG, FIRST))
    report = await quality(ledger, slices=["length", "category"])
    assert estimates(report, "length=0-255")["human_agreement"].value == 1.0
    # What the judge was not told, the people's label says.
    assert estimates(report, "category=cooking")["abstention_rate"].value == 0.0


async def test_the_last_word_of_one_person_counts(ledger: ServedLedger) -> None:
    await ledger.record(judge_label(EGG, when_first=0.9, when_second=0.7))
    await imported(ledger, human_label(EGG, SECOND, annotator="ada"), human_label(EGG, FIRST, annotator="bo"))
    await imported(ledger, human_label(EGG, FIRST, annotator="ada"))
    found = estimates(await quality(ledger))
    assert (found["human_agreement"].value, found["human_agreement"].num_samples) == (1.0, 1)


async def test_votes_under_another_constitution_say_nothing_of_this_one(ledger: ServedLedger) -> None:
    await ledger.record(judge_label(EGG, when_first=0.9, when_second=0.7))
    await imported(ledger, human_label(EGG, SECOND, constitution="constitutions/other"))
    report = await quality(ledger)
    assert report.num_reviewed == 0
    assert estimates(report)["human_agreement"].value is None


async def test_labels_can_be_chosen_by_constitution_judge_and_time(ledger: ServedLedger) -> None:
    await ledger.record(judge_label(EGG, when_first=0.9, when_second=0.7))
    await ledger.record(judge_label(EGG, when_first=0.9, when_second=0.7, constitution="constitutions/other"))
    now = datetime.now(UTC)
    assert (await quality(ledger, constitution="constitutions/other")).num_labels == 1
    assert (await quality(ledger, judge_digest=JUDGE)).num_labels == 2
    assert (await quality(ledger, judge_digest="0" * 64)).num_labels == 0
    assert (await quality(ledger, start=now - timedelta(hours=1))).num_labels == 2
    assert (await quality(ledger, start=now + timedelta(hours=1))).num_labels == 0
    assert (await quality(ledger, end=now - timedelta(hours=1))).num_labels == 0
    report = await quality(ledger, slices=["constitution", "judge"])
    assert {each.slice for each in report.statistics.statistics} == {
        "",
        "constitution=constitutions/default",
        "constitution=constitutions/other",
        f"judge={JUDGE[:12]}",
    }


async def test_an_answer_is_computed_again_only_when_the_ledger_has_grown(ledger: ServedLedger) -> None:
    await ledger.record(judge_label(EGG, when_first=0.9, when_second=0.7))
    first = await quality(ledger)
    assert await quality(ledger) == first
    await ledger.record(judge_label(LOCK, when_first=0.9, when_second=0.7))
    again = await quality(ledger)
    assert again.num_labels == 2
    assert again.compute_time > first.compute_time


async def test_an_empty_ledger_knows_nothing(ledger: ServedLedger) -> None:
    report = await quality(ledger)
    assert report.num_labels == 0
    assert all(estimate.value is None for estimate in estimates(report).values())


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"slices": ["judge", "colour"]}, "slices[1]"),
        ({"constitution": "default"}, "constitution"),
        ({"constitution": "constitutions/a\0b"}, "constitution"),
        ({"judge_digest": "abc"}, "judge_digest"),
        ({"start": datetime(2026, 1, 2, tzinfo=UTC), "end": datetime(2026, 1, 1, tzinfo=UTC)}, "end_time"),
    ],
)
async def test_a_query_that_is_wrong_names_the_field(
    ledger: ServedLedger, query: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        await quality(ledger, **query)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"annotator": "ada\n"}, "labels[0].annotator"),
        ({"annotator": "a" * 129}, "labels[0].annotator"),
        ({"language": "en_GB"}, "labels[0].subject.language"),
        ({"response_num_characters": [1]}, "labels[0].subject.response_num_characters"),
        ({"response_num_characters": [9, 4]}, "labels[0].subject.response_num_characters"),
    ],
)
async def test_what_is_imported_is_checked(ledger: ServedLedger, change: dict[str, object], field: str) -> None:
    label = human_label(EGG, FIRST)
    for key, value in change.items():
        where = label if key == "annotator" else label.subject
        where.ClearField(key)
        where.MergeFrom(type(where)(**{key: value}))
    with pytest.raises(InvalidInputError) as caught:
        await imported(ledger, label)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("digest", "constitution", "field"),
    [
        ("x" * 65, "", "model.digest"),
        ("", "default", "constitution.constitution"),
        ("", "constitutions/a\0b", "constitution.constitution"),
        ("", "constitutions/" + "x" * 300, "constitution.constitution"),
    ],
)
async def test_where_an_imported_label_comes_from_is_checked_as_where_a_judges_does(
    ledger: ServedLedger, digest: str, constitution: str, field: str
) -> None:
    label = human_label(EGG, FIRST)
    label.verdict.provenance.model.digest = digest
    label.verdict.provenance.constitution.constitution = constitution
    with pytest.raises(InvalidInputError) as caught:
        await imported(ledger, label)
    assert caught.value.field == f"labels[0].verdict.provenance.{field}"


async def test_the_judge_is_no_annotator(ledger: ServedLedger) -> None:
    label = judge_label(EGG, when_first=0.9, when_second=0.7)
    label.annotator = "ada"
    with pytest.raises(InvalidInputError) as caught:
        await ledger.record(label)
    assert caught.value.field == "labels[0].annotator"


async def test_a_scrape_gets_the_label_quality_of_the_window(database_url: str) -> None:
    async with serving_ledger(database_url, metrics_address="127.0.0.1:0", quality={"refresh_seconds": 0.01}) as ledger:
        assert ledger.metrics_address
        await ledger.record(
            judge_label(EGG, when_first=0.9, when_second=0.7), judge_label(LOCK, when_first=0.8, when_second=0.4)
        )
        await imported(ledger, human_label(EGG, FIRST), human_label(LOCK, SECOND))
        async with asyncio.timeout(60):
            text = ""
            # A scrape asks; a later one is answered.
            while "rlaif_label_quality_reviewed_labels 2.0" not in text:
                text = await asyncio.to_thread(scrape, ledger.metrics_address)
    assert 'rlaif_label_quality_human_agreement_ratio{bound="value",slice=""} 0.5' in text
    assert 'rlaif_label_quality_human_agreement_ratio{bound="value",slice="category=harmful"} 0.0' in text
    assert 'rlaif_label_quality_order_inconsistency_ratio{bound="value",slice=""} 0.5' in text
    assert 'rlaif_label_quality_order_inconsistency_ratio{bound="low",slice=""} 0.09' in text
    # What is not known has no series.
    assert "rlaif_label_quality_verbosity_slope_nats{" not in text


async def test_a_computation_that_crashes_is_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute, crashes = quality_of_labels.compute, iter([ZeroDivisionError(), ZeroDivisionError()])

    def crash_twice(connection: Connection, query: QualityQuery, **more: Any) -> QualityAnswer:
        if crash := next(crashes, None):
            raise crash
        return compute(connection, query, **more)

    monkeypatch.setattr(quality_of_labels, "compute", crash_twice)
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    async with serving_ledger(url, metrics_address="127.0.0.1:0", quality={"refresh_seconds": 0.01}) as ledger:
        assert ledger.metrics_address
        async with asyncio.timeout(60):
            while "rlaif_label_quality_labels 0.0" not in await asyncio.to_thread(scrape, ledger.metrics_address):
                pass


def test_every_statistic_has_a_series_of_its_own() -> None:
    from rlaif.core.label_statistics import STATISTICS

    assert list(SERIES) == list(STATISTICS)
    assert len({name for name, _ in SERIES.values()}) == len(SERIES)


def test_the_manual_defines_every_statistic_and_its_series() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "label-quality.md").read_text(encoding="utf-8")
    for statistic, (series, _) in SERIES.items():
        assert f"`{statistic}`" in manual
        # Those before calibration share a row.
        assert f"`{series.removeprefix('rlaif_label_quality_')}`" in manual or statistic.startswith("raw_")
