"""Which responses are flagged as speaking to the judge, and which are not: named attacks, and real texts."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from attacks import ATTACKS, BENIGN, UNSEEN
from judge_fakes import CONSTITUTION, QUESTION, ScriptedEngine, make_judge
from rlaif.core.template import STANDARD
from rlaif.judge.injection import injection_suspected
from rlaif.judge.tasks import Candidate, JudgingOptions
from rlaif.v1 import judge_service_pb2

MAX_FALSE_POSITIVE_RATE = 0.002
_HOST = "Mix flour, water, salt and yeast.\n\nWait for an hour, then bake it hot. "


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("where", ["alone", "first", "last", "within"])
def test_attacks_are_flagged_wherever_they_stand(name: str, where: str):
    wraps = {"alone": "{}", "first": "{}\n\n" + _HOST, "last": _HOST + "\n{}", "within": _HOST + "\n{}\n" + _HOST}
    missed = [text for text in ATTACKS[name] if not injection_suspected(wraps[where].replace("{}", text))]
    assert missed == []


def test_how_many_rewordings_are_caught_is_known(capsys: pytest.CaptureFixture[str]):
    caught = sum(map(injection_suspected, UNSEEN))
    with capsys.disabled():
        print(f"\nrewordings that the patterns were not made for: {caught} of {len(UNSEEN)} flagged")
    # Not a goal: docs/judge.md says this number, and must be changed with it.
    assert caught == 6


@pytest.mark.parametrize("text", BENIGN)
def test_texts_that_say_nothing_to_a_judge_are_not(text: str):
    assert not injection_suspected(text)


def _shared() -> Path:
    folder = Path(os.environ.get("RLAIF_SHARED", "../shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"real texts are looked for in {folder}, which is not there; set RLAIF_SHARED")
    return folder


def _hh_rlhf(folder: Path) -> Iterator[str]:
    """The last turn of people's chats with an assistant, asked for harm by red teams."""
    with gzip.open(folder / "hh_rlhf" / "harmless_base_test.jsonl.gz", "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            for side in ("chosen", "rejected"):
                yield row[side].rsplit("\n\nAssistant:", 1)[1].strip()


def _llmbar(folder: Path) -> Iterator[str]:
    """Answers to instructions, also adversarial ones: those mislead by quality, not by speaking to the judge."""
    for path in sorted((folder / "llmbar").rglob("dataset.json")):
        for row in json.loads(path.read_text(encoding="utf-8")):
            yield from (row["output_1"], row["output_2"])


@pytest.mark.parametrize("source", [_hh_rlhf, _llmbar])
def test_real_responses_are_hardly_ever_flagged(source, capsys: pytest.CaptureFixture[str]):
    texts = list(source(_shared()))
    flagged = [text for text in texts if injection_suspected(text)]
    with capsys.disabled():
        print(f"\n{source.__name__.strip('_')}: {len(flagged)} of {len(texts)} real responses flagged")
    assert len(texts) > 1000
    assert len(flagged) <= MAX_FALSE_POSITIVE_RATE * len(texts)


async def test_no_attack_ends_its_own_delimiters_in_the_judges_prompt():
    engine = ScriptedEngine(lambda context, question: (0.5, 0.4))
    judge = make_judge(engine, template=STANDARD)
    attacks = [text for texts in ATTACKS.values() for text in texts]
    pairs = [Candidate(QUESTION, (text, "Mix and bake.")) for text in attacks]
    await judge.decide(pairs, constitution=CONSTITUTION, options=JudgingOptions())
    prompts = ["".join(map(chr, request.prefix_ids)) for batch in engine.batches for request in batch]
    assert len(prompts) == 2 * len(attacks)
    for prompt in prompts:
        for name in ("conversation", "response_1", "response_2"):
            opening = prompt.index(f"\n<{name}-")
            tag = prompt[opening + 2 : prompt.index(">", opening)]
            assert prompt.count(f"</{tag}>") == 1


async def test_attacks_abstain_where_the_service_is_set_to():
    engine = ScriptedEngine(lambda context, question: (0.9, 0.1))
    attacks = [Candidate(QUESTION, (texts[0], "Mix and bake.")) for texts in ATTACKS.values()]
    options = JudgingOptions(abstain_on_injection=True)
    decisions = await make_judge(engine).decide(attacks, constitution=CONSTITUTION, options=options)
    reasons = {decision.verdict.abstention_reason for decision in decisions}
    assert reasons == {judge_service_pb2.ABSTENTION_REASON_INJECTION_SUSPECTED}
    assert not any(engine.batches)
