"""Tokens and roles: who may call what, what the others are told, and tokens that are replaced while calls go on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from rlaif.client.channel import open_aio_channel
from rlaif.core.errors import ForbiddenError, SettingsError, UnauthenticatedError
from rlaif.runtime.roles import METHOD_ROLES, Role
from rlaif.runtime.server import serving
from rlaif.runtime.settings import ClientSettings, ListenSettings
from rlaif.runtime.telemetry import REGISTRY
from rlaif.runtime.tokens import describe_token
from rlaif.v1 import (
    judge_service_pb2,
    ledger_service_pb2,
    review_service_pb2,
    reward_service_pb2,
    sampler_service_pb2_grpc,
)
from rlaif.v1 import sampler_service_pb2 as pb
from tls_fixtures import Authority, MountedSecret, until
from toy_load import calling_on
from toy_service import ToySampler, toy_service

SERVICES = [
    module.DESCRIPTOR.services_by_name[name]
    for module in (judge_service_pb2, ledger_service_pb2, review_service_pb2, reward_service_pb2, pb)
    for name in module.DESCRIPTOR.services_by_name
]
HOLDERS = {"alice": "reader", "bob": "caller", "carol": "trainer", "dave": "reviewer", "eve": "admin"}


def secret_of(name: str) -> str:
    return f"secret-of-{name}"


def row(name: str, role: str, token: str = "") -> dict[str, Any]:
    made = describe_token(token or secret_of(name), name=name, roles=[Role(role)])
    return {"name": made.name, "sha256": made.sha256, "roles": [role]}


def rows(*names: str) -> bytes:
    return yaml.safe_dump([row(name, HOLDERS[name]) for name in names]).encode()


def bearer(token: str) -> tuple[tuple[str, str]]:
    return (("authorization", f"Bearer {token}"),)


@dataclass(frozen=True)
class Guarded:
    """A service that knows the holders by their tokens."""

    address: str
    metrics_address: str | None
    channel: grpc.aio.Channel
    stub: Any


@asynccontextmanager
async def guarded(folder: Path, *, tokens: bytes = b"", **listen: Any) -> AsyncIterator[Guarded]:
    path = folder / "tokens.yaml"
    path.write_bytes(tokens or rows(*HOLDERS))
    settings = ListenSettings.model_validate({"metrics_address": None, "tokens_path": path, **listen})
    async with (
        serving(toy_service(ToySampler()), settings) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        stub = sampler_service_pb2_grpc.SamplerServiceStub(channel)
        yield Guarded(server.address, server.metrics_address, channel, stub)


async def get_policy(stub: Any, metadata: Sequence[tuple[str, str]]) -> Any:
    return await stub.GetPolicy(pb.GetPolicyRequest(), metadata=metadata)


async def stream(stub: Any, metadata: Sequence[tuple[str, str]]) -> Any:
    return [each async for each in stub.StreamCompletions(pb.StreamCompletionsRequest(), metadata=metadata)]


async def load_policy(stub: Any, metadata: Sequence[tuple[str, str]]) -> Any:
    return await stub.LoadPolicy(pb.LoadPolicyRequest(), metadata=metadata)


async def actor(stub: Any, metadata: Sequence[tuple[str, str]] = ()) -> str:
    return str(json.loads((await get_policy(stub, metadata)).policy.name)["actor"])


async def refusal(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str, str]:
    """Code, ErrorInfo's reason and sentence of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    (value,) = [value for key, value in caught.value.trailing_metadata() if key == "grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(value).details[0].Unpack(info)
    return caught.value.code(), info.reason, caught.value.details() or ""


