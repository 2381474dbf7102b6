"""Binding to addresses, and saying plainly why one cannot be bound."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket

from rlaif.core.errors import SettingsError


def split_address(address: str) -> tuple[str, int]:
    """Host without brackets, and port, of "host:port"; ValueError if it is something else."""
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{address!r} is not host:port with a port of 0 to 65535")
    return host.removeprefix("[").removesuffix("]"), int(port)


def join_address(host: str, port: int) -> str:
    """ "host:port", with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_free(address: str, *, key: str) -> None:
    """SettingsError, naming the reason, when nothing could listen on the address now."""
    host, port = split_address(address)
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As gRPC does: a connection that lingers in TIME_WAIT does not hold the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        raise cannot_listen(address, key=key, error=error) from error


def cannot_listen(address: str, *, key: str, error: OSError) -> SettingsError:
    """What to raise when listening on the address failed with `error`."""
    in_use = error.errno == errno.EADDRINUSE
    cause = "the port is in use" if in_use else (error.strerror or os.strerror(error.errno or 0))
    reason = "ADDRESS_IN_USE" if in_use else "CANNOT_LISTEN"
    return SettingsError(f"cannot listen on {address} ({key}): {cause}", reason=reason, field=key)
