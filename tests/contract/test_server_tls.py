"""TLS, and clients known by their certificates."""

from __future__ import annotations

import datetime
import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rlaif.client.channel import open_aio_channel
from rlaif.core.errors import SettingsError, UnavailableError
from rlaif.runtime.server import Server, serving
from rlaif.runtime.settings import ClientSettings, ListenSettings, TlsSettings
from rlaif.v1 import sampler_service_pb2 as pb
from rlaif.v1 import sampler_service_pb2_grpc
from toy_service import NAME, ToySampler, toy_service

Key = ec.EllipticCurvePrivateKey


@dataclass(frozen=True)
class Files:
    """Where certificates lie: an authority, a server and a client it signed."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path


def issue(name: str, *, issuer: x509.Certificate | None, issuer_key: Key | None) -> tuple[x509.Certificate, Key]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
    )
    return builder.sign(issuer_key or key, hashes.SHA256()), key


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("tls")
    authority, authority_key = issue("authority", issuer=None, issuer_key=None)
    (folder / "ca.pem").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    for name in ("server", "client"):
        certificate, key = issue(name, issuer=authority, issuer_key=authority_key)
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
    paths = [folder / name for name in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key")]
    return Files(*paths)


async def ask_actor(client: ClientSettings) -> str:
    async with open_aio_channel(client) as channel:
        stub = sampler_service_pb2_grpc.SamplerServiceStub(channel)
        answer = await stub.GetPolicy(pb.GetPolicyRequest(), timeout=5)
        return str(json.loads(answer.policy.name)["actor"])


def listen(files: Files, *, client_ca: Path | None = None) -> ListenSettings:
    tls = TlsSettings(certificate_path=files.server, key_path=files.server_key, client_ca_path=client_ca)
    return ListenSettings(metrics_address=None, tls=tls)


async def test_a_client_that_trusts_the_authority_is_served(files: Files) -> None:
    async with serving(toy_service(ToySampler()), listen(files)) as server:
        assert await ask_actor(ClientSettings(target=server.address, tls_ca_path=files.ca)) == "anonymous"
        for stranger in (
            ClientSettings(target=server.address),
            ClientSettings(target=server.address, tls_ca_path=files.client),
        ):
            with pytest.raises(UnavailableError):
                await ask_actor(stranger)


async def test_a_client_is_known_by_its_certificate_where_one_is_asked_for(files: Files) -> None:
    async with serving(toy_service(ToySampler()), listen(files, client_ca=files.ca)) as server:
        known = ClientSettings(
            target=server.address,
            tls_ca_path=files.ca,
            tls_certificate_path=files.client,
            tls_key_path=files.client_key,
        )
        assert await ask_actor(known) == "certificate:client"
        with pytest.raises(UnavailableError):
            await ask_actor(ClientSettings(target=server.address, tls_ca_path=files.ca))


@pytest.mark.parametrize("key", ["client_key", "ca", "absent"])
async def test_a_key_that_is_not_the_certificates_is_refused_at_start(files: Files, key: str) -> None:
    path = getattr(files, key, files.ca.parent / "absent")
    tls = TlsSettings(certificate_path=files.server, key_path=path)
    with pytest.raises(SettingsError, match=r"listen\.tls"):
        async with serving(toy_service(ToySampler()), ListenSettings(metrics_address=None, tls=tls)):
            pytest.fail("served with a wrong key")


async def test_probes_that_speak_no_tls_read_health_on_a_port_that_serves_nothing_else(files: Files) -> None:
    settings = listen(files).model_copy(update={"health_address": "127.0.0.1:0"})
    server = Server(toy_service(ToySampler()), settings)
    await server.bind()
    assert server.health_address is not None
    async with grpc.aio.insecure_channel(server.health_address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=NAME)
        assert (await health.Check(request)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await server.start()
        assert (await health.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await sampler_service_pb2_grpc.SamplerServiceStub(channel).GetPolicy(pb.GetPolicyRequest())
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        watch = health.Watch(request)
        assert (await anext(aiter(watch))).status == health_pb2.HealthCheckResponse.SERVING
        await server.stop()
        assert [answer.status async for answer in watch] == [health_pb2.HealthCheckResponse.NOT_SERVING]
