"""The event schema in voluptuous: the mistakes of an event become `{field, message, code}`, never values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypedDict

import voluptuous as vol

from edge.acceptor import Source, generate
from edge.api import Event
from edge.columns import generate_columns
from edge.near_names import NearNames

UnknownFields = Literal["reject", "keep", "drop"]


class Detail(TypedDict):
    """One mistake, as answers list it."""

    field: str
    """Dotted path of the field (`experiments[2]`), or `event` or `body` for a mistake of the whole."""
    message: str
    """Reads after the field's name: "is required"."""
    code: str
    """Out of the closed set of the HTTP contract."""


MAX_DETAILS: Final = 1000
"""Mistakes of one event that are told; the others are only counted."""
_ECHOED_CHARS: Final = 128
_MAX_SUGGESTIONS: Final = 32
_MAX_TIME_CHARS: Final = 64

_EXTRA: Final[Mapping[UnknownFields, int]] = {
    "reject": vol.PREVENT_EXTRA,
    "keep": vol.ALLOW_EXTRA,
    "drop": vol.REMOVE_EXTRA,
}


class EventInvalid(vol.Invalid):
    """A mistake with a code of the contract."""

    def __init__(self, message: str, code: str, path: list[Any] | None = None) -> None:
        super().__init__(message, path)
        self.code = code


class _MoreInvalid(vol.Invalid):
    """Stands for `count` further mistakes that nobody listed."""

    def __init__(self, count: int) -> None:
        super().__init__("has more mistakes")
        self.count = count


class _Check:
    """A validator of one field that can also say of itself what OpenAPI and the generated check want to know."""

    def __call__(self, value: object) -> object:
        raise NotImplementedError

    def accepts(self, source: Source, var: str) -> str:
        """Return an expression that is true only for values that are accepted; see `edge.acceptor`."""
        raise NotImplementedError

    def to_openapi(self) -> dict[str, Any]:
        """Return a fresh JSON schema of the accepted values."""
        raise NotImplementedError


class _String(_Check):
    def __init__(self, *, min_length: int = 0) -> None:
        self.min_length = min_length

    def __call__(self, value: object) -> object:
        if not isinstance(value, str):
            raise EventInvalid("must be a string", "validation.type")
        if len(value) < self.min_length:
            raise EventInvalid("must not be empty", "validation.length")
        return value

    def accepts(self, source: Source, var: str) -> str:
        longer = f" and len({var}) >= {source.bind(self.min_length)}" if self.min_length > 1 else ""
        return f"type({var}) is str" + (f" and {var}" if self.min_length == 1 else longer)

    def accepts_column(self, values: Sequence[Any]) -> bool:
        try:
            "".join(values)  # the quickest way to find out that all of them are texts
        except TypeError:
            return False
        if self.min_length == 1:
            return all(values)  # a third of the time that their lengths take
        return not self.min_length or min(map(len, values)) >= self.min_length

    def to_openapi(self) -> dict[str, Any]:
        return {"type": "string", "minLength": self.min_length} if self.min_length else {"type": "string"}


class _OneOf(_String):
    def __init__(self, *words: str) -> None:
        super().__init__()
        self.words = words
        self._known = frozenset(words)

    def __call__(self, value: object) -> object:
        if super().__call__(value) not in self.words:
            raise EventInvalid(f"must be one of: {', '.join(self.words)}", "validation.enum")
        return value

    def accepts(self, source: Source, var: str) -> str:
        return f"type({var}) is str and {var} in {source.bind(frozenset(self.words))}"

    def accepts_column(self, values: Sequence[Any]) -> bool:
        first = values[0]
        if values.count(first) == len(values):  # the usual batch is of one device: half of the time of what follows
            return type(first) is str and first in self._known
        try:
            return self._known.issuperset(values)
        except TypeError:  # an object or array among them
            return False

    def to_openapi(self) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.words)}


# ISO 8601-1:2019, 5.4.2: calendar date and time of day with minutes at least, extended or basic. RFC 3339, 5.6 allows
# t and z in lower case. Hour 24 and second 60 are left out: few targets can read them.
_TIME_PATTERN: Final = re.compile(
    r"""(?:[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt](?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9](?:[.,][0-9]++)?)?
          |[0-9]{8}[Tt](?:[01][0-9]|2[0-3])[0-5][0-9](?:[0-5][0-9](?:[.,][0-9]++)?)?)
        (?:[Zz]|[+-](?:[01][0-9]|2[0-3])(?::?[0-5][0-9])?)?""",
    re.VERBOSE,
)


_USUAL_TIME: Final = re.compile(
    r"20[0-9][0-9]-(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])"
    r"T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9}+)?+Z"
)
"""What nearly every sender writes. Each text of this form is a moment: up to day 28 the calendar need not be asked."""
_USUAL_TIMES: Final = re.compile(rf"{_USUAL_TIME.pattern}(?:\n{_USUAL_TIME.pattern})*+")


