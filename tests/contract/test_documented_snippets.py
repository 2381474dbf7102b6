"""The Python shown to readers runs as it stands, against a judge at the address that it names; commands are ones."""

from __future__ import annotations

import asyncio
import re
import shlex
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import typer

from rlaif.cli import main
from rlaif.core.constitution import parse_constitution
from rlaif.runtime.server import serving
from rlaif.runtime.settings import ListenSettings
from text_judge import TextJudge, text_judge_service

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = REPOSITORY / "docs"
SHOWN_ADDRESS = "127.0.0.1:50052"


def snippets(document: str, language: str) -> list[str]:
    text = (REPOSITORY / document).read_text()
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [shown for said, shown in fenced if said == language]


@pytest.mark.parametrize(
    ("document", "printed"),
    [
        ("README.md", "second 0."),
        ("docs/judge.md", "second 0."),
        ("docs/judge-command.md", "Verdict(preference='second'"),
    ],
)
async def test_documents_ask_the_judge(document: str, printed: str, capsys: pytest.CaptureFixture[str]):
    shown = [snippet for snippet in snippets(document, "python") if SHOWN_ADDRESS in snippet]
    assert shown
    judge = TextJudge()
    async with serving(text_judge_service(judge), ListenSettings(metrics_address=None)) as server:
        for snippet in shown:
            await asyncio.to_thread(exec, snippet.replace(SHOWN_ADDRESS, server.address), {})
    assert judge.requests
    assert capsys.readouterr().out.startswith(printed)


def commands(document: str) -> list[list[str]]:
    """The words after `rlaif` of every command that the document shows."""
    shown = "\n".join(snippets(document, "")).replace("\\\n", " ")
    lines = (line.removeprefix("$ ").removeprefix(".venv/bin/") for line in shown.splitlines())
    words = (shlex.split(line, comments=True)[1:] for line in lines if line.startswith("rlaif "))
    return [list(takewhile(lambda word: word not in {"<", ">", ">>", "|"}, line)) for line in words]


def documents_with_commands() -> list[str]:
    """Those that show one; pages on images or the cluster may show other programs' alone."""
    return [
        name
        for name in ("README.md", *sorted(f"docs/{path.name}" for path in DOCUMENTS.glob("*.md")))
        if commands(name)
    ]


@pytest.mark.parametrize("document", documents_with_commands())
def test_documented_commands_are_ones(document: str):
    for words in commands(document):
        verb: Any = typer.main.get_command(main.app)
        name, rest = "rlaif", list(words)
        while hasattr(verb, "commands"):
            name = rest.pop(0)
            assert name in verb.commands, words
            verb = verb.commands[name]
        try:
            verb.make_context(name, [word for word in rest if word != "--help"])
        except main._UsageError as error:
            pytest.fail(f"rlaif {shlex.join(words)}: {error.format_message()}")


def test_the_documented_constitution_is_one():
    (shown,) = snippets("docs/constitutions.md", "yaml")
    constitution = parse_constitution(shown)
    assert constitution.name == "constitutions/support-desk"
    assert constitution.principles[1].applies_to == ("refunds", "contracts")
