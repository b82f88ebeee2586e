"""The client's address behind proxies: `X-Forwarded-For` is believed as far as trusted proxies vouch for it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

_Address = IPv4Address | IPv6Address

# Proxies write addresses bare, in brackets, and with the port of the client.
_V4_PORT: Final = re.compile(r"([0-9.]+):[0-9]{1,5}")
_V6_BRACKETS: Final = re.compile(r"\[([^\]]+)\](?::[0-9]{1,5})?")


class TrustedProxies:
    """The networks whose word on a client's address is believed. `ValueError` for what is no network."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = tuple(ip_network(network, strict=False) for network in networks)

    def client_ip(self, peer: str, forwarded_for: Sequence[str]) -> str:
        """Return the address of the client: the last one, seen from here, that no trusted proxy has.

        `peer` is the other end of the connection, empty on a unix socket, which is never trusted. `forwarded_for` has
        the values of every `X-Forwarded-For` header in their order. What is no address ends the walk at the last proxy
        that was good. Never raises.
        """
        address = _parse(peer)
        if address is None:
            return peer
        if not self._networks:
            return _written(address)
        for name in self._walk(forwarded_for):
            if not self._trusts(address):
                break
            nearer = _parse(name)
            if nearer is None:
                break
            address = nearer
        return _written(address)

    def _walk(self, forwarded_for: Sequence[str]) -> Iterable[str]:
        """Yield the elements from the nearest proxy to the farthest."""
        return (name.strip() for value in reversed(forwarded_for) for name in reversed(value.split(",")))

    def _trusts(self, address: _Address) -> bool:
        return any(address in network for network in self._networks)


@lru_cache(maxsize=4096)
def _written(address: _Address) -> str:
    """Return an address as text, which `ipaddress` puts together anew each time."""
    return str(address)


@lru_cache(maxsize=4096)
def _parse(text: str) -> _Address | None:
    """Return an address without port, brackets and zone; one of IPv4 as such, also when it came mapped into IPv6."""
    found = _V4_PORT.fullmatch(text) or _V6_BRACKETS.fullmatch(text)
    try:
        address = ip_address(found[1] if found else text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or IPv6Address(address.packed)
    return address
