"""How events lie in a frame of the spool: one line of metadata, then one line for each event.

The first line is a JSON object that all events of the frame share (who sent them, when, under which request id); the
others are the canonical JSON of the events, as the sinks get them. The spool itself knows only bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from edge.api import Context, EventMetadata
from edge.lines import split_lines

FrameMeta = dict[str, Any]

SHORT_META_BYTES = 500
"""A first line up to this length surely can be written again: what is nested too deep for that takes more brackets."""
_new_tuple = tuple.__new__
_ID_FIRST = b'{"event_id":"'


def frame_meta(context: Context, sent_at: str = "", event_ids: Mapping[str, str] | None = None) -> FrameMeta:
    """Return the shared metadata of the events of one request.

    `event_ids` has, by their index as text, the ids under which events were sent that are stored under another one.
    """
    meta: FrameMeta = {
        "key": context.key_id,
        "received_at": context.received_at,  # `pack` writes it as ISO 8601, in a quarter of the time of `isoformat`
        "request_id": context.request_id,
    }
    if context.traceparent:
        meta["traceparent"] = context.traceparent
    if sent_at:
        meta["sent_at"] = sent_at
    if event_ids:
        meta["event_ids"] = event_ids
    return meta


def pack(meta: Mapping[str, Any], lines: Sequence[bytes]) -> bytes:
    """Return the payload of a frame. Each line is one JSON object without a newline."""
    return b"\n".join((orjson.dumps(meta), *lines))


def unpack(payload: bytes) -> tuple[FrameMeta, list[bytes]]:
    """Return metadata and lines of a payload that `pack` made; a `ValueError` means that something else made it."""
    meta, text = unpack_text(payload)
    return meta, [] if text is None else split_lines(text)


def unpack_text(payload: bytes) -> tuple[FrameMeta, bytes | None]:
    """Do what `unpack` does and leave the lines together; None when there are none."""
    head, parting, text = payload.partition(b"\n")
    meta = orjson.loads(head)
    if not isinstance(meta, dict):
        raise ValueError("the first line of a frame is not a JSON object")
    if len(head) > SHORT_META_BYTES:
        try:
            orjson.dumps(meta)
        except orjson.JSONEncodeError as error:
            raise ValueError("the first line of a frame is nested too deep to be written again") from error
    return meta, text if parting else None


def sent_ids(meta: Mapping[str, Any], lines: Sequence[bytes]) -> list[bytes]:
    """Return the ids under which the events of a frame were sent, as UTF-8; events without one are left out.

    A `ValueError` means that something else than `pack` made the lines.
    """
    ids = [_stored_id(line) for line in lines]
    changed: Mapping[str, str] = meta.get("event_ids", {})
    for index, event_id in changed.items():
        ids[int(index)] = event_id.encode()
    return [event_id for event_id in ids if event_id is not None]


def _stored_id(line: bytes) -> bytes | None:
    # Most senders write the id first, and a million lines are to be read at a start: no need to parse them whole.
    if line.startswith(_ID_FIRST):
        event_id = line[len(_ID_FIRST) : line.find(b'"', len(_ID_FIRST))]
        if b"\\" not in event_id:
            return event_id
    event = orjson.loads(line)
    value = event.get("event_id") if isinstance(event, dict) else None
    return value.encode() if isinstance(value, str) else None


def event_metadata(meta: Mapping[str, Any]) -> EventMetadata:
    """Return what a sink may know of an event, out of the metadata of its frame."""
    get = meta.get
    received_at = parse_time(get("received_at", ""))
    about = get("key", ""), received_at, get("request_id", ""), get("traceparent", ""), get("sent_at", "")
    # Half of what a call of the class takes: every event that came by itself has one.
    return _new_tuple(EventMetadata, about)


def parse_time(text: str) -> datetime:
    """Return an ISO 8601 time as an aware datetime (UTC when it names no offset); the epoch for what is no time."""
    try:
        value = datetime.fromisoformat(text)
    except (ValueError, TypeError):  # in a frame that something else wrote it may not even be a text
        return datetime.fromtimestamp(0, UTC)
    return value if value.tzinfo else value.replace(tzinfo=UTC)
