"""Peer: FastAPI doing what ours does: validate, append to a file, fsync in a thread, then answer."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from event import Batch, Event
from fastapi import FastAPI
from serve import serve
from starlette.concurrency import run_in_threadpool

app = FastAPI()


class Store:
    """A file of one event a line."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def append(self, lines: bytes) -> None:
        """Write lines; they are on disk when this returns. Blocking."""
        # One write of O_APPEND is not torn by another's, so no lock is needed, and fsyncs of several threads overlap.
        os.write(self._file, lines)
        os.fsync(self._file)


def line_of(event: Event) -> str:
    """Return what is stored of an event."""
    return event.model_dump_json(exclude_unset=True) + "\n"


@app.post("/ingest")
async def ingest(event: Event) -> dict[str, str]:
    """Take one event."""
    await run_in_threadpool(app.state.store.append, line_of(event).encode())
    return {"status": "success", "eventId": event.event_id}


@app.post("/ingest/batch")
async def batch(events: Batch) -> dict[str, str | int]:
    """Take a batch."""
    await run_in_threadpool(app.state.store.append, "".join(map(line_of, events)).encode())
    return {"status": "success", "accepted": len(events)}


if __name__ == "__main__":
    app.state.store = Store(Path(sys.argv[2]) / "events.ndjson")
    serve(app, int(sys.argv[1]))
