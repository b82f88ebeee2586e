"""The answers an SDK can get, in one table: status, words, codes, and what the SDK should do.

The handlers answer from this table and the OpenAPI document is generated from it, so the two cannot differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import orjson

from edge.outcomes import JSON_CODES, VALIDATION_CODES
from edge.validation import Detail


@dataclass(frozen=True, slots=True)
class Refusal:
    """One row of the table: an answer that is not a success."""

    status: int
    error: str
    codes: tuple[str, ...]
    when: str
    sdk_should: str
    retry_after_secs: int | None = None
    """Sent as `Retry-After` unless the answer knows better. Small whole seconds: some SDKs give up beyond ten."""


INVALID_EVENT = Refusal(
    HTTPStatus.BAD_REQUEST,
    "Invalid event",
    VALIDATION_CODES,
    "an event breaks the schema",
    "fix it, not retry",
)
INVALID_JSON = Refusal(
    HTTPStatus.BAD_REQUEST,
    "Invalid JSON",
    JSON_CODES,
    "the body is not JSON, not UTF-8, holds NaN, is nested too deep, or has too many values",
    "not retry",
)
BAD_REQUEST = Refusal(
    HTTPStatus.BAD_REQUEST,
    "Bad request",
    ("http.malformed",),
    "the request is not valid HTTP, or its end could be read in two ways; the connection is closed",
    "not retry",
)
UNAUTHORIZED = Refusal(
    HTTPStatus.UNAUTHORIZED,
    "Unauthorized",
    ("auth.missing", "auth.invalid"),
    "no key or a wrong one; answered before the body is read",
    "not retry",
)
FORBIDDEN = Refusal(
    HTTPStatus.FORBIDDEN,
    "Forbidden",
    ("auth.origin", "auth.scope"),
    "the key is not allowed for this origin or route",
    "not retry",
)
NOT_FOUND = Refusal(HTTPStatus.NOT_FOUND, "Not found", ("http.not_found",), "no such route", "not retry")
METHOD_NOT_ALLOWED = Refusal(
    HTTPStatus.METHOD_NOT_ALLOWED,
    "Method not allowed",
    ("http.method",),
    "the route has other methods, listed in `Allow`",
    "not retry",
)
TOO_LARGE = Refusal(
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "Payload too large",
    ("limit.body", "limit.decompressed", "limit.batch", "limit.event"),
    "the body, the batch or the event is over its limit",
    "not retry",
)
UNSUPPORTED = Refusal(
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "Unsupported media type",
    ("http.media_type", "http.encoding"),
    "a content type or coding that is not taken",
    "not retry",
)
TOO_MANY = Refusal(
    HTTPStatus.TOO_MANY_REQUESTS,
    "Too many requests",
    ("limit.rate",),
    "this key's quota is used up",
    "retry after `Retry-After` seconds",
    retry_after_secs=1,
)
UNAVAILABLE = Refusal(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "Service unavailable",
    ("busy.backpressure", "busy.full", "busy.draining", "busy.unknown"),
    "nothing was stored (for busy.unknown: may be stored)",
    "retry after `Retry-After` seconds, with the same event_id",
    retry_after_secs=1,
)

TABLE = (
    INVALID_EVENT,
    INVALID_JSON,
    BAD_REQUEST,
    UNAUTHORIZED,
    FORBIDDEN,
    NOT_FOUND,
    METHOD_NOT_ALLOWED,
    TOO_LARGE,
    UNSUPPORTED,
    TOO_MANY,
    UNAVAILABLE,
)

BY_CODE = {code: refusal for refusal in TABLE for code in refusal.codes}

BUSY_MESSAGES = {
    "busy.backpressure": "has more to do than it can take right now; nothing was stored",
    "busy.full": "has no room on its disk; nothing was stored",
    "busy.draining": "is stopping; nothing was stored",
    "busy.unknown": "got no word from its disk in time; the events may be stored",
}
RETRY_AFTER_SECS = {"busy.backpressure": 1, "busy.full": 5, "busy.draining": 5, "busy.unknown": 2}


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back to the sender: status, JSON body, and headers beside those every answer has."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the body as bytes."""
        return orjson.dumps(self.body)


def refuse(code: str, field: str, message: str, *, retry_after_secs: float | None = None) -> Answer:
    """Return the answer of the table's row that has this code, with one detail."""
    return refuse_with([Detail(field=field, message=message, code=code)], retry_after_secs=retry_after_secs)


def refuse_with(details: Sequence[Detail], *, retry_after_secs: float | None = None) -> Answer:
    """Return the answer of the row that the first detail's code belongs to, with all the details."""
    refusal = BY_CODE[details[0]["code"]]
    wait = refusal.retry_after_secs if retry_after_secs is None else retry_after_secs
    headers = {} if wait is None else {"Retry-After": str(max(1, -int(-wait // 1)))}
    return Answer(refusal.status, {"error": refusal.error, "details": list(details)}, headers)


def busy(code: str, field: str = "gateway", message: str | None = None) -> Answer:
    """Return the 503 for a ``busy.*`` code, in its usual words or in others."""
    return refuse(code, field, message or BUSY_MESSAGES[code], retry_after_secs=RETRY_AFTER_SECS[code])
