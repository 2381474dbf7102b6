"""A server's certificates, taken up anew when their files change, without a connection being dropped."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from rlaif.core.errors import SettingsError
from rlaif.runtime.pem import load_pair
from rlaif.runtime.settings import TlsSettings
from rlaif.runtime.watched_files import WatchedFiles

_CERTIFICATE, _KEY, _CLIENT_CA = "listen.tls.certificate_path", "listen.tls.key_path", "listen.tls.client_ca_path"


@dataclass(frozen=True)
class _Loaded:
    for_grpc: grpc.ServerCertificateConfiguration
    for_http: ssl.SSLContext
    not_after: datetime
    client_ca_not_after: datetime | None


class ServerCertificates:
    """The current certificate of a server, its key, and the authorities of its clients."""

    def __init__(self, tls: TlsSettings) -> None:
        """SettingsError when the files are not a certificate and its key."""
        self._tls = tls
        paths = {_CERTIFICATE: tls.certificate_path, _KEY: tls.key_path}
        if tls.client_ca_path is not None:
            paths[_CLIENT_CA] = tls.client_ca_path
        self.files = WatchedFiles(paths, self._load)
        self._given = self.files.value

    @property
    def not_after(self) -> datetime:
        """When the server's certificate ends, or one of those that it is sent with."""
        return self.files.value.not_after

    @property
    def client_ca_not_after(self) -> datetime | None:
        """When the last of the clients' authorities ends; None where clients need no certificate."""
        return self.files.value.client_ca_not_after

    def for_grpc(self) -> grpc.ServerCredentials:
        """Credentials that show each new connection what is current then."""
        return grpc.dynamic_ssl_server_credentials(
            self._given.for_grpc,
            self._news,  # type: ignore[arg-type]  # None, for no change, is allowed
            require_client_authentication=self._tls.client_ca_path is not None,
        )

    def for_http(self) -> ssl.SSLContext:
        """A context that does the same; clients are not asked for certificates."""
        context = self._http_context()

        def choose(connection: ssl.SSLObject, name: str | None, asked: ssl.SSLContext) -> None:
            connection.context = self.files.value.for_http

        context.sni_callback = choose
        return context

    def _news(self) -> grpc.ServerCertificateConfiguration | None:
        """What a connection that begins now should see, None for the same as the last; asked on a thread of gRPC's."""
        current = self.files.value
        if current is self._given:
            return None
        self._given = current
        return current.for_grpc

    def _load(self, contents: Mapping[str, bytes]) -> _Loaded:
        chain = _certificates(contents[_CERTIFICATE], key=_CERTIFICATE, path=str(self._tls.certificate_path))
        self._check_key(contents[_KEY], chain[0])
        authorities = contents.get(_CLIENT_CA)
        client_ca = authorities and _certificates(authorities, key=_CLIENT_CA, path=str(self._tls.client_ca_path))
        return _Loaded(
            for_grpc=grpc.ssl_server_certificate_configuration(
                [(contents[_KEY], contents[_CERTIFICATE])], root_certificates=authorities
            ),
            for_http=self._http_context(),
            not_after=min(each.not_valid_after_utc for each in chain),
            client_ca_not_after=max(each.not_valid_after_utc for each in client_ca) if client_ca else None,
        )

    def _check_key(self, content: bytes, certificate: x509.Certificate) -> None:
        """SettingsError unless `content` is the certificate's key: gRPC takes any and then fails every handshake."""
        try:
            key = serialization.load_pem_private_key(content, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise SettingsError(
                f"{_KEY}: {self._tls.key_path} holds no PEM private key without a password", field=_KEY
            ) from error
        ours, its = (
            each.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            for each in (key.public_key(), certificate.public_key())
        )
        if ours != its:
            raise SettingsError(
                f"listen.tls: {self._tls.key_path} is not the key of {self._tls.certificate_path}", field=_KEY
            )

    def _http_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        load_pair(context, self._tls.certificate_path, self._tls.key_path, field="listen.tls")
        return context


def _certificates(content: bytes, *, key: str, path: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise SettingsError(f"{key}: {path} holds no PEM certificates", field=key) from error
