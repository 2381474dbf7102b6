"""The Python shown to readers runs as it stands, against a judge at the address that it names."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from rlaif.core.constitution import parse_constitution
from rlaif.runtime.server import serving
from rlaif.runtime.settings import ListenSettings
from text_judge import TextJudge, text_judge_service

REPOSITORY = Path(__file__).parents[2]
SHOWN_ADDRESS = "127.0.0.1:50052"


def snippets(document: str, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", (REPOSITORY / document).read_text(), flags=re.DOTALL | re.MULTILINE
    )


@pytest.mark.parametrize(
    ("document", "printed"), [("README.md", "second 0."), ("docs/judge-command.md", "Verdict(preference='second'")]
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


def test_the_documented_constitution_is_one():
    (shown,) = snippets("docs/constitutions.md", "yaml")
    constitution = parse_constitution(shown)
    assert constitution.name == "constitutions/support-desk"
    assert constitution.principles[1].applies_to == ("refunds", "contracts")
