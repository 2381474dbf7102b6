"""`rlaif doctor` against real services: one thing is wrong at a time, and the one sentence says what and what to do."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from judge_fakes import MemoryLedger, ScriptedEngine, serve_judge
from kfp_api import PipelinesApi
from kfp_server import serving as serving_pipelines
from prometheus_stack import free_address
from rlaif.cli.main import execute
from rlaif.oversight.process import make_service as make_oversight
from rlaif.oversight.settings import OversightSettings
from rlaif.reward.process import make_service as make_reward
from rlaif.reward.settings import RewardSettings
from rlaif.runtime.roles import Role
from rlaif.runtime.server import Server, serving
from rlaif.runtime.settings import ListenSettings
from rlaif.runtime.tokens import describe_token
from tls_fixtures import Authority, Pair
from toy_service import ToySampler, toy_service

PLAIN = ListenSettings(metrics_address=None)


def prefers_help(context: str, question: str) -> Sequence[float]:
    if context.startswith("Rate"):
        return [0.1] * 10
    return (0.2, 0.7) if "Reply 1: I won't" in context else (0.7, 0.2)


@dataclass(frozen=True)
class Result:
    """What a run of the command ended with."""

    code: int
    said: Mapping[tuple[str, str], Mapping[str, str]]

    def of(self, subject: str, check: str) -> tuple[str, str, str]:
        """(state, seen, fix)."""
        finding = self.said[subject, check]
        return finding["state"], finding["seen"], finding["fix"]

    def failure(self, subject: str, check: str) -> str:
        """What failed and what to do, of the only check that did."""
        assert self.code == 1
        assert {key for key, each in self.said.items() if each["state"] == "failed"} == {(subject, check)}
        _, seen, fix = self.of(subject, check)
        assert fix, "a failure without a fix"
        assert "\n" not in seen
        return f"{seen}; {fix}"


Doctor = Callable[..., Any]


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Doctor:
    for name in ("RLAIF_TOKEN", "RLAIF_TLS_CA", "RLAIF_TLS_CERTIFICATE", "RLAIF_TLS_KEY", "RLAIF_TLS_SERVER_NAME"):
        monkeypatch.delenv(name, raising=False)

    async def run(*arguments: str | Path) -> Result:
        code = await asyncio.to_thread(execute, ["doctor", "--json", "--timeout", "10", *map(str, arguments)])
        told = json.loads(capsys.readouterr().out)
        assert told["ok"] == (code == 0)
        return Result(code, {(each["subject"], each["check"]): each for each in told["findings"]})

    return run


@asynccontextmanager
async def judge(listen: ListenSettings = PLAIN) -> AsyncIterator[str]:
    async with serve_judge(ScriptedEngine(prefers_help), MemoryLedger(), listen=listen) as settings:
        yield settings.target


@asynccontextmanager
async def oversight(folder: Path) -> AsyncIterator[str]:
    settings = OversightSettings.model_validate({"database_url": f"sqlite:///{folder}/ledger.sqlite", "migrate": True})
    async with serving(make_oversight(settings), PLAIN) as server:
        yield server.address


def tokens(folder: Path, role: Role) -> Path:
    row = describe_token("the-token", name="somebody", roles=[role])
    path = folder / "tokens.yaml"
    path.write_text(yaml.safe_dump([{"name": row.name, "sha256": row.sha256, "roles": [role.value]}]))
    return path


async def test_all_is_well_with_a_whole_installation(doctor: Doctor, tmp_path: Path):
    with serving_pipelines(PipelinesApi()) as host:
        async with (
            oversight(tmp_path) as ledger,
            judge(ListenSettings(metrics_address="127.0.0.1:0")) as judging,
            serving(make_reward(RewardSettings.model_validate({"judge": {"target": judging}})), PLAIN) as reward,
            serving(toy_service(ToySampler()), ListenSettings()) as metered,
        ):
            found = await doctor(
                *("--oversight", ledger, "--judge", judging, "--reward", reward.address),
                *("--artifact-root", tmp_path / "artifacts", "--host", host),
                *("--metrics", f"http://{metered.metrics_address}/metrics"),
            )
    assert [each for each in found.said.values() if each["state"] != "ok"] == []
    assert found.code == 0
    assert found.of("judge", "network")[1] == f"{judging} answers"
    assert found.of("judge", "TLS")[1] == "none, on this machine alone"
    assert found.of("judge", "constitutions")[1] == "constitutions/test"
    assert found.of("judge", "comparison")[1].startswith("second, in ")
    assert found.of("judge", "clock")[1].endswith(" s from this machine's")
    assert found.of("oversight", "ledger")[1] == "whole: 0 events, 0 labels"
    assert found.of("reward", "reward model")[1].startswith("rewardModels/judge: judge")
    assert ("reward", "reward") in found.said
    assert not list((tmp_path / "artifacts").rglob("*.safetensors")), "the probe is removed again"
    assert ("Kubeflow Pipelines", "API") in found.said
    assert "series, revision" in found.of("metrics", "metrics")[1]


async def test_all_is_well_behind_tls_and_tokens(doctor: Doctor, tmp_path: Path):
    authority, token = Authority(tmp_path), tmp_path / "token"
    token.write_text("the-token\n")
    listen = ListenSettings(
        metrics_address=None,
        tls=authority.issue("server").server(),
        tokens_path=tokens(tmp_path, Role.CALLER),
    )
    async with judge(listen) as address:
        found = await doctor("--judge", address, "--tls-ca", authority.path, "--token-file", token)
    assert found.code == 0
    assert found.of("judge", "access")[:2] == ("ok", "the token is accepted")
    state, seen, _ = found.of("judge", "TLS")
    assert state == "ok"
    assert seen.startswith("the certificate for 127.0.0.1 ends in ")


async def test_a_name_is_resolved_and_is_what_the_certificate_must_be_for(doctor: Doctor, tmp_path: Path):
    authority = Authority(tmp_path)
    async with judge(ListenSettings(metrics_address=None, tls=authority.issue("s", "localhost").server())) as address:
        port = address.rpartition(":")[2]
        for target in (f"localhost:{port}", f"dns:///localhost:{port}"):
            found = await doctor("--judge", target, "--tls-ca", authority.path)
            assert found.code == 0
            assert found.of("judge", "network")[1] == f"{target}: {address} answers"
            assert found.of("judge", "TLS")[1].startswith("the certificate for localhost ends in ")


async def test_what_is_not_there_is_told_with_what_to_look_at(doctor: Doctor):
    address = free_address()
    refused = (await doctor("--judge", address)).failure("judge", "network")
    assert f"{address} cannot be connected to: Connection refused" in refused
    assert "networkPolicy.callers" in refused
    nowhere = (await doctor("--judge", "rlaif-judge.invalid:50051")).failure("judge", "network")
    assert "rlaif-judge.invalid does not resolve" in nowhere
    assert "port-forward" in nowhere


async def test_a_service_that_loads_is_told_from_one_that_is_another(doctor: Doctor):
    loading = Server(toy_service(ToySampler()), PLAIN)
    await loading.bind()
    try:
        found = await doctor("--sampler", loading.address)
        assert "RlaifServiceNotReady" in found.failure("sampler", "health")
        found = await doctor("--judge", loading.address)
        assert "serves something else than rlaif.v1.JudgeService" in found.failure("judge", "health")
    finally:
        await loading.stop()


SECURED: Mapping[str, tuple[Callable[[Authority], Pair | None], Callable[[Authority, Path], Any], str]] = {
    "a wrong authority": (
        lambda ours: ours.issue("server"),
        lambda ours, folder: Authority(folder / "others").path,
        "signed by none of the authorities given",
    ),
    "an expired certificate": (
        lambda ours: ours.issue("expired", expired=True),
        lambda ours, folder: ours.path,
        "its certificate has expired (certificate has expired); renew the Secret of tls.existingSecret",
    ),
    "another host": (
        lambda ours: ours.issue("elsewhere", "judge.example"),
        lambda ours, folder: ours.path,
        "for another address",
    ),
    "no authority": (lambda ours: ours.issue("server"), lambda ours, folder: None, "it speaks TLS"),
    "no TLS": (lambda ours: None, lambda ours, folder: ours.path, "no TLS there"),
}


@pytest.mark.parametrize("case", SECURED)
async def test_what_is_wrong_with_tls_is_named(doctor: Doctor, tmp_path: Path, case: str):
    issue, trusted, sentence = SECURED[case]
    ours = Authority(tmp_path / "ours")
    pair, authority = issue(ours), trusted(ours, tmp_path)
    async with judge(ListenSettings(metrics_address=None, tls=pair and pair.server())) as address:
        found = await doctor("--judge", address, *(("--tls-ca", authority) if authority else ()))
    assert sentence in found.failure("judge", "TLS")


async def test_a_certificate_that_ends_soon_is_worth_a_look(doctor: Doctor, tmp_path: Path):
    import datetime

    authority = Authority(tmp_path)
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=5, hours=1)
    issued = authority.ca.issue_cert("127.0.0.1", not_after=soon)
    pair = Pair(tmp_path / "soon.pem", tmp_path / "soon.key")
    issued.private_key_pem.write_to_path(pair.key)
    issued.cert_chain_pems[0].write_to_path(pair.certificate)
    async with judge(ListenSettings(metrics_address=None, tls=pair.server())) as address:
        found = await doctor("--judge", address, "--tls-ca", authority.path)
    assert found.code == 0
    assert found.of("judge", "TLS")[:2] == ("look", "the certificate for 127.0.0.1 ends in 5 days")


async def test_a_missing_client_certificate_is_named(doctor: Doctor, tmp_path: Path):
    authority = Authority(tmp_path)
    tls = authority.issue("server").server(client_ca=authority.path)
    async with judge(ListenSettings(metrics_address=None, tls=tls)) as address:
        found = await doctor("--judge", address, "--tls-ca", authority.path)
    assert "RLAIF_TLS_CERTIFICATE and RLAIF_TLS_KEY" in found.failure("judge", "health")


async def test_who_may_not_call_is_told_which_token_would_do(doctor: Doctor, tmp_path: Path):
    listen = ListenSettings(metrics_address=None, tokens_path=tokens(tmp_path, Role.READER))
    known, other = tmp_path / "known", tmp_path / "other"
    known.write_text("the-token")
    other.write_text("another")
    async with judge(listen) as address:
        missing = (await doctor("--judge", address)).failure("judge", "access")
        assert "needs a bearer token" in missing
        assert "--token-file FILE or RLAIF_TOKEN" in missing
        unknown = (await doctor("--judge", address, "--token-file", other)).failure("judge", "access")
        assert "tokens.existingSecret" in unknown
        found = await doctor("--judge", address, "--token-file", known)
        assert found.of("judge", "access")[0] == "ok"
        wrong = found.failure("judge", "comparison")
        assert "token:somebody may not call" in wrong
        assert "use a token with the role caller or trainer or admin" in wrong
    assert "the-token" not in json.dumps(list(found.said.values()))


async def test_an_altered_ledger_is_a_failure(doctor: Doctor, tmp_path: Path):
    async with oversight(tmp_path) as address:
        await asyncio.to_thread(_record, address)
        with sqlite3.connect(tmp_path / "ledger.sqlite", timeout=30) as connection:
            connection.execute("DROP TRIGGER IF EXISTS events_refuse_update")
            connection.execute("UPDATE events SET subject = 'somewhere else' WHERE sequence = 1")
        connection.close()
        found = await doctor("--oversight", address)
    assert found.failure("oversight", "ledger").startswith("broken at events/1: altered; stop trainings")


def _record(address: str) -> None:
    from rlaif.client.ledger import LedgerClient
    from rlaif.runtime.settings import ClientSettings

    with LedgerClient(ClientSettings(target=address)) as ledger:
        ledger.record_event("noted", subject="somewhere", payload={})


async def test_a_judge_that_abstains_works_and_is_worth_a_look(doctor: Doctor):
    async with serve_judge(ScriptedEngine(lambda context, question: (0.001, 0.001)), MemoryLedger()) as settings:
        found = await doctor("--judge", settings.target)
    assert found.code == 0
    state, seen, fix = found.of("judge", "comparison")
    assert state == "look"
    assert seen.startswith("it abstains (low_verdict_mass), in ")
    assert "RlaifAbstentionsHigh" in fix


async def test_what_stands_beside_the_services_is_looked_at_alone_too(doctor: Doctor, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    found = await doctor("--artifact-root", tmp_path / "file")
    assert "docs/artifacts.md" in found.failure("artifact root", "writing")
    found = await doctor("--host", f"http://{free_address()}")
    assert "docs/submit.md" in found.failure("Kubeflow Pipelines", "API")
    found = await doctor("--metrics", f"http://{free_address()}/metrics")
    assert "networkPolicy.monitoring" in found.failure("metrics", "metrics")


def test_nothing_to_look_at_is_wrong_input(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert execute(["doctor", "--state", str(tmp_path)]) == 2
    assert "give --judge HOST:PORT and others, or start some by rlaif up" in capsys.readouterr().err
    assert execute(["doctor", "--metrics", "localhost:9090"]) == 2
    (tmp_path / "ca").write_text("none")
    assert execute(["doctor", "--judge", "127.0.0.1:1", "--tls-ca", str(tmp_path / "ca")]) == 2
    assert "holds no PEM certificates" in capsys.readouterr().err
    assert execute(["doctor", "--judge", "127.0.0.1:1", "--token-file", str(tmp_path / "token")]) == 2
    assert execute(["doctor", "--judge", "judge"]) == 2
    assert execute(["doctor", "--artifact-root", "ftp://models"]) == 2
    assert execute(["doctor", "--host", "nowhere"]) == 2


async def test_a_person_gets_a_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    async with judge() as address:
        assert await asyncio.to_thread(execute, ["doctor", "--judge", address, "--reward", free_address()]) == 1
    said = capsys.readouterr().out
    [refused] = [line for line in said.splitlines() if "✗" in line]
    assert "Connection refused" in refused
    assert said.count("judge") >= 1
    assert "✓" in said
