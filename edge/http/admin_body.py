"""Bodies of the admin listener's routes: JSON objects whose fields are looked at one by one."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

import orjson

from edge.api import EdgeError
from edge.event import parse_time
from edge.validation import is_datetime


class BodyShapeError(EdgeError):
    """A body that does not say what to do; the message reads after its field's name."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field} {message}")
        self.field = field
        self.message = message


def only_known(body: dict[str, Any], names: Collection[str]) -> None:
    """Raise `BodyShapeError` for a field that the route does not know: a word misspelt must not widen what is done."""
    unknown = sorted(set(body) - set(names))
    if unknown:
        raise BodyShapeError(unknown[0][:128], "is not a known field")


def flag(body: dict[str, Any], name: str) -> bool:
    """Return a field that is true or false; false when it is absent."""
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise BodyShapeError(name, "must be true or false")
    return value


def whole_number(body: dict[str, Any], name: str) -> int | None:
    """Return a field that is a whole number, not negative; None when it is absent."""
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int or value < 0:
        raise BodyShapeError(name, "must be a whole number, not negative")
    return value


def word(body: dict[str, Any], name: str) -> str | None:
    """Return a field that is a text; None when it is absent."""
    value = body.get(name)
    if value is not None and (not isinstance(value, str) or not value):
        raise BodyShapeError(name, "must be a string")
    return value


def moment(body: dict[str, Any], name: str) -> datetime | None:
    """Return a field that is a time; None when it is absent."""
    text = body.get(name)
    if text is None:
        return None
    if not isinstance(text, str) or not is_datetime(text):
        raise BodyShapeError(name, "must be a valid ISO 8601 datetime")
    return parse_time(text)


def json_object(raw: bytes) -> dict[str, Any]:
    """Return a body as a JSON object; an empty one stands for {}."""
    try:
        body = orjson.loads(raw or b"{}")
    except orjson.JSONDecodeError as error:
        raise BodyShapeError("body", "is not JSON") from error
    if not isinstance(body, dict):
        raise BodyShapeError("body", "must be a JSON object")
    return body
