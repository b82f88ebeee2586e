"""Peer: a bare `tornado.web` handler that parses JSON and does nothing else."""

from __future__ import annotations

import asyncio
import sys

import orjson
import uvloop
from tornado.web import Application, RequestHandler


class Ingest(RequestHandler):
    """One event."""

    def post(self) -> None:
        """Take it."""
        event = orjson.loads(self.request.body)
        self.write({"status": "success", "eventId": event["event_id"]})


class Batch(RequestHandler):
    """Several events."""

    def post(self) -> None:
        """Take them."""
        self.write({"status": "success", "accepted": len(orjson.loads(self.request.body))})


async def main(port: int) -> None:
    """Serve until SIGTERM."""
    routes = [("/ingest", Ingest), ("/ingest/batch", Batch)]
    Application(routes, log_function=lambda handler: None).listen(port, "127.0.0.1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
