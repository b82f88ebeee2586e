"""Checks of option values that several components share; each returns the value or raises `voluptuous.Invalid`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import update_wrapper
from typing import Any, Generic, TypeVar

from voluptuous import Invalid

FIELD_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")
FIELD_PATH = re.compile(r"[A-Za-z0-9_-]{1,128}(\.[A-Za-z0-9_-]{1,128}){0,31}")
HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")  # a token, RFC 9110 section 5.6.2

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


Value = TypeVar("Value")


class Check(Generic[Value]):
    """A validator that knows its own description."""

    def __init__(self, function: Callable[[object], Value], words: str) -> None:
        self.words = words
        """What the option takes, for the reference page: ``number from 0 to 1``."""
        self._function = function
        update_wrapper(self, function)

    def __call__(self, value: object) -> Value:
        return self._function(value)


def takes(words: str) -> Callable[[Callable[[object], Value]], Check[Value]]:
    """Describe a validator in words."""
    return lambda function: Check(function, words)


@takes("name of a top-level field")
def field_name(value: object) -> str:
    """Check the name of a top-level field of an event."""
    if not isinstance(value, str) or FIELD_NAME.fullmatch(value) is None:
        raise Invalid("must be the name of a top-level field: letters, digits, _ and -, at most 128")
    return value


@takes("field, or dotted path of fields")
def field_path(value: object) -> str:
    """Check a dotted path to a field of an event, for example ``user_id`` or ``commerce.order_id``."""
    if not isinstance(value, str) or FIELD_PATH.fullmatch(value) is None:
        raise Invalid("must be a field or a dotted path of fields, for example user_id or commerce.order_id")
    return value


@takes("name of an HTTP header")
def header_name(value: object) -> str:
    """Check the name of an HTTP header and return it in lower case."""
    if not isinstance(value, str) or HEADER_NAME.fullmatch(value) is None:
        raise Invalid("must be the name of an HTTP header")
    return value.lower()


@takes("JSON value")
def json_value(value: object) -> Any:
    """Check that a value means the same in JSON as in YAML; dates, NaN and integers beyond 64 bits do not."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise Invalid("must be text without lone surrogates")
        return value
    if isinstance(value, int):
        if not INT64_MIN <= value <= INT64_MAX:
            raise Invalid("must be an integer of at most 64 bits; write it in quotes")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise Invalid("must be a finite number")
        return value
    if isinstance(value, list):
        return [json_value(item) for item in value]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise Invalid(f"must be text as the key of a mapping; write {key} in quotes")
        return {key: json_value(item) for key, item in value.items()}
    raise Invalid(f"must be a JSON value, not a {type(value).__name__}; write it in quotes")
