"""What an unquoted word of YAML means here: numbers, ``true``, ``false``, ``null``; everything else is text."""

from __future__ import annotations

import math
import re

_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})")
# A number has a point or an exponent. `0123` and `1_000` mean different things in different versions of YAML: text.
_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]{0,18}|(?=\.[0-9]))(\.[0-9]{0,32})?([eE][-+]?[0-9]{1,3})?")


def resolve_plain(text: str) -> str | int | float | bool | None:
    """Return the value of an unquoted scalar."""
    if text in ("true", "false"):
        return text == "true"
    if text in ("", "~", "null"):
        return None
    if _WHOLE.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text):
        number = float(text)
        return number if math.isfinite(number) else text
    return text
