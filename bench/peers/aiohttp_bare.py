"""Peer: an aiohttp handler that parses JSON and does nothing else."""

from __future__ import annotations

import sys

import orjson
import uvloop
from aiohttp import web

KEEP_ALIVE_SECS = 3600


async def ingest(request: web.Request) -> web.Response:
    """Take one event."""
    event = orjson.loads(await request.read())
    return web.json_response({"status": "success", "eventId": event["event_id"]})


async def batch(request: web.Request) -> web.Response:
    """Take a batch."""
    return web.json_response({"status": "success", "accepted": len(orjson.loads(await request.read()))})


def main(port: int) -> None:
    """Serve until SIGTERM."""
    app = web.Application(client_max_size=4 << 20)
    app.add_routes([web.post("/ingest", ingest), web.post("/ingest/batch", batch)])
    loop = uvloop.new_event_loop()
    web.run_app(
        app,
        host="127.0.0.1",
        port=port,
        access_log=None,
        print=None,
        keepalive_timeout=KEEP_ALIVE_SECS,
        backlog=1024,
        loop=loop,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
