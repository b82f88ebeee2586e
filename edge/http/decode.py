"""From the bytes of a body to candidate events: JSON, a batch in one of three shapes, structure limits.

A mistake that spoils the whole body is raised: `NoEventsError` for what it says, `BodyError` for how much it is. One
that spoils a single event travels with that event.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from edge.api import EdgeError
from edge.config.model import Limits
from edge.http.bodies import BodyError, split_ndjson
from edge.http.large import LARGE_BYTES
from edge.json_body import FLAT_DEPTH, NUL, check_structure, check_structures, parse_json
from edge.judging import Candidate, Candidates
from edge.validation import Detail, echo_name, is_datetime

ENVELOPE_FIELDS = ("events", "sent_at")

UNREAD_FACTOR = 4
"""A body of so many times `limits.event_bytes` is not even parsed as an event."""
EVENT_VALUES = 50_000
BATCH_VALUES = 200
"""The most values in one event, and in a batch for each event it may have."""


class NoEventsError(EdgeError):
    """The body is no events; `details` has all that is wrong with it."""

    def __init__(self, details: Sequence[Detail]) -> None:
        super().__init__(details[0]["message"])
        self.details = details


def decode_single(raw: bytes, limits: Limits) -> Candidates:
    """Return the one event of a body of `POST /ingest`; `NoEventsError` for what is no JSON."""
    value, mistake = _parse_event(raw, limits)
    if mistake is not None:
        raise NoEventsError([mistake])
    return _unchecked(raw, [value], len(raw), limits)


def decode_event(raw: bytes, limits: Limits) -> Candidate:
    """Return an event, with what is wrong with it as JSON."""
    value, mistake = _parse_event(raw, limits)
    if mistake is None:
        mistake = check_structure(raw, value, limits.depth)
    return Candidate(value, mistake, len(raw))


def _parse_event(raw: bytes, limits: Limits) -> tuple[object, Detail | None]:
    if len(raw) > limits.event_bytes * UNREAD_FACTOR:
        # The door measures an event without blanks and escapes; they hardly ever are three quarters of it.
        message = f"must be at most {limits.event_bytes} bytes"
        return None, Detail(field="event", message=message, code="limit.event")
    mistake = _too_many_values(raw, EVENT_VALUES)
    return parse_json(raw) if mistake is None else (None, mistake)


def _too_many_values(raw: bytes, limit: int) -> Detail | None:
    """Return the mistake of a body that may hold more values than the limit, before anything is made of them.

    A parser makes an object of dozens of bytes out of two or three. There are at most as many values as commas and
    opening brackets, and one; those inside of strings count too, which only matters in a body far above this size.
    """
    if len(raw) <= 2 * limit or raw.count(b",") + raw.count(b"[") + raw.count(b"{") < limit:
        return None
    return Detail(field="body", message=f"has more than {limit} values", code="json.limit")


def decode_batch(raw: bytes, media_type: str, limits: Limits) -> Candidates:
    """Return the events of a body of `POST /ingest/batch`.

    `BodyError` when there are too many of them, `NoEventsError` with the mistakes of the body itself.
    """
    mistake = _too_many_values(raw, max(EVENT_VALUES, BATCH_VALUES * limits.batch_events))
    if mistake is not None:
        raise NoEventsError([mistake])
    if media_type == "ndjson":
        lines = split_ndjson(raw, limits.batch_events)
        _check_count(len(lines), limits)
        candidates = _lines([decode_event(line, limits) for line in lines])
    else:
        candidates = _decode_json(raw, limits)
    if not len(candidates):
        raise NoEventsError([Detail(field="events", message="must not be empty", code="validation.length")])
    return candidates


def _check_count(n_events: int, limits: Limits) -> None:
    if n_events > limits.batch_events:
        raise BodyError(413, "limit.batch", "events", f"must have at most {limits.batch_events} events")


def _decode_json(raw: bytes, limits: Limits) -> Candidates:
    value, mistake = parse_json(raw)
    if mistake is not None:
        raise NoEventsError([mistake])
    sent_at = ""
    events: object = value
    if isinstance(value, dict):
        details = _envelope_mistakes(value)
        if details:
            raise NoEventsError(details)
        events, sent_at = value["events"], value.get("sent_at") or ""
    if not isinstance(events, list):
        message = 'must be an array of events or {"events": [...]}'
        raise NoEventsError([Detail(field="body", message=message, code="validation.type")])
    _check_count(len(events), limits)
    small = len(raw) if len(raw) <= limits.event_bytes else 0
    return _unchecked(raw, events, small, limits, sent_at)


def _unchecked(raw: bytes, events: list[object], whole_bytes: int, limits: Limits, sent_at: str = "") -> Candidates:
    """Return events whose structure is looked at only if they are not flat, which costs as much as parsing them."""
    look = partial(check_structures, raw, events, limits.depth)
    # What is large is decoded in a thread, and looked at there: the loop has no time for it.
    if limits.depth < FLAT_DEPTH or len(raw) > LARGE_BYTES or (b"\\" in raw and NUL in raw):
        return Candidates(events, whole_bytes, look(), sent_at=sent_at)
    return Candidates(events, whole_bytes, look_deeper=look, sent_at=sent_at)


def _lines(candidates: list[Candidate]) -> Candidates:
    """Return the events of a body that has one a line."""
    mistakes = [candidate.mistake for candidate in candidates]
    sizes = [candidate.size_bytes for candidate in candidates]
    values = [candidate.value for candidate in candidates]
    return Candidates(values, max(sizes, default=0), mistakes if any(mistakes) else None, sizes)


def _envelope_mistakes(envelope: dict[str, object]) -> list[Detail]:
    details: list[Detail] = []
    if "events" not in envelope:
        details.append(Detail(field="events", message="is required", code="validation.required"))
    elif not isinstance(envelope["events"], list):
        details.append(Detail(field="events", message="must be an array", code="validation.type"))
    sent_at = envelope.get("sent_at")
    if sent_at is not None and not isinstance(sent_at, str):
        details.append(Detail(field="sent_at", message="must be a string", code="validation.type"))
    elif isinstance(sent_at, str) and not is_datetime(sent_at):
        details.append(Detail(field="sent_at", message="must be a valid ISO 8601 datetime", code="validation.format"))
    unknown = [name for name in envelope if name not in ENVELOPE_FIELDS]
    if unknown:
        message = "is not a known field; a batch has events and sent_at"
        details.extend(
            Detail(field=echo_name(name), message=message, code="validation.unknown") for name in unknown[:1000]
        )
    return details
