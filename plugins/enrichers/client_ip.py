"""The enricher `client_ip`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from voluptuous import Optional

from edge.api import REMOVE, ComponentRegistry, Context, Enricher, hookimpl

from ..support.checks import field_name

ADDRESSES = 4096
"""So many senders' addresses are remembered."""
IPV4_KEPT = 0xFFFF_FF00
"""Anonymized: the last 8 bits are zero."""
IPV6_KEPT = ((1 << 48) - 1) << 80
"""Anonymized: the last 80 bits are zero, which leaves the site prefix (a /48)."""


class ClientIp(Enricher):
    """Set the client's IP address.

    The address is the peer of the connection, or what a proxy of `server.trusted_proxies` said of it. An IPv4 address
    that came as IPv6 (``::ffff:192.0.2.7``) is written as IPv4. What the sender wrote into the field is replaced, or
    removed where there is no address (a unix socket). It never fails.

    With `anonymize` the last 8 bits of an IPv4 address and the last 80 bits of an IPv6 address are zero before anything
    is stored: ``192.0.2.0``, ``2001:db8:7::``.

    Example:

    ```yaml
    pipeline:
      - type: client_ip
        anonymize: true
    ```
    """

    type = "client_ip"
    once_per_request = True
    options = {
        Optional("field", default="client_ip", description="The top-level field that is set."): field_name,
        Optional("anonymize", default=False, description="Zero the part of the address that names one machine."): bool,
    }

    def __init__(self, id: str, options: Mapping[str, Any]) -> None:
        super().__init__(id, options)
        # The same senders come again and again; reading an address takes longer than all the rest.
        self._changes_for = lru_cache(maxsize=ADDRESSES)(self._changes)

    @hookimpl
    def edge_enrich(self, context: Context) -> Mapping[str, Any] | None:
        return self._changes_for(context.remote_ip)

    def _changes(self, remote_ip: str) -> Mapping[str, Any]:
        address = client_address(remote_ip, anonymize=self.options["anonymize"])
        return {self.options["field"]: REMOVE if address is None else address}


def client_address(text: str, *, anonymize: bool) -> str | None:
    """Return an address in its shortest form, or None for what is no address. A zone (``%eth0``) is left out."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if anonymize:
        if isinstance(address, IPv4Address):
            address = IPv4Address(int(address) & IPV4_KEPT)
        else:
            address = IPv6Address(int(address) & IPV6_KEPT)
    return str(address)


@hookimpl
def edge_register_components(registry: ComponentRegistry) -> None:
    """Register the enricher."""
    registry.add(ClientIp)
