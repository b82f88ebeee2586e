"""Origins of browser pages: which of them a key or the site allows."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_MAX_CHARS: Final = 512
_LABEL: Final = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
# RFC 6454, 6.2 as browsers send it: no user, no path, hosts in punycode. A trailing dot is another host.
_ORIGIN: Final = re.compile(
    rf"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{{0,31}})://"
    rf"(?P<host>(?P<below>\*\.)?{_LABEL}(?:\.{_LABEL})*+|\[[0-9A-Fa-f:.]+\])"
    r"(?::(?P<port>[1-9][0-9]{0,4}))?"
)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

_Origin = tuple[str, str, int | None]


class OriginPolicy:
    """Allows exact origins, and with ``https://*.example.org`` every host below that domain, not the domain itself.

    Scheme and port must match; hosts match in any case. `ValueError` for a pattern that is no origin, `null` and ``*``
    included: the origin `null` is shared by every sandboxed page there is.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._exact: set[_Origin] = set()
        self._below: set[_Origin] = set()
        for pattern in patterns:
            found = _parse(pattern)
            if found is None:
                raise ValueError(
                    f"{pattern!r} is not an origin; write https://shop.example.org or https://*.example.org"
                )
            origin, wildcard = found
            (self._below if wildcard else self._exact).add(origin)

    def allows(self, origin: str) -> bool:
        """Tell whether this value of an `Origin` header is allowed. Never raises."""
        found = _parse(origin)
        if found is None or found[1]:
            return False
        (scheme, host, port), _ = found
        if (scheme, host, port) in self._exact:
            return True
        if not self._below:
            return False
        labels = host.split(".")
        return any((scheme, ".".join(labels[at:]), port) in self._below for at in range(1, len(labels)))


def _parse(text: str) -> tuple[_Origin, bool] | None:
    """Return an origin in its normal form, and whether it is a pattern for the hosts below; None for anything else."""
    found = _ORIGIN.fullmatch(text) if len(text) <= _MAX_CHARS else None
    if found is None:
        return None
    scheme = found["scheme"].lower()
    port = int(found["port"]) if found["port"] else _DEFAULT_PORTS.get(scheme)
    return (scheme, found["host"].lower().removeprefix("*."), port), found["below"] is not None
