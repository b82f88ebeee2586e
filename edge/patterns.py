"""Regular expressions out of configuration, refused when an event could make them run for minutes.

Python's `re` backtracks: ``(a+)+$`` takes longer than the universe has on forty letters, ``.*a.*b.*c`` minutes on a few
thousand. The estimate here is an upper bound of the ways to match a subject of the greatest length.
"""

from __future__ import annotations

import importlib
import math
import re
import warnings
from collections.abc import Iterable
from typing import Any

from edge.api import EdgeError

PATTERN_CHARS = 256
"""Longest pattern that is compiled."""

SUBJECT_CHARS = 4096
"""A pattern is searched in this many characters of a value at most."""

BUDGET_BITS = 28.0
"""Base-2 logarithm of the most steps one search may take: seconds in the worst case, never minutes."""

_QUOTED = re.compile(r"(?s) *(['\\?].*|\S-\S)$")
"""What the messages of `re` quote of the pattern."""

# The parser of `re` has no public name. A scanner of our own would have to agree with it in every corner of the syntax.
_parser: Any = importlib.import_module("re._parser")


class PatternError(EdgeError):
    """A pattern that is refused; the message reads after the option's path and never holds the pattern."""


class _NestedRepeatError(Exception):
    """A repeat whose inside can already match in many ways."""


def compile_pattern(pattern: object) -> re.Pattern[str]:
    """Return the compiled pattern; `PatternError` when it is no regular expression or could run away."""
    if not isinstance(pattern, str):
        raise PatternError("must be a regular expression as text; write e.g. '^/checkout'")
    if len(pattern) > PATTERN_CHARS:
        raise PatternError(f"is longer than {PATTERN_CHARS} characters; write a shorter regular expression")
    try:
        with warnings.catch_warnings():
            # What `re` warns of means something else in the next version of Python.
            warnings.simplefilter("error")
            compiled = re.compile(pattern)
            parsed = _parser.parse(pattern)
    except (re.error, Warning, OverflowError, RecursionError) as error:
        reason = _QUOTED.sub("", error.msg) if isinstance(error, re.error) else "it is ambiguous or too large"
        raise PatternError(f"is not a regular expression: {reason}; write e.g. '^/checkout'") from None
    try:
        cost = _top_level_bits(list(parsed))
    except _NestedRepeatError:
        raise PatternError(
            "repeats a group that holds a repeat or alternatives, which can take for ever on some events; "
            "write it without the inner one, such as a+ for (a+)+"
        ) from None
    if cost > BUDGET_BITS:
        raise PatternError(
            "has too many open-ended repeats, which can take minutes on some events; "
            "write upper bounds, such as [0-9]{1,9} for [0-9]+, or anchor it with ^"
        )
    return compiled


def _top_level_bits(items: list[Any]) -> float:
    bits = math.log2(SUBJECT_CHARS)
    if items and str(items[0][0]) == "AT" and str(items[0][1]) in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
        bits = 0.0
    # Nothing follows the last repeat, so the search never comes back to it.
    ends_open = bool(items) and str(items[-1][0]).endswith("_REPEAT") and _bits(list(items[-1][1][2])) == 0.0
    return bits + _bits(items[:-1] if ends_open else items)


def _bits(items: Iterable[Any]) -> float:
    """Return the base-2 logarithm of the ways in which parsed items can match one subject."""
    total = 0.0
    for operation, argument in items:
        name = str(operation)
        if name.endswith("_REPEAT"):
            low, high, inside = argument
            total += _repeat_bits(int(low), min(int(high), SUBJECT_CHARS), _bits(inside))
        elif name == "BRANCH":
            total += math.log2(sum(2.0 ** min(_bits(branch), 64.0) for branch in argument[1]))
        elif isinstance(argument, tuple):
            total += sum(_bits(part) for part in argument if isinstance(part, _parser.SubPattern))
        elif isinstance(argument, _parser.SubPattern):
            total += _bits(argument)
    return total


def _repeat_bits(low: int, high: int, inside: float) -> float:
    if inside * high > BUDGET_BITS and high > 1:
        raise _NestedRepeatError
    return inside * high + math.log2(max(high - low, 0) + 1)
