"""From bytes to JSON values: what is not JSON, and what the grammar allows and the gateway does not.

:func:`parse_json` makes a value of bytes, :func:`check_structure` looks at what the value may not hold. Mistakes are
told by their place, never by their content.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import orjson

from edge.acceptor import flat_event
from edge.validation import Detail


def parse_json(raw: bytes) -> tuple[object, Detail | None]:
    """Return the parsed body and None, or None and the one detail that says why it is not JSON.

    `json.encoding`: not UTF-8, a byte order mark, half of a surrogate pair. `json.limit`: a number beyond a 64-bit
    float, nesting beyond the parser. `json.syntax`: anything else; the position is told, the content never.
    """
    try:
        return orjson.loads(raw), None
    except orjson.JSONDecodeError as error:
        return None, _parse_mistake(raw, error)


def _parse_mistake(raw: bytes, error: orjson.JSONDecodeError) -> Detail:
    if raw.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")) or b"\0" in raw[:2]:
        return _body("must be UTF-8 without a byte order mark", "json.encoding")
    try:
        raw.decode()
    except UnicodeDecodeError as undecodable:
        return _body(f"is not valid UTF-8 at byte {undecodable.start}", "json.encoding")
    where = f"at line {error.lineno}, column {error.colno}"
    reason = error.msg
    if not raw.strip(b" \t\r\n"):
        return _body("must not be empty", "json.syntax")
    # orjson tells these apart only in words; an unknown wording of a later version ends up as json.syntax.
    if "surrogate" in reason:
        return _body(f"holds half of a surrogate pair {where}", "json.encoding")
    if "depth" in reason or "recursion" in reason:
        return _body(f"is nested too deep {where}", "json.limit")
    if "infinity" in reason or "out of range" in reason:
        return _body(f"holds a number out of range {where}", "json.limit")
    return _body(f"is not valid JSON {where}", "json.syntax")


def check_structure(raw: bytes, value: object, max_depth: int) -> Detail | None:
    """Return what the gateway refuses in a parsed body, or None: depth, integers outside 64 bits, NUL in a key.

    `raw` is the text that `value` was parsed from. An object or array counts one level, the outermost included. Linear
    in the length of `raw`, without recursion.
    """
    mistakes = check_structures(raw, (value,), max_depth)
    return None if mistakes is None else mistakes[0]


def check_structures(raw: bytes, values: Sequence[object], max_depth: int) -> list[Detail | None] | None:
    """Return the same for each event of a batch, None when there is nothing against any of them.

    `raw` is the batch, scanned once; depth counts from the event.
    """
    nul = b"\\" in raw and NUL in raw  # one byte is looked for in a tenth of the time
    may_be_flat = max_depth >= FLAT_DEPTH and not nul
    if may_be_flat and len(values) > max_depth and all(map(flat_event, values)):
        return None  # the text of many events says nothing: it has more brackets than one of them may
    deep = raw.count(b"{") + raw.count(b"[") > max_depth
    wide = _holds_wide_integer(raw)
    if not (deep or wide or nul):
        return None
    mistakes = [
        None if may_be_flat and flat_event(value) else _structure_mistake(value, max_depth, wide=wide, nul=nul)
        for value in values
    ]
    return mistakes if any(mistakes) else None


def _structure_mistake(value: object, max_depth: int, *, wide: bool, nul: bool) -> Detail | None:
    """Walk the value level by level. `wide` and `nul` say what its text may hold; nothing else is looked for."""
    level: list[Any] = [[value]]
    for _ in range(max_depth + 1):
        if wide and any(
            isinstance(child, float) and abs(child) >= 2**63 for part in level for child in _children(part)
        ):
            return _body("holds an integer outside 64 bits; send it as a string", "json.limit")
        if nul and any("\0" in key for part in level if isinstance(part, dict) for key in part):
            return Detail(field="event", message="must not have NUL in a field name", code="validation.format")
        level = [
            child
            for part in level
            for child in (part.values() if isinstance(part, dict) else part)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return None
    return _body(f"is nested deeper than {max_depth} levels", "json.limit")


def _children(part: Any) -> Any:
    return part.values() if isinstance(part, dict) else part


def _body(message: str, code: str) -> Detail:
    return Detail(field="body", message=message, code=code)


FLAT_DEPTH: Final = 2
"""Levels of a flat event: itself, and objects and arrays of plain values."""
NUL: Final = rb"\u0000"
"""How JSON writes the character that no name of a field may have."""
_DIGITS: Final = 19
"""Integers of fewer digits fit into 64 bits."""
_LONG_INTEGER: Final = re.compile(rb"(?<![^\s:,\[])-?[0-9]{%d,}+(?![.eE])" % _DIGITS)
_MASK: Final = bytes(
    ord("0") if byte in b"0123456789" else byte if byte == ord("-") else ord(":") if byte in b":,[ \t\r\n" else ord("x")
    for byte in range(256)
)
_MASKED: Final = (b"0" * _DIGITS, b"-" + b"0" * _DIGITS)


def _holds_wide_integer(raw: bytes) -> bool:
    """Tell whether valid JSON holds an integer that orjson silently made a float of: outside -2**63 ... 2**64 - 1."""
    mask = raw.translate(_MASK)
    if not mask.startswith(_MASKED) and not any(b":" + number in mask for number in _MASKED):
        return False
    # Digits inside strings do not count; with escapes blanked, a string is open after an odd number of quotes.
    plain = raw.replace(rb"\\", b"xx").replace(rb"\"", b"xx")
    quotes = at = 0
    for found in _LONG_INTEGER.finditer(plain):
        quotes += plain.count(b'"', at, found.start())
        at = found.start()
        digits = found.group()
        if quotes % 2 == 0 and (len(digits) > _DIGITS + 2 or not -(2**63) <= int(digits) < 2**64):
            return True
    return False