class _Datetime(_String):
    def __call__(self, value: object) -> object:
        super().__call__(value)
        if not is_datetime(str(value)):
            raise EventInvalid("must be a valid ISO 8601 datetime", "validation.format")
        return value

    def accepts(self, source: Source, var: str) -> str:
        return f"type({var}) is str and {source.bind(_USUAL_TIME.fullmatch)}({var}) is not None"

    def accepts_column(self, values: Sequence[Any]) -> bool:
        try:
            text = "\n".join(values)
        except TypeError:
            return False
        return text.count("\n") == len(values) - 1 and _USUAL_TIMES.fullmatch(text) is not None

    def to_openapi(self) -> dict[str, Any]:
        return {"type": "string", "format": "date-time"}


def is_datetime(text: str) -> bool:
    """Tell whether this is an ISO 8601 date and time as the contract wants it."""
    if len(text) > _MAX_TIME_CHARS or not _TIME_PATTERN.fullmatch(text):
        return False
    try:
        # The calendar is checked here, and that the moment exists in UTC: 0001-01-01T00:00+01:00 lies before year 1.
        moment = datetime.fromisoformat(text.upper().replace(",", "."))
        moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        return False
    return True


class _Object(_Check):
    def __call__(self, value: object) -> object:
        if not isinstance(value, dict):
            raise EventInvalid("must be an object", "validation.type")
        return value

    def accepts(self, source: Source, var: str) -> str:
        return source.object(var)

    def to_openapi(self) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": True}


class _Strings(_Check):
    """An array of strings. A voluptuous sequence would raise one exception for each of a million wrong elements."""

    def __call__(self, value: object) -> object:
        if not isinstance(value, list):
            raise EventInvalid("must be an array", "validation.type")
        wrong = [index for index, element in enumerate(value) if not isinstance(element, str)]
        if wrong:
            errors: list[vol.Invalid] = [
                EventInvalid("must be a string", "validation.type", [index]) for index in wrong[:MAX_DETAILS]
            ]
            if len(wrong) > MAX_DETAILS:
                errors.append(_MoreInvalid(len(wrong) - MAX_DETAILS))
            raise vol.MultipleInvalid(errors)
        return value

    def accepts(self, source: Source, var: str) -> str:
        return f"type({var}) is list and all([type(element) is str for element in {var}])"

    def to_openapi(self) -> dict[str, Any]:
        return {"type": "array", "items": {"type": "string"}}


_NAME: Final = _String(min_length=1)
_TEXT: Final = _String()
_OBJECT: Final = _Object()

_REQUIRED_FIELDS: Final[Mapping[str, tuple[_Check, str]]] = {
    "event_id": (_NAME, "Identifies the event; the sender keeps it when it sends the event again."),
    "event_type": (_NAME, "Class of the event, for example click."),
    "event_name": (_NAME, "Name of the event, for example button_click."),
    "event_time": (_Datetime(), "When it happened: ISO 8601 date and time; Z, an offset, or none for UTC."),
    "user_id": (_NAME, "Who did it."),
    "session_id": (_NAME, "The session it happened in."),
    "page_name": (_NAME, "The page or screen it happened on."),
}
_OPTIONAL_FIELDS: Final[Mapping[str, tuple[_Check, str]]] = {
    "element_id": (_TEXT, "The element of the page that was used."),
    "referrer": (_TEXT, "Where the user came from."),
    "app_version": (_TEXT, "Version of the application that made the event."),
    "device_type": (_OneOf("mobile", "desktop", "tablet"), "Kind of device."),
    "platform": (_OneOf("ios", "android", "web"), "Platform of the application."),
    "network_type": (_OneOf("wifi", "cellular", "unknown"), "Kind of network."),
    "content": (_OBJECT, "What was shown."),
    "behavior": (_OBJECT, "How the user acted."),
    "performance": (_OBJECT, "Measured times and sizes."),
    "location": (_OBJECT, "Where the user was."),
    "commerce": (_OBJECT, "Products, prices, orders."),
    "interaction": (_OBJECT, "Details of the interaction."),
    "extras": (_OBJECT, "Custom data of the sender, in any shape."),
    "experiments": (_Strings(), "Experiments and variants the user was part of."),
}
_FIELDS: Final = {**_REQUIRED_FIELDS, **_OPTIONAL_FIELDS}
_RANK: Final = {name: rank for rank, name in enumerate(_FIELDS)}
_NEAR_NAMES: Final = NearNames(tuple(_FIELDS))


