"""Addresses to listen on, networks and origins: how they are written, and what they come to."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

UNIX_PATH_BYTES = 107
"""What `sun_path` of a unix socket's address takes (unix(7))."""

_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}\.?)*")
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]{0,31})://(?P<host>(\*\.)?[a-z0-9_]([a-z0-9_.-]{0,252})|\[[0-9a-f:.]+\])(:(?P<port>[0-9]{1,5}))?"
)
_DEFAULT_PORTS = {"http": "80", "https": "443"}


class AddressError(ValueError):
    """An address that cannot be used, in two parts: what is wrong, what to write."""

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(f"{what}; {advice}")
        self.what = what
        self.advice = advice


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: a host and a TCP port, or the path of a unix socket."""

    host: str
    """A name or an IP address without brackets; empty for a unix socket."""
    port: int
    """0: the system chooses one."""
    path: Path | None = None

    @property
    def is_local(self) -> bool:
        """True when only this machine can connect: loopback, ``localhost``, a unix socket."""
        if self.path is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(text: str) -> Address:
    """Return the address that ``host:port``, ``[v6]:port`` or ``unix:/path`` names; `AddressError` otherwise."""
    if text.startswith("unix:"):
        return _unix(text.removeprefix("unix:"))
    host, colon, port_text = text.rpartition(":")
    if not colon or not host:
        advice = "write e.g. 127.0.0.1:4000, [::1]:4000 or unix:/run/edge.sock"
        raise AddressError("must be a host and a port", advice)
    if not re.fullmatch(r"[0-9]{1,5}", port_text) or int(port_text) > 65535:
        raise AddressError("has no port from 0 to 65535", "write e.g. 127.0.0.1:4000")
    return Address(_host(host), int(port_text))


def _unix(path: str) -> Address:
    if not path or path.startswith("//"):
        raise AddressError("has no path", "write e.g. unix:/run/edge.sock")
    if len(path.encode()) > UNIX_PATH_BYTES or "\0" in path:
        raise AddressError(
            f"has a path longer than {UNIX_PATH_BYTES} bytes, which a unix socket cannot have", "write a shorter path"
        )
    return Address("", 0, Path(path))


def _host(text: str) -> str:
    if text.startswith("[") and text.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(text[1:-1]))
        except ValueError:
            raise AddressError("has no IPv6 address between the brackets", "write e.g. [::1]:4000") from None
    if ":" in text:
        raise AddressError("must be a host and a port", "write an IPv6 address in brackets, e.g. [::1]:4000")
    looks_numeric = re.fullmatch(r"[0-9.]+", text) is not None
    if looks_numeric:
        try:
            return str(ipaddress.IPv4Address(text))
        except ValueError:
            raise AddressError("has no valid IPv4 address", "write e.g. 127.0.0.1:4000") from None
    if _HOST.fullmatch(text) is None:
        raise AddressError("has no valid host", "write e.g. 127.0.0.1:4000, or 0.0.0.0:4000 for every interface")
    return text.lower()


def check_network(text: str) -> str:
    """Return a network in CIDR notation; a single address is a network of one. `AddressError` otherwise."""
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        pass
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise AddressError("must be a network", "write e.g. 10.0.0.0/8 or 192.168.1.7") from None
    raise AddressError(
        "has bits beyond its prefix length",
        f"write the network's first address, or /{network.max_prefixlen} for one host",
    )


def check_origin(text: str) -> str:
    """Return an origin as browsers send it (RFC 6454, section 6.2), or ``https://*.example.org``."""
    if text == "*":
        raise AddressError("would allow every origin", "write each origin, e.g. https://shop.example.org")
    match = _ORIGIN.fullmatch(text)
    if match is None:
        if _ORIGIN.fullmatch(text.lower().rstrip("/")):
            raise AddressError(
                "is not written as browsers send it", "write it in lower case, without a slash at the end"
            )
        raise AddressError(
            "must be an origin: scheme, host and perhaps a port",
            "write e.g. https://shop.example.org or https://*.example.org",
        )
    host = match["host"]
    if host.startswith("*.") and (match["scheme"] != "https" or "." not in host[2:].strip(".")):
        raise AddressError("allows too much", "write e.g. https://*.example.org")
    if match["port"] is not None and match["port"] == _DEFAULT_PORTS.get(match["scheme"]):
        raise AddressError("names the usual port, which browsers leave out", "write it without the port")
    return text
