"""Text that came from the environment or another file, and how it is kept out of what people see."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"

# Options of components whose written-out value is a credential, going by their name.
_CREDENTIAL = re.compile(
    r"(?i)(password|passwd|passphrase|secret|token|authorization|cookie|credential|api[-_]?key|access[-_]?key)(?!.*_(file|path|secs)$)"
)
_USERINFO = re.compile(r"(://)[^/?#@\s]+@")


class Secret(str):
    """Text that is not for the eyes of others: it works as the text it is, and its repr is a mask."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"'{MASK}'" if self else "''"


def masked(data: Any) -> Any:
    """Return a copy of plain data with every secret in it masked: by type, by the name of its key, and in addresses.

    Empty secrets stay empty: an operator may see that a token is not set.
    """
    if isinstance(data, Mapping):
        return {key: _masked_entry(str(key), value) for key, value in data.items()}
    if isinstance(data, list | tuple | set | frozenset):
        return [masked(item) for item in data]
    if isinstance(data, Secret):
        return MASK if data else ""
    if isinstance(data, str):
        return _USERINFO.sub(rf"\1{MASK}@", data)
    return data


def _masked_entry(key: str, value: Any) -> Any:
    if isinstance(value, str) and value and _CREDENTIAL.search(key):
        return MASK
    return masked(value)