TOY = "rlaif.v1.SamplerService"
MISSING = "the call needs a bearer token in its authorization metadata"
MALFORMED = "the authorization metadata must be: Bearer TOKEN"
UNKNOWN = "the bearer token is not one that this service knows"
CASES: dict[str, tuple[Callable[..., Awaitable[Any]], Any, grpc.StatusCode, str, str]] = {
    "no token": (get_policy, (), grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING", MISSING),
    "another scheme": (
        get_policy,
        (("authorization", f"Basic {secret_of('alice')}"),),
        grpc.StatusCode.UNAUTHENTICATED,
        "TOKEN_MALFORMED",
        MALFORMED,
    ),
    "no scheme": (
        get_policy,
        (("authorization", secret_of("alice")),),
        grpc.StatusCode.UNAUTHENTICATED,
        "TOKEN_MALFORMED",
        MALFORMED,
    ),
    "nothing after the scheme": (
        get_policy,
        (("authorization", "Bearer "),),
        grpc.StatusCode.UNAUTHENTICATED,
        "TOKEN_MALFORMED",
        MALFORMED,
    ),
    "two words": (get_policy, bearer("a b"), grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MALFORMED", MALFORMED),
    "wrong token": (get_policy, bearer("wrong"), grpc.StatusCode.UNAUTHENTICATED, "TOKEN_UNKNOWN", UNKNOWN),
    "the digest as the token": (
        get_policy,
        bearer(row("eve", "admin")["sha256"]),
        grpc.StatusCode.UNAUTHENTICATED,
        "TOKEN_UNKNOWN",
        UNKNOWN,
    ),
    "wrong token, stream": (stream, bearer("wrong"), grpc.StatusCode.UNAUTHENTICATED, "TOKEN_UNKNOWN", UNKNOWN),
    "a reader asks a model": (
        stream,
        bearer(secret_of("alice")),
        grpc.StatusCode.PERMISSION_DENIED,
        "ROLE_MISSING",
        f"token:alice may not call {TOY}.StreamCompletions: that needs the role caller, trainer or admin",
    ),
    "a caller loads a model": (
        load_policy,
        bearer(secret_of("bob")),
        grpc.StatusCode.PERMISSION_DENIED,
        "ROLE_MISSING",
        f"token:bob may not call {TOY}.LoadPolicy: that needs the role trainer or admin",
    ),
}


async def test_who_may_not_call_is_told_what_is_missing(tmp_path: Path) -> None:
    async with guarded(tmp_path) as service:
        for case, (call, metadata, *expected) in CASES.items():
            assert list(await refusal(call(service.stub, metadata))) == expected, case
        (tmp_path / "bob").write_text(secret_of("bob"))
        client = ClientSettings(target=service.address, token_path=tmp_path / "bob")
        async with open_aio_channel(client) as channel:
            with pytest.raises(ForbiddenError) as caught:
                await load_policy(sampler_service_pb2_grpc.SamplerServiceStub(channel), ())
        assert caught.value.metadata["roles_needed"] == "trainer,admin"


async def test_a_caller_is_known_by_the_name_of_its_token(tmp_path: Path) -> None:
    async with guarded(tmp_path) as service:
        for name in HOLDERS:
            assert await actor(service.stub, bearer(secret_of(name))) == f"token:{name}"
        for name in ("bob", "carol", "eve"):
            assert len(await stream(service.stub, bearer(secret_of(name)))) == 3
        for name in ("carol", "eve"):
            assert await refusal(load_policy(service.stub, bearer(secret_of(name)))) == (
                grpc.StatusCode.UNIMPLEMENTED,
                "NOT_SERVED",
                "SamplerService.LoadPolicy is not served by this toy service",
            )


def test_every_method_has_its_row_and_an_admin_may_call_it() -> None:
    methods = {method.full_name for service in SERVICES for method in service.methods}
    assert set(METHOD_ROLES) == methods
    assert all(Role.ADMIN in roles for roles in METHOD_ROLES.values())
    assert len(SERVICES) == 5


def test_only_reviewers_and_admins_decide_and_readers_change_nothing() -> None:
    verbs = {role: {name.rsplit(".", 1)[1] for name, may in METHOD_ROLES.items() if role in may} for role in Role}
    assert verbs[Role.ADMIN] - verbs[Role.TRAINER] == {
        "ClaimReview",
        "SubmitReview",
        "ResolveAppeal",
        "ResolveIncident",
    }
    assert all(verb.startswith(("Get", "List", "Lookup", "Export", "Verify")) for verb in verbs[Role.READER])
    assert not {"SampleCompletions", "LoadPolicy", "RecordLabels"} & verbs[Role.REVIEWER]
    assert not {"ExportLabels", "ListEvents", "LoadPolicy", "RecordLabels", "RecordEvent"} & verbs[Role.CALLER]


@pytest.mark.parametrize(
    ("address", "tokens", "warned"),
    [("0.0.0.0:0", False, True), ("0.0.0.0:0", True, False), ("127.0.0.1:0", False, False)],
)
async def test_a_service_that_anyone_may_call_from_elsewhere_says_so(
    address: str, tokens: bool, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with guarded(tmp_path, address=address, **({} if tokens else {"tokens_path": None})):
        pass
    assert ("anyone who reaches the address may call" in caplog.text) == warned


async def test_health_is_open_and_reflection_needs_any_token(tmp_path: Path) -> None:
    async with guarded(tmp_path) as service:
        health = health_pb2_grpc.HealthStub(service.channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING

        async def reflect(metadata: Sequence[tuple[str, str]]) -> Any:
            requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
            stub = reflection_pb2_grpc.ServerReflectionStub(service.channel)
            return await anext(aiter(stub.ServerReflectionInfo(requests, metadata=metadata)))

        assert (await refusal(reflect(())))[1] == "TOKEN_MISSING"
        assert (await refusal(reflect(bearer("wrong"))))[1] == "TOKEN_UNKNOWN"
        assert (await reflect(bearer(secret_of("alice")))).list_services_response.service


async def test_the_one_token_of_before_is_an_admins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("the-admins\n")
    async with guarded(tmp_path, token_path=tmp_path / "token") as service:
        assert (await actor(service.stub, bearer("the-admins"))).startswith("token:")
        assert (await refusal(load_policy(service.stub, bearer("the-admins"))))[1] == "NOT_SERVED"
        assert await actor(service.stub, bearer(secret_of("bob"))) == "token:bob"
    monkeypatch.setenv("RLAIF_TOKEN", "what-this-service-sends")
    async with guarded(tmp_path) as service:
        assert (await refusal(actor(service.stub, bearer("what-this-service-sends"))))[1] == "TOKEN_UNKNOWN"
    async with guarded(tmp_path, tokens_path=None) as service:
        assert (await refusal(load_policy(service.stub, bearer("what-this-service-sends"))))[1] == "NOT_SERVED"
        assert (await refusal(load_policy(service.stub, ())))[1] == "TOKEN_MISSING"


async def test_a_certificate_that_is_listed_stands_for_a_token(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    listed, unlisted = authority.issue("judge"), authority.issue("somebody")
    tls = authority.issue("server").server(client_ca=authority.path)
    certificates = [{"common_name": "judge", "roles": ["reader"]}]
    (tmp_path / "token").write_text(secret_of("bob"))

    async def ask(service: Guarded, call: Callable[..., Awaitable[Any]], **client: Any) -> Any:
        settings = ClientSettings(target=service.address, tls_ca_path=authority.path, timeout_seconds=20, **client)
        async with open_aio_channel(settings) as channel:
            return await call(sampler_service_pb2_grpc.SamplerServiceStub(channel), ())

    async with guarded(tmp_path, tls=tls, certificates=certificates) as service:
        assert await ask(service, actor, **listed.client()) == "certificate:judge"
        with pytest.raises(ForbiddenError, match="certificate:judge may not call"):
            await ask(service, stream, **listed.client())
        # Whoever sends a token is who the token says.
        assert await ask(service, actor, **listed.client(), token_path=tmp_path / "token") == "token:bob"
        with pytest.raises(UnauthenticatedError, match="needs a bearer token"):
            await ask(service, actor, **unlisted.client())
    async with guarded(tmp_path, tls=tls, certificates=certificates, tokens_path=None) as service:
        with pytest.raises(UnauthenticatedError, match=r"certificate is not among listen\.certificates"):
            await ask(service, actor, **unlisted.client())


async def test_tokens_replaced_under_load_drop_no_call_and_a_revoked_one_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlaif.runtime.reloading._INTERVAL_SECONDS", 0.01)
    monkeypatch.setattr("rlaif.runtime.watched_files._LOOK_SECONDS", 0)
    server_side, client_side = MountedSecret(tmp_path / "server"), MountedSecret(tmp_path / "client")
    old, new = row("bob", "caller", "old-token"), row("bob", "caller", "new-token")
    server_side.write(tokens_yaml=yaml.safe_dump([old]).encode())
    client_side.write(token=b"old-token\n")
    async with guarded(tmp_path, tokens_path=server_side["tokens_yaml"]) as service, asyncio.timeout(60):
        client = ClientSettings(target=service.address, token_path=client_side["token"], timeout_seconds=20)

        async def list_tokens(*listed: dict[str, Any]) -> None:
            num_reloads = _reloads()
            server_side.write(tokens_yaml=yaml.safe_dump(list(listed)).encode())
            await until(lambda: _reloads() > num_reloads)

        async with calling_on(client, actor="token:bob") as go_on:
            await go_on()
            await list_tokens(old, new)
            await go_on()
            client_side.write(token=b"new-token\n")
            await go_on()
            await list_tokens(new)
            await go_on()
            assert (await refusal(actor(service.stub, bearer("old-token"))))[1] == "TOKEN_UNKNOWN"
        await list_tokens()
        assert (await refusal(actor(service.stub, bearer("new-token"))))[1] == "TOKEN_UNKNOWN"


GOOD = row("bob", "caller")
WRONG_LISTS: dict[str, tuple[Any, str]] = {
    "a token in place of its digest": (
        GOOD | {"sha256": "the-secret"},
        "row 2: sha256 must be 64 lower-case",
    ),
    "a token as a row": ("the-secret", "row 2: name, sha256 and roles are expected"),
    "a token beside the rest": (
        GOOD | {"token": "the-secret"},
        "row 2: unknown key; known keys: name",
    ),
    "an unknown role": (GOOD | {"roles": ["the-secret"]}, "row 2: roles must list at least one of reader, caller, tra"),
    "no role": (GOOD | {"roles": []}, "row 2: roles must list at least one of"),
    "no name": ({key: value for key, value in GOOD.items() if key != "name"}, "row 2: name is required"),
    "a name of two words": (GOOD | {"name": "the-secret x"}, "row 2: name must be 1 to 63 letters"),
    "one token twice": (row("eve", "admin"), "one sha256 is listed twice, the last time for eve"),
    "a token as a key": (GOOD | {"the-secret": ["admin"]}, "row 2: unknown key; known keys: name, sha256, roles"),
}


@pytest.mark.parametrize("case", WRONG_LISTS)
async def test_a_wrong_list_is_refused_at_start_without_repeating_what_may_be_a_secret(
    tmp_path: Path, case: str
) -> None:
    wrong, sentence = WRONG_LISTS[case]
    content = yaml.safe_dump([row("eve", "admin"), wrong]).encode()
    with pytest.raises(SettingsError) as caught:
        async with guarded(tmp_path, tokens=content):
            pytest.fail("served with a wrong list")
    assert f"listen.tokens_path: {tmp_path}/tokens.yaml: {sentence}" in caught.value.message
    assert "the-secret" not in repr(caught.value.__cause__) + caught.value.message


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"name: x\n", "must hold a list of name, sha256 and roles"),
        (b"\n", "must hold a list of name, sha256 and roles"),
        (b"- {name: x\n", "tokens.yaml, line 2: "),
        (b"\xff", "is not UTF-8"),
        (b"- *the-secret\n", "tokens.yaml, line 1: this cannot be read as YAML"),
        (b"- {the-secret: 1, the-secret: 2}\n", "tokens.yaml, line 1: this cannot be read as YAML"),
        (b"- !the-secret x\n", "tokens.yaml, line 1: this cannot be read as YAML"),
        (b"- !!int the-secret\n", "tokens.yaml cannot be read as YAML"),
        (b"- 2026-13-45\n", "tokens.yaml cannot be read as YAML"),
        (b"[" * 5000, "tokens.yaml cannot be read as YAML"),
    ],
)
async def test_a_file_that_is_no_list_is_refused_at_start(tmp_path: Path, content: bytes, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence) as caught:
        async with guarded(tmp_path, tokens=content):
            pytest.fail("served with a wrong list")
    assert "the-secret" not in repr(caught.value.__cause__) + caught.value.message


async def test_after_a_file_that_makes_a_library_fail_a_token_can_still_be_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlaif.runtime.reloading._INTERVAL_SECONDS", 0.01)
    async with guarded(tmp_path) as service, asyncio.timeout(20):
        failed, taken_up = _failures(), _reloads()
        (tmp_path / "tokens.yaml").write_bytes(b"- {name: 2026-13-45}\n")
        await until(lambda: _failures() > failed)
        assert await actor(service.stub, bearer(secret_of("bob"))) == "token:bob"
        (tmp_path / "tokens.yaml").write_bytes(rows("alice"))
        await until(lambda: _reloads() > taken_up)
        assert (await refusal(actor(service.stub, bearer(secret_of("bob")))))[1] == "TOKEN_UNKNOWN"


async def test_an_empty_variable_does_not_open_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAIF_TOKEN", "")
    with pytest.raises(SettingsError, match="RLAIF_TOKEN is set and holds nothing"):
        async with serving(toy_service(ToySampler()), ListenSettings(metrics_address=None)):
            pytest.fail("served without a token")


@pytest.mark.parametrize(
    ("listen", "sentence"),
    [
        ({"metrics_tls": True}, "metrics_tls needs tls"),
        ({"certificates": [{"common_name": "x", "roles": ["reader"]}]}, "certificates needs tls.client_ca_path"),
        ({"tokens_path": "/absent/tokens.yaml"}, "listen.tokens_path: cannot read /absent/tokens.yaml"),
        ({"metrics_token": True}, "listen.metrics_token needs tokens"),
    ],
)
async def test_settings_that_need_others_say_which(listen: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        async with serving(toy_service(ToySampler()), ListenSettings.model_validate(listen)):
            pytest.fail("served")


async def test_metrics_are_for_readers_where_they_ask_for_a_token(tmp_path: Path) -> None:
    async with guarded(tmp_path, metrics_address="127.0.0.1:0", metrics_token=True) as service:
        assert service.metrics_address is not None
        host, port = service.metrics_address.split(":")
        for authorization, status, said in (
            ([], "401 Unauthorized", MISSING),
            (["Authorization: Basic x"], "401 Unauthorized", MALFORMED),
            (["Authorization: Bearer wrong"], "401 Unauthorized", UNKNOWN),
            ([f"Authorization: Bearer {secret_of('bob')}"], "403 Forbidden", "the role reader or admin"),
            ([f"authorization: bearer {secret_of('alice')}"], "200 OK", "rlaif_toy_requests_total"),
        ):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write("\r\n".join(["GET /metrics HTTP/1.1", *authorization, "", ""]).encode())
            answer = (await reader.read()).decode()
            writer.close()
            assert answer.split("\r\n")[0] == f"HTTP/1.1 {status}"
            assert ("WWW-Authenticate: Bearer" in answer) == status.startswith("401")
            assert said in answer


def _reloads() -> float:
    return REGISTRY.get_sample_value("rlaif_runtime_reloads_total", {"source": "tokens"}) or 0.0


def _failures() -> float:
    return REGISTRY.get_sample_value("rlaif_runtime_reload_failures_total", {"source": "tokens"}) or 0.0


def test_the_documented_table_is_the_codes() -> None:
    documented: dict[str, frozenset[Role]] = {}
    for line in (Path(__file__).parents[2] / "docs" / "security.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 6 and cells[0].endswith("Service"):
            roles = {role for role, mark in zip(Role, cells[2:], strict=False) if mark == "x"} | {Role.ADMIN}
            documented |= {f"rlaif.v1.{cells[0]}.{method}": frozenset(roles) for method in cells[1].split(", ")}
    assert documented == METHOD_ROLES
