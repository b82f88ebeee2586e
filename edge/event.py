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

FrameMeta = dict[str, Any]


def frame_meta(context: Context, sent_at: str = "") -> FrameMeta:
    """Return the shared metadata of the events of one request."""
    meta: FrameMeta = {
        "key": context.key_id,
        "received_at": context.received_at.isoformat(),
        "request_id": context.request_id,
    }
    if context.traceparent:
        meta["traceparent"] = context.traceparent
    if sent_at:
        meta["sent_at"] = sent_at
    return meta


def pack(meta: Mapping[str, Any], lines: Sequence[bytes]) -> bytes:
    """Return the payload of a frame. Each line is one JSON object without a newline."""
    return b"\n".join((orjson.dumps(meta), *lines))


def unpack(payload: bytes) -> tuple[FrameMeta, list[bytes]]:
    """Return metadata and lines of a payload that `pack` made; a `ValueError` means that something else made it."""
    head, *lines = payload.split(b"\n")
    meta = orjson.loads(head)
    if not isinstance(meta, dict):
        raise ValueError("the first line of a frame is not a JSON object")
    return meta, lines


def event_metadata(meta: Mapping[str, Any]) -> EventMetadata:
    """Return what a sink may know of an event, out of the metadata of its frame."""
    return EventMetadata(
        key_id=meta.get("key", ""),
        received_at=parse_time(meta.get("received_at", "")),
        request_id=meta.get("request_id", ""),
        traceparent=meta.get("traceparent", ""),
        sent_at=meta.get("sent_at", ""),
    )


def parse_time(text: str) -> datetime:
    """Return an ISO 8601 time as an aware datetime (UTC when it names no offset); the epoch for what is no time."""
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)
    return value if value.tzinfo else value.replace(tzinfo=UTC)
