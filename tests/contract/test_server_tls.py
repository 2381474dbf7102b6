"""TLS: who is served, what the others are told, and certificates that are replaced while calls go on."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rlaif.client.channel import open_aio_channel, open_channel
from rlaif.core.errors import SettingsError, UnavailableError
from rlaif.runtime.server import Server, serving
from rlaif.runtime.settings import ClientSettings, ListenSettings, TlsSettings
from rlaif.runtime.telemetry import REGISTRY
from rlaif.v1 import sampler_service_pb2 as pb
from rlaif.v1 import sampler_service_pb2_grpc
from tls_fixtures import Authority, MountedSecret, Pair, until
from toy_load import calling_on
from toy_service import NAME, ToySampler, toy_service

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class World:
    """Two authorities, and pairs that one of them signed."""

    def __init__(self, folder: Path) -> None:
        ours, others = Authority(folder / "ours"), Authority(folder / "others")
        self.ca, self.other_ca = ours.path, others.path
        self.server = ours.issue("server")
        self.expired_server = ours.issue("expired-server", expired=True)
        self.elsewhere = ours.issue("elsewhere", "judge.example")
        self.client = ours.issue("client")
        self.expired_client = ours.issue("expired-client", expired=True)
        self.stranger = others.issue("client")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("tls"))


def listen(tls: TlsSettings | None, **others: Any) -> ListenSettings:
    return ListenSettings(metrics_address=None, tls=tls, **others)


async def ask_actor(channel: grpc.aio.Channel) -> str:
    stub = sampler_service_pb2_grpc.SamplerServiceStub(channel)
    return str(json.loads((await stub.GetPolicy(pb.GetPolicyRequest())).policy.name)["actor"])


async def call(tls: TlsSettings | None, client: dict[str, Any], **others: Any) -> str:
    """The actor that a service says a client is."""
    async with (
        serving(toy_service(ToySampler()), listen(tls, **others)) as server,
        open_aio_channel(ClientSettings(target=server.address, timeout_seconds=20, **client)) as channel,
    ):
        return await ask_actor(channel)


SERVED: dict[str, tuple[Callable[[World], TlsSettings], Callable[[World], dict[str, Any]], str]] = {
    "who trusts the authority": (lambda w: w.server.server(), lambda w: {"tls_ca_path": w.ca}, "anonymous"),
    "who expects the name in the certificate": (
        lambda w: w.elsewhere.server(),
        lambda w: {"tls_ca_path": w.ca, "tls_server_name": "judge.example"},
        "anonymous",
    ),
    "who shows a certificate": (
        lambda w: w.server.server(client_ca=w.ca),
        lambda w: {"tls_ca_path": w.ca, **w.client.client()},
        "certificate:client",
    ),
}


@pytest.mark.parametrize("case", SERVED)
async def test_a_client_is_served(world: World, case: str) -> None:
    server, client, actor = SERVED[case]
    assert await call(server(world), client(world)) == actor


REFUSED: dict[str, tuple[Callable[[World], TlsSettings | None], Callable[[World], dict[str, Any]], str]] = {
    "wrong authority": (
        lambda w: w.server.server(),
        lambda w: {"tls_ca_path": w.other_ca},
        "its certificate is signed by none of the authorities in tls_ca_path",
    ),
    "expired server": (
        lambda w: w.expired_server.server(),
        lambda w: {"tls_ca_path": w.ca},
        "its certificate has expired",
    ),
    "another host": (
        lambda w: w.elsewhere.server(),
        lambda w: {"tls_ca_path": w.ca},
        "its certificate is for another host; tls_server_name says which to expect",
    ),
    "TLS to plaintext": (
        lambda w: None,
        lambda w: {"tls_ca_path": w.ca},
        "it speaks no TLS there, and tls_ca_path asks for it",
    ),
    "plaintext to TLS": (lambda w: w.server.server(), lambda w: {}, "it may speak TLS only"),
    "no client certificate": (
        lambda w: w.server.server(client_ca=w.ca),
        lambda w: {"tls_ca_path": w.ca},
        "clients with a certificate of an authority it knows",
    ),
    "client of another authority": (
        lambda w: w.server.server(client_ca=w.ca),
        lambda w: {"tls_ca_path": w.ca, **w.stranger.client()},
        "clients with a certificate of an authority it knows",
    ),
    "expired client": (
        lambda w: w.server.server(client_ca=w.ca),
        lambda w: {"tls_ca_path": w.ca, **w.expired_client.client()},
        "clients with a certificate of an authority it knows",
    ),
}


async def test_a_client_that_is_not_served_is_told_why_and_what_to_set(world: World) -> None:
    # All at once: each is tried five times before its client gives up.
    calls = (call(server(world), client(world)) for server, client, _ in REFUSED.values())
    refusals = await asyncio.gather(*calls, return_exceptions=True)
    for (case, (_, _, sentence)), refusal in zip(REFUSED.items(), refusals, strict=True):
        assert isinstance(refusal, UnavailableError), case
        assert "cannot be reached" in refusal.message, case
        assert sentence in refusal.message, case


WRONG_FILES: dict[str, tuple[Callable[[World], dict[str, Any]], str]] = {
    "key of another": (
        lambda w: {"certificate_path": w.server.certificate, "key_path": w.client.key},
        "client.key is not the key of",
    ),
    "certificate for a key": (
        lambda w: {"certificate_path": w.server.certificate, "key_path": w.ca},
        "holds no PEM private key without a password",
    ),
    "key for a certificate": (
        lambda w: {"certificate_path": w.server.key, "key_path": w.server.key},
        "holds no PEM certificates",
    ),
    "no file": (
        lambda w: {"certificate_path": w.server.certificate, "key_path": w.ca.parent / "absent"},
        r"listen\.tls\.key_path: cannot read .*absent: No such file",
    ),
    "key for an authority": (
        lambda w: {
            "certificate_path": w.server.certificate,
            "key_path": w.server.key,
            "client_ca_path": w.server.key,
        },
        r"listen\.tls\.client_ca_path: .* holds no PEM certificates",
    ),
}


@pytest.mark.parametrize("case", WRONG_FILES)
async def test_files_that_are_no_certificate_and_its_key_are_refused_at_start(world: World, case: str) -> None:
    paths, sentence = WRONG_FILES[case]
    with pytest.raises(SettingsError, match=sentence):
        async with serving(toy_service(ToySampler()), listen(TlsSettings(**paths(world)))):
            pytest.fail("served with wrong files")


@pytest.mark.parametrize(
    ("paths", "sentence"),
    [
        (lambda w: {"tls_ca_path": w.client.key}, "tls_ca_path: .* holds no PEM certificates"),
        (lambda w: {"tls_ca_path": w.ca.parent / "absent"}, "tls_ca_path: cannot read"),
        (
            lambda w: {"tls_ca_path": w.ca, **Pair(w.client.certificate, w.server.key).client()},
            "tls_certificate_path: .* are no PEM certificate and its key",
        ),
    ],
)
def test_a_client_with_wrong_files_is_told_before_it_calls(
    world: World, paths: Callable[[World], dict[str, Any]], sentence: str
) -> None:
    with pytest.raises(SettingsError, match=sentence):
        open_channel(ClientSettings(target="127.0.0.1:1", **paths(world)))


async def test_certificates_replaced_under_load_drop_no_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlaif.runtime.reloading._INTERVAL_SECONDS", 0.01)
    monkeypatch.setattr("rlaif.runtime.watched_files._LOOK_SECONDS", 0)
    authorities = [Authority(tmp_path / str(number)) for number in range(2)]
    bundle = b"".join(authority.path.read_bytes() for authority in authorities)
    secret = MountedSecret(tmp_path / "mounted")

    def put(authority: Authority, *, trusted: bytes) -> None:
        certificate, key = authority.make("rotated")
        secret.write(ca_crt=trusted, tls_crt=certificate, tls_key=key)

    put(authorities[0], trusted=authorities[0].path.read_bytes())
    pair = Pair(secret["tls_crt"], secret["tls_key"])
    settings = listen(pair.server(client_ca=secret["ca_crt"]), max_connection_age_seconds=0.1)
    async with serving(toy_service(ToySampler()), settings) as server:
        client = ClientSettings(
            target=server.address, tls_ca_path=secret["ca_crt"], timeout_seconds=20, **pair.client()
        )

        async def stream_through() -> list[int]:
            async with open_aio_channel(client) as channel:
                stub = sampler_service_pb2_grpc.SamplerServiceStub(channel)
                request = pb.StreamCompletionsRequest(policy="sleep:0.5")
                return [answer.completion.index async for answer in stub.StreamCompletions(request)]

        streaming = asyncio.create_task(stream_through())
        async with asyncio.timeout(60), calling_on(client, actor="certificate:rotated") as go_on:

            async def replace(authority: Authority, *, trusted: bytes) -> None:
                num_reloads = _reloads("certificates")
                put(authority, trusted=trusted)
                await until(lambda: _reloads("certificates") > num_reloads)
                await go_on()

            # What both sides trust grows before either shows what the other did not trust, then shrinks.
            await replace(authorities[0], trusted=bundle)
            await replace(authorities[1], trusted=bundle)
            await replace(authorities[1], trusted=authorities[1].path.read_bytes())
        await asyncio.to_thread(_serial, authorities[1], server.address, pair=pair)
        assert await streaming == [0, 1, 2]


async def test_a_pair_that_is_half_written_leaves_the_old_one_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("rlaif.runtime.reloading._INTERVAL_SECONDS", 0.01)
    caplog.set_level("INFO")
    authority = Authority(tmp_path)
    pair = authority.issue("server")
    client = ClientSettings(target="x:1", tls_ca_path=authority.path, timeout_seconds=20)
    async with serving(toy_service(ToySampler()), listen(pair.server())) as server, asyncio.timeout(20):
        taken_up, failed = _reloads("certificates"), _failures()
        expiry = REGISTRY.get_sample_value(
            "rlaif_runtime_certificate_expiry_timestamp_seconds", {"certificate": "server"}
        )
        assert expiry is not None
        old_serial = await asyncio.to_thread(_serial, authority, server.address)
        certificate, key = authority.make("server")
        pair.certificate.write_bytes(certificate[: len(certificate) // 2])
        await until(lambda: _failures() >= failed + 3)
        pair.certificate.write_bytes(certificate)
        await until(lambda: len(_told(caplog)) == 2)
        async with open_aio_channel(client.model_copy(update={"target": server.address})) as channel:
            assert await ask_actor(channel) == "anonymous"
        assert await asyncio.to_thread(_serial, authority, server.address) == old_serial
        pair.key.write_bytes(key)
        await until(lambda: _reloads("certificates") > taken_up)
        assert await asyncio.to_thread(_serial, authority, server.address) != old_serial
    told = _told(caplog)
    assert len(told) == 2, "each state of the files is told once, not at each look"
    assert told[0].endswith("holds no PEM certificates")
    assert told[1].endswith(f"is not the key of {pair.certificate}")


async def test_metrics_are_served_over_tls_with_the_current_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlaif.runtime.reloading._INTERVAL_SECONDS", 0.01)
    authority = Authority(tmp_path)
    pair = authority.issue("server")
    settings = ListenSettings(tls=pair.server(), metrics_tls=True)
    async with serving(toy_service(ToySampler(), name="secured"), settings) as server, asyncio.timeout(20):
        assert server.metrics_address is not None
        host, port = server.metrics_address.split(":")

        async def scrape() -> tuple[str, str]:
            context = ssl.create_default_context(cafile=authority.path)
            reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            text = (await reader.read()).decode()
            serial = writer.get_extra_info("peercert")["serialNumber"]
            writer.close()
            return text, serial

        taken_up = _reloads("certificates")
        text, serial = await scrape()
        assert text.startswith("HTTP/1.1 200 OK")
        assert "rlaif_secured_requests_in_flight 0.0" in text
        authority.issue("server")
        await until(lambda: _reloads("certificates") > taken_up)
        assert (await scrape())[1] != serial


async def test_connections_that_are_too_old_are_replaced_without_a_call_being_lost() -> None:
    servicer = ToySampler()
    settings = listen(None, max_connection_age_seconds=0.05)
    async with (
        serving(toy_service(servicer), settings) as server,
        open_aio_channel(ClientSettings(target=server.address)) as channel,
        asyncio.timeout(60),
    ):
        stub = sampler_service_pb2_grpc.SamplerServiceStub(channel)
        slow = asyncio.ensure_future(stub.GetPolicy(pb.GetPolicyRequest(name="sleep:0.5")))
        while not slow.done() or len(servicer.peers) < 5:
            await asyncio.gather(*(stub.GetPolicy(pb.GetPolicyRequest()) for _ in range(10)))
        await slow


async def test_probes_that_speak_no_tls_read_health_on_a_port_that_serves_nothing_else(world: World) -> None:
    server = Server(toy_service(ToySampler()), listen(world.server.server(), health_address="127.0.0.1:0"))
    await server.bind()
    assert server.health_address is not None
    async with grpc.aio.insecure_channel(server.health_address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=NAME)
        assert (await health.Check(request)).status == NOT_SERVING
        await server.start()
        assert (await health.Check(request)).status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await sampler_service_pb2_grpc.SamplerServiceStub(channel).GetPolicy(pb.GetPolicyRequest())
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        await server.stop()


def _reloads(source: str) -> float:
    return REGISTRY.get_sample_value("rlaif_runtime_reloads_total", {"source": source}) or 0.0


def _failures() -> float:
    return REGISTRY.get_sample_value("rlaif_runtime_reload_failures_total", {"source": "certificates"}) or 0.0


def _told(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = [each for each in caplog.records if each.getMessage().startswith("changed files cannot be used")]
    return [record.rlaif_fields["error"] for record in records]  # type: ignore[attr-defined]


def _serial(authority: Authority, address: str, *, pair: Pair | None = None) -> str:
    """Serial number of the certificate that a new connection is shown."""
    context = ssl.create_default_context(cafile=authority.path)
    context.set_alpn_protocols(["h2"])
    if pair is not None:
        context.load_cert_chain(pair.certificate, pair.key)
    host, port = address.split(":")
    with (
        closing(socket.create_connection((host, int(port)), timeout=10)) as raw,
        context.wrap_socket(raw, server_hostname=host) as connection,
    ):
        peer = connection.getpeercert()
    assert peer is not None
    return str(peer["serialNumber"])
