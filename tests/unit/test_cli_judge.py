"""`rlaif judge` against a judge on loopback that answers from the texts it is sent."""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlaif.cli import main
from rlaif.runtime.server import serving
from rlaif.runtime.settings import ListenSettings
from text_judge import TextJudge, text_judge_service


@pytest.fixture
def judge() -> TextJudge:
    return TextJudge()


@pytest.fixture
def address(judge: TextJudge) -> Iterator[str]:
    """The judge on a loop of its own, for a command that blocks."""
    loop = asyncio.new_event_loop()
    stop, found, ready = asyncio.Event(), [], threading.Event()

    async def serve() -> None:
        async with serving(text_judge_service(judge), ListenSettings(metrics_address=None)) as server:
            found.append(server.address)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(20)
    yield found[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


KINDLY = ("--principle", "Be kind.")


class Command:
    """`rlaif judge`, asking that judge by one principle unless told otherwise."""

    def __init__(self, address: str, capsys: pytest.CaptureFixture[str]) -> None:
        self._address, self._capsys = address, capsys

    def __call__(
        self, *arguments: object, rules: tuple[str, ...] = ("--principle", "Be kind.")
    ) -> tuple[int, str, str]:
        code = main.execute(["judge", *map(str, arguments), *rules, "--address", self._address])
        said = self._capsys.readouterr()
        return code, said.out, said.err

    def json(self, *arguments: object) -> Any:
        code, out, err = self(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)


@pytest.fixture
def command(address: str, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(address, capsys)


def test_a_comparison_for_people_and_for_machines(command: Command, judge: TextJudge):
    code, out, _ = command("compare", "Why?", "because it is", "no", "--seed", 7, "--only", "principle-1")
    assert code == 0
    for words in ("the first response is preferred", "P(first) = 0.867", "kind", "longer"):
        assert words in out
    request = judge.requests[0]
    assert [each.text for each in request.inline_constitution.principles] == ["Be kind."]
    assert (request.options.seed, list(request.options.principle_ids)) == (7, ["principle-1"])
    assert command.json("compare", "Why?", "a", "bb")["preference"] == "second"


def test_texts_come_from_files_and_standard_input(
    command: Command, judge: TextJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "talk.json").write_text(
        json.dumps([{"role": role, "content": role} for role in ("system", "user", "assistant", "user")])
    )
    (tmp_path / "first.txt").write_text("from a file\r\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("from standard input\n\n"))
    assert command("compare", f"@{tmp_path}/talk.json", f"@{tmp_path}/first.txt", "-")[0] == 0
    request = judge.requests[0]
    assert [turn.content for turn in request.messages] == ["system", "user", "assistant", "user"]
    assert (request.first, request.second) == ("from a file", "from standard input\n")
    assert command("compare", "Why?", "@@home", "no")[0] == 0
    assert judge.requests[1].first == "@home"


def test_the_other_verbs_answer_too(command: Command):
    code, out, _ = command("rank", "Why?", "a", "ccc", "bb")
    assert code == 0
    assert "+0.50" in out
    assert "preferred in a circle: 1 > 2 > 3 > 1" in out
    assert "5.50 of 10" in command("score", "Why?", "because")[1]
    assert "'No.' is curt." in command("critique", "Why?", "No.")[1]
    code, out, _ = command("revise", "Why?", "No.", "--seed", 3)
    assert "'No.' is curt." in out
    assert "No. 'No.' is curt. 3" in out
    assert command.json("revise", "Why?", "No.", "--critique", "Curt.")["revision"]["text"] == "No. Curt. 0"
    assert "no critique: empty" in command("critique", "Why?", " ")[1]


def test_an_audit_asks_with_probe_pairs(command: Command, judge: TextJudge, tmp_path: Path):
    probe = write_lines(tmp_path / "probe.jsonl", PAIRS[:2])
    code, out, _ = command("audit", "--probe", probe, "--written")
    assert code == 0
    assert "Open." in out
    assert "no written audit: truncated" in out
    assert len(judge.requests[0].probe_pairs) == 2
    found = command.json("audit")
    assert found["findings"][0]["kind"] == "edge_case"


def test_a_judge_that_writes_no_audit_still_tells_its_findings(command: Command, judge: TextJudge):
    judge.writes_audits = False
    code, out, err = command("audit", "--written")
    assert code == 0
    assert "Open." in out
    assert "no written audit: this judge writes none" in err


PAIRS = [{"prompt": "Why?", "first": "x" * n, "second": "12345"} for n in range(1, 8)]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_of_pairs_is_judged_in_order_and_a_second_run_asks_nothing(
    command: Command, judge: TextJudge, tmp_path: Path
):
    source, out = write_lines(tmp_path / "pairs.jsonl", PAIRS), tmp_path / "made" / "labels.jsonl"
    code, _, err = command("compare", "--in", source, "--out", out, "--batch", 3)
    assert code == 0
    assert "7 lines asked: 5 second, 2 first; results in" in err
    rows = read_lines(out)
    assert [row["line"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["input"] for row in rows] == PAIRS
    assert [row["verdict"]["probability_first"] for row in rows] == pytest.approx([n / (n + 5) for n in range(1, 8)])
    asked = len(judge.requests)
    code, _, err = command("compare", "--in", source, "--out", out, "--batch", 3)
    assert (code, len(judge.requests)) == (0, asked)
    assert "0 lines asked: none, 7 were there before" in err


def test_a_line_may_say_category_and_language(command: Command, judge: TextJudge, tmp_path: Path):
    source = write_lines(tmp_path / "pairs.jsonl", [PAIRS[0] | {"category": "facts", "language": "en"}])
    assert command("compare", "--in", source, "--out", tmp_path / "labels.jsonl")[0] == 0
    pair = judge.requests[0].pairs[0]
    assert (pair.category, pair.language) == ("facts", "en")


def test_a_run_cut_off_is_continued_where_it_was(command: Command, judge: TextJudge, tmp_path: Path):
    source, out = write_lines(tmp_path / "pairs.jsonl", PAIRS), tmp_path / "labels.jsonl"
    assert command("compare", "--in", source, "--out", out)[0] == 0
    whole = out.read_text()
    out.write_text("\n".join(whole.split("\n")[:4])[:-20])  # three whole lines and a torn one
    judge.requests.clear()
    assert command("compare", "--in", source, "--out", out)[0] == 0
    assert out.read_text() == whole
    assert sum(len(request.pairs) for request in judge.requests) == 4


def test_lines_that_fail_are_told_kept_apart_and_asked_again(command: Command, tmp_path: Path):
    rows = [PAIRS[0], {**PAIRS[1], "first": "bad"}, PAIRS[2]]
    source, out = write_lines(tmp_path / "pairs.jsonl", rows), tmp_path / "labels.jsonl"
    code, _, err = command("compare", "--in", source, "--out", out)
    assert code == 1
    assert "2 second, 1 failed" in err
    assert read_lines(out)[1]["error"] == {"reason": "BAD", "message": "it is bad", "field": "pairs[1].first"}
    code, _, err = command("compare", "--in", source, "--out", out)
    assert code == 1
    assert "1 lines asked: 1 failed, 2 were there before" in err
    assert [row["line"] for row in read_lines(out)] == [1, 3, 2]


def test_results_of_another_job_are_not_mixed_in(command: Command, tmp_path: Path):
    source, out = write_lines(tmp_path / "pairs.jsonl", PAIRS), tmp_path / "labels.jsonl"
    assert command("compare", "--in", source, "--out", out)[0] == 0
    for other in (("--seed", "1"), ("--principle", "Be brief.")):
        code, _, err = command("compare", "--in", source, "--out", out, *other)
        assert code == 2
        assert "its line 1 answers another input, constitution or option" in err
    write_lines(source, [{**PAIRS[0], "first": "changed"}])
    assert command("compare", "--in", source, "--out", out)[0] == 2


def test_two_runs_do_not_write_one_file(command: Command, tmp_path: Path):
    source, out = write_lines(tmp_path / "pairs.jsonl", PAIRS), tmp_path / "labels.jsonl"
    with out.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, _, err = command("compare", "--in", source, "--out", out)
    assert code == 2
    assert "another process writes it now" in err


@pytest.mark.parametrize(
    ("verb", "row", "key", "outcome"),
    [
        ("score", {"prompt": "Why?", "response": "abc"}, "score", "1 answered"),
        ("rank", {"prompt": "Why?", "responses": ["a", "bb"]}, "ranking", "1 answered"),
        ("critique", {"prompt": "Why?", "response": "No."}, "critique", "1 answered"),
        ("revise", {"messages": [{"role": "user", "content": "Why?"}], "response": "No."}, "rewrite", "1 unchanged"),
    ],
)
def test_every_verb_takes_a_file(command: Command, tmp_path: Path, verb, row, key, outcome):
    source, out = write_lines(tmp_path / "in.jsonl", [{**row, "category": None}]), tmp_path / "out.jsonl"
    code, _, err = command(verb, "--in", source, "--out", out, rules=("--constitution", "a"))
    assert (code, outcome in err) == (0, True)
    assert key in read_lines(out)[0]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", ":1: not valid JSON"),
        ("[1]", ":1: must be a JSON object"),
        ('{"prompt": "a", "first": "b"}', ":1: second must be a text"),
        ('{"first": "b", "second": "c"}', ":1: prompt must be a text"),
        ('{"messages": "hi", "first": "b", "second": "c"}', ":1: messages must be a list"),
        ('{"messages": [{"role": "x", "content": "y"}], "first": "b", "second": "c"}', "role 'x' is not one of"),
        ('{"prompt": "a", "first": "b", "second": "c", "category": 3}', ":1: category must be a text"),
        ('{"prompt": "a\\ud800", "first": "b", "second": "c"}', ":1: holds half a character (a lone surrogate)"),
        ('{"prompt": "a", "first": "b", "second": "c", "mine": NaN}', ":1: holds NaN or an infinite number"),
    ],
)
def test_a_wrong_line_is_named_before_anything_is_asked(command: Command, judge: TextJudge, tmp_path, line, sentence):
    source = tmp_path / "pairs.jsonl"
    source.write_text(f"{line}\n")
    code, _, err = command("compare", "--in", source, "--out", tmp_path / "out.jsonl")
    assert code == 2
    assert sentence in err
    assert len(err.strip().splitlines()) == 1
    assert judge.requests == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("compare", "Why?", "a"), "SECOND is missing; give PROMPT FIRST SECOND, or --in FILE with --out FILE"),
        (("rank", "Why?"), "RESPONSE is missing"),
        (("rank", "Why?", "a"), "RESPONSE…: 1 cannot be ranked; give 2 to 16"),
        (("compare", "-", "-", "a"), "can be read only once"),
        (("compare", "Why?", "a", "b", "--out", "x"), "--out: is for the results of --in"),
        (("compare", "Why?", "--in", "x", "--out", "y"), "give arguments or --in FILE, not both"),
        (("compare", "--in", "x"), "--out: name the file"),
        (("compare", "--in", "x", "--out", "y", "--category", "z"), "--category: with --in, each line says its own"),
        (("compare", "--in", "nowhere.jsonl", "--out", "y"), "nowhere.jsonl: there is no such file"),
        (("compare", "@nowhere.txt", "a", "b"), "PROMPT nowhere.txt: there is no such file"),
        (("compare", "Why?", "a", "b", "--principle", " "), "--principle: is empty"),
        (("compare", "Why?", "a", "b", "--constitution", "x"), "give --constitution or --principle, not both"),
        (("compare", "Why\udcff?", "a", "b"), "PROMPT: is not UTF-8 text"),
        (("compare", "Why?", "a", "b", "--principle", "Be\udcff"), "--principle: is not UTF-8 text"),
        (("revise", "-", "No.", "--critique", "-"), "can be read only once"),
        (("revise", "Why?", "No.", "--critique", " "), "--critique: is empty"),
        (("revise", "--in", "x", "--out", "y", "--critique", "Curt."), "--critique: with --in, each line says its own"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_exit_code_2(command: Command, arguments, sentence):
    code, _, err = command(*arguments)
    assert code == 2
    assert sentence in err
    assert len(err.strip().splitlines()) == 1


def test_a_seed_beyond_64_bits_is_wrong_input(command: Command):
    code, _, err = command("compare", "Why?", "a", "b", "--seed", 2**64)
    assert code == 2
    assert "Invalid value for '--seed'" in err


@pytest.mark.parametrize("place", ["", "pairs.jsonl/labels.jsonl"])
def test_results_that_cannot_be_written_are_one_sentence(command: Command, tmp_path: Path, place: str):
    source = write_lines(tmp_path / "pairs.jsonl", PAIRS)
    code, _, err = command("compare", "--in", source, "--out", tmp_path / place)
    assert code == 2
    assert f"--out {tmp_path / place}: cannot be written" in err
    assert len(err.strip().splitlines()) == 1


def test_an_address_without_a_port_is_wrong_input(capsys: pytest.CaptureFixture[str]):
    assert main.execute(["judge", "compare", "Why?", "a", "b", "--address", "judge"]) == 2
    assert capsys.readouterr().err == "rlaif: judge: must be HOST:PORT, such as 127.0.0.1:50052\n"


def test_wrong_rules_are_told_before_a_judge_is_started(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    arguments = ("judge", "compare", "Why?", "a", "b", "--state", str(tmp_path), "--constitution", "nowhere.yaml")
    assert main.execute(arguments) == 2
    assert capsys.readouterr().err == "rlaif: --constitution nowhere.yaml: there is no such file\n"


def test_a_constitution_is_the_judges_a_shipped_one_or_a_file(command: Command, judge: TextJudge, tmp_path: Path):
    rules = tmp_path / "mine.yaml"
    rules.write_text("id: mine\nprinciples: [{id: kind, text: Prefer the kind reply.}]\n")
    for name in ("b", "constitutions/b", "code-review", str(rules)):
        assert command("compare", "Why?", "a", "bb", rules=("--constitution", name))[0] == 0
    named = [(each.constitution, each.inline_constitution.name) for each in judge.requests]
    assert named == [
        ("constitutions/b", ""),
        ("constitutions/b", ""),
        ("", "constitutions/code-review"),
        ("", "constitutions/mine"),
    ]
    code, _, err = command("compare", "Why?", "a", "bb", rules=())
    assert code == 2
    assert "has constitutions/a, constitutions/b, constitutions/c; name one of them" in err
    code, _, err = command("compare", "Why?", "a", "bb", rules=("--constitution", "unheard"))
    assert code == 2
    assert "--constitution unheard: is no file" in err


def test_the_stack_that_runs_from_a_folder_is_asked(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("rlaif.cli.judge_connection.is_service", lambda announcement: announcement.pid == 4)
    (tmp_path / "services").mkdir()
    (tmp_path / "services" / "judge.json").write_text(json.dumps({"address": address, "pid": 4}))
    assert main.execute(["judge", "compare", "Why?", "a", "bb", *KINDLY, "--state", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "the second response is preferred" in said.out
    assert said.err == ""


def test_a_judge_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]):
    arguments = ["compare", "Why?", "a", "b", "--address", "127.0.0.1:1", "--principle", "x", "--timeout", "2"]
    assert main.execute(["judge", *arguments]) == 1
    assert "127.0.0.1:1 cannot be reached" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["compare", "rank", "score", "critique", "revise", "audit"])
def test_every_verb_teaches_by_an_example(verb: str, capsys: pytest.CaptureFixture[str]):
    assert main.execute(["judge", verb, "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"rlaif judge {verb}" in out
    assert "Example" in out
