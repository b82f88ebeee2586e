"""Peer: FastAPI validates the event and stores nothing."""

from __future__ import annotations

import sys

from event import Batch, Event
from fastapi import FastAPI
from serve import serve

app = FastAPI()


@app.post("/ingest")
async def ingest(event: Event) -> dict[str, str]:
    """Take one event."""
    return {"status": "success", "eventId": event.event_id}


@app.post("/ingest/batch")
async def batch(events: Batch) -> dict[str, str | int]:
    """Take a batch."""
    return {"status": "success", "accepted": len(events)}


if __name__ == "__main__":
    serve(app, int(sys.argv[1]))
