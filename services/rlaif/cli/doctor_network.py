"""Whether the replicas of a service can be reached: names, ports, TLS."""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import dataclass
from typing import Final

from rlaif.cli.doctor_findings import Findings, StoppedError
from rlaif.core.errors import InvalidInputError
from rlaif.runtime.addresses import is_loopback, join_address, split_address
from rlaif.runtime.settings import ClientSettings

_SECONDS: Final = 5.0
_DAY: Final = 86_400.0
_FEW_DAYS: Final = 14
_VERIFY_ERRORS: Final = {
    9: ("its certificate is not valid yet", "check both clocks"),
    10: ("its certificate has expired", "renew the Secret of tls.existingSecret: servers take it up without a restart"),
    62: ("its certificate is for another host", "set RLAIF_TLS_SERVER_NAME to a name in it"),
    64: ("its certificate is for another address", "set RLAIF_TLS_SERVER_NAME to a name in it"),
}
"""By OpenSSL's X509_V_ERR codes: what is wrong, what to do."""
_OTHER_AUTHORITY: Final = (
    "its certificate is signed by none of the authorities given",
    "--tls-ca (or RLAIF_TLS_CA) with the ca.crt of the Secret of tls.existingSecret",
)


@dataclass(frozen=True)
class Replica:
    """One address behind a target; `name` is what its certificate is to be for."""

    host: str
    port: int
    name: str

    @property
    def address(self) -> str:
        """As gRPC takes it."""
        return join_address(self.host, self.port)

    def settings(self, settings: ClientSettings) -> ClientSettings:
        """How to call this replica and no other."""
        override = None if settings.tls_ca_path is None or self.name == self.host else self.name
        return settings.model_copy(update={"target": self.address, "tls_server_name": override})


def reachable(settings: ClientSettings, findings: Findings) -> list[Replica]:
    """The replicas that take connections; StoppedError where none does."""
    hosts = _hosts(settings.target)
    found: list[Replica] = []
    for host, port in hosts:
        try:
            places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            fix = (
                "give an address that resolves here: RELEASE-SERVICE.NAMESPACE.svc within the cluster, from outside "
                "`kubectl -n NAMESPACE port-forward svc/RELEASE-SERVICE 50051` and 127.0.0.1:50051"
            )
            findings.failed("network", f"{host} does not resolve: {error.strerror or error}", fix=fix)
            raise StoppedError from error
        name = settings.tls_server_name or host
        found += [Replica(str(place[4][0]), port, name) for place in places]
    found = list(dict.fromkeys(found))
    refusals = {replica: refusal for replica in found if (refusal := _refusal(replica))}
    answering = [replica for replica in found if replica not in refusals]
    if not answering:
        replica, refusal = next(iter(refusals.items()))
        findings.failed(
            "network",
            f"{replica.address} cannot be connected to: {refusal}",
            fix="start it, or let this machine through: kubectl get pods; networkPolicy.callers in the chart's values",
        )
        raise StoppedError
    # A name may have addresses of both kinds, of which a service listens on one.
    families = {":" in replica.host for replica in answering}
    missing = [replica.address for replica in refusals if (":" in replica.host) in families]
    seen = f"{', '.join(replica.address for replica in answering)} "
    if seen.strip() != settings.target:
        seen = f"{settings.target}: {seen}"
    if missing:
        findings.look("network", f"{seen}answer, {', '.join(missing)} not", fix="look at that replica's pod")
    else:
        findings.ok("network", f"{seen}answer{'s' if len(answering) == 1 else ''}")
    return answering


def check_tls(settings: ClientSettings, replicas: list[Replica], findings: Findings) -> None:
    """A handshake with each replica and how long its certificate lasts; StoppedError where calls cannot succeed."""
    if settings.tls_ca_path is None:
        _check_plaintext(settings, replicas, findings)
        return
    days = min(_certificate_days(settings, replica, findings) for replica in replicas)
    seen = f"the certificate for {replicas[0].name} ends in {days:.0f} days"
    if days < _FEW_DAYS:
        findings.look("TLS", seen, fix="renew it: see RlaifCertificateExpiring in docs/runbooks.md")
    else:
        findings.ok("TLS", seen)


def is_local(settings: ClientSettings) -> bool:
    """Whether the service is on this machine, or behind a tunnel that begins here."""
    return all(is_loopback(host) for host, _ in _hosts(settings.target))


def _hosts(target: str) -> list[tuple[str, int]]:
    scheme, separator, rest = target.partition(":")
    listed = rest.lstrip("/") if separator and scheme in ("dns", "ipv4", "ipv6") else target
    try:
        return [split_address(each) for each in listed.split(",")]
    except ValueError as error:
        raise InvalidInputError(f"{target}: {error}") from error


def _refusal(replica: Replica) -> str:
    try:
        with socket.create_connection((replica.host, replica.port), timeout=_SECONDS):
            return ""
    except TimeoutError:
        return f"no answer in {_SECONDS:g} s, as where a firewall or network policy drops it"
    except OSError as error:
        return error.strerror or str(error)


def _check_plaintext(settings: ClientSettings, replicas: list[Replica], findings: Findings) -> None:
    if any(_speaks_tls(replica) for replica in replicas):
        findings.failed(
            "TLS",
            "it speaks TLS, and no authority to trust is given",
            fix="--tls-ca (or RLAIF_TLS_CA) with the ca.crt of the Secret of tls.existingSecret",
        )
        raise StoppedError
    if all(is_loopback(replica.host) for replica in replicas):
        findings.ok("TLS", "none, on this machine alone")
    else:
        findings.look("TLS", "none: texts and tokens travel readably", fix="tls.enabled in the chart's values")


def _speaks_tls(replica: Replica) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Nothing is sent: it is only asked whether there is TLS at all.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((replica.host, replica.port), timeout=_SECONDS) as connection,
            context.wrap_socket(connection),
        ):
            return True
    except OSError:
        return False


def _certificate_days(settings: ClientSettings, replica: Replica, findings: Findings) -> float:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(settings.tls_ca_path)
    context.set_alpn_protocols(["h2"])
    if settings.tls_certificate_path is not None and settings.tls_key_path is not None:
        context.load_cert_chain(settings.tls_certificate_path, settings.tls_key_path)
    try:
        with (
            socket.create_connection((replica.host, replica.port), timeout=_SECONDS) as connection,
            context.wrap_socket(connection, server_hostname=replica.name) as secured,
        ):
            certificate = secured.getpeercert()
    except ssl.SSLCertVerificationError as error:
        wrong, fix = _VERIFY_ERRORS.get(error.verify_code, _OTHER_AUTHORITY)
        findings.failed("TLS", f"{replica.address}: {wrong} ({error.verify_message})", fix=fix)
        raise StoppedError from error
    except OSError as error:
        # A server without TLS answers in its own words, or closes.
        other = isinstance(error, ssl.SSLError) and error.reason not in ("WRONG_VERSION_NUMBER", None)
        findings.failed(
            "TLS",
            f"{replica.address}: {'TLS fails' if other else 'no TLS there'} ({error.strerror or error})",
            fix="see docs/security.md"
            if other
            else "leave out --tls-ca and RLAIF_TLS_CA, or set tls.enabled in the chart's values",
        )
        raise StoppedError from error
    assert certificate is not None
    return (ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()) / _DAY