class EventValidator:
    """The schema of one gateway: the contract's fields and what the site chose to add.

    ``unknown_fields`` decides about top-level fields outside the schema. ``required`` names optional fields that this
    site wants required; a name outside the schema raises `ValueError`.
    """

    def __init__(self, unknown_fields: UnknownFields = "reject", required: Sequence[str] = ()) -> None:
        if strangers := [name for name in required if name not in _FIELDS]:
            raise ValueError(f"no such field in the event schema: {', '.join(strangers)}")
        wanted = {*_REQUIRED_FIELDS, *required}
        self.unknown_fields = unknown_fields
        self.schema = vol.Schema(
            {
                vol.Required(name, msg="is required", description=description)
                if name in wanted
                else vol.Optional(name, description=description): check
                for name, (check, description) in _FIELDS.items()
            },
            extra=_EXTRA[unknown_fields],
        )
        self.accepts = generate(self.schema)
        """Says whether a value is surely valid as it is, in a twentieth of the time; None: there is no such check."""
        self.accepts_flat = generate_columns(self.schema)
        """Says so of all of some events that hold nothing in which what is nested too deep or too large could hide."""

    def validate(self, value: object, max_details: int = MAX_DETAILS) -> tuple[Event | None, list[Detail]]:
        """Return the event and no details, or None and every mistake; never raises, whatever came out of the parser.

        The event is the caller's own dict, except when unknown fields are dropped from a copy. Details follow the order
        of the schema, unknown fields last in the order sent; past `max_details` (at most 1,000) the rest is a number.
        """
        if not isinstance(value, dict):
            return None, [Detail(field="event", message="must be a JSON object", code="validation.type")]
        if self.accepts is not None and self.accepts(value):
            return value, []
        limit = min(max_details, MAX_DETAILS)
        judged, left_out = self._bound(value, limit)
        try:
            event: Event = self.schema(judged)
        except vol.MultipleInvalid as error:
            return None, _details(error.errors, left_out, limit)
        return (event if self.unknown_fields == "drop" else value), []

    def _bound(self, event: Event, limit: int) -> tuple[Event, int]:
        """Return what voluptuous is to judge, and how many unknown fields were left out, being more than are told."""
        if self.unknown_fields != "reject" or len(event) <= len(_FIELDS) + limit:
            return event, 0
        judged: Event = {}
        unknown = 0
        for name, value in event.items():
            known = name in _FIELDS
            if known or unknown < limit:
                judged[name] = value
            unknown += not known
        return judged, max(0, unknown - limit)


def to_openapi(schema: vol.Schema) -> dict[str, Any]:
    """Return the JSON schema (OpenAPI 3.1) of an event, made from the live voluptuous schema."""
    import voluptuous_openapi

    def serialize(part: object) -> Any:
        return part.to_openapi() if isinstance(part, _Check) else voluptuous_openapi.UNSUPPORTED

    converted: dict[str, Any] = voluptuous_openapi.convert(
        schema, custom_serializer=serialize, openapi_version=voluptuous_openapi.OpenApiVersion.V3_1
    )
    converted["additionalProperties"] = schema.extra != vol.PREVENT_EXTRA
    return converted


def _details(errors: list[vol.Invalid], unlisted: int, limit: int) -> list[Detail]:
    listed: list[tuple[int, vol.Invalid]] = []
    for error in errors:
        if isinstance(error, _MoreInvalid):
            unlisted += error.count
        else:
            listed.append((_RANK.get(str(error.path[0]), len(_RANK)), error))
    listed.sort(key=lambda item: item[0])  # stable: elements and unknown fields keep the order in which they were sent
    unlisted += max(0, len(listed) - limit)
    details: list[Detail] = []
    suggestions = _MAX_SUGGESTIONS
    for rank, error in listed[:limit]:
        if rank < len(_RANK):
            code = "validation.required" if isinstance(error, vol.RequiredFieldInvalid) else "validation.type"
            details.append(Detail(field=_path(error.path), message=error.msg, code=getattr(error, "code", code)))
        else:
            name = str(error.path[0])
            near = _NEAR_NAMES.get(name) if suggestions > 0 else None
            suggestions -= 1
            message = f"did you mean {near}?" if near else "custom data belongs in extras"
            message = f"is not a known field; {message}"
            details.append(Detail(field=echo_name(name), message=message, code="validation.unknown"))
    if unlisted:
        message = f"has {unlisted} more mistake{'s' if unlisted > 1 else ''}"
        details.append(Detail(field="event", message=message, code="validation.limit"))
    return details


def _path(path: Sequence[object]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else str(step) for step in path)


def echo_name(name: str) -> str:
    """Return a field name out of a request as it may stand in an answer or a log: short, no control characters."""
    name = name[:_ECHOED_CHARS]
    return name if name.isprintable() else "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in name)
