"""Peer: Litestar validates the event with msgspec and stores nothing."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Annotated, Any, Literal

from litestar import Litestar, post
from msgspec import Meta, Struct
from serve import serve

Name = Annotated[str, Meta(min_length=1)]
Object = dict[str, Any]


class Event(Struct, forbid_unknown_fields=True):
    """One analytics event."""

    event_id: Name
    event_type: Name
    event_name: Name
    event_time: datetime
    user_id: Name
    session_id: Name
    page_name: Name
    element_id: str | None = None
    referrer: str | None = None
    app_version: str | None = None
    device_type: Literal["mobile", "desktop", "tablet"] | None = None
    platform: Literal["ios", "android", "web"] | None = None
    network_type: Literal["wifi", "cellular", "unknown"] | None = None
    content: Object | None = None
    behavior: Object | None = None
    performance: Object | None = None
    location: Object | None = None
    commerce: Object | None = None
    interaction: Object | None = None
    extras: Object | None = None
    experiments: list[str] | None = None


@post("/ingest", status_code=200)
async def ingest(data: Event) -> dict[str, str]:
    """Take one event."""
    return {"status": "success", "eventId": data.event_id}


@post("/ingest/batch", status_code=200)
async def batch(data: list[Event]) -> dict[str, str | int]:
    """Take a batch."""
    return {"status": "success", "accepted": len(data)}


if __name__ == "__main__":
    serve(Litestar([ingest, batch], openapi_config=None, logging_config=None), int(sys.argv[1]))
