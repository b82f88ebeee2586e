"""Opens spools, one for each path that comes on stdin, and says on stdout what came of it: one JSON object per line.

A process of its own, so that a start that hangs can be noticed and ended. With the argument `--nobody` it first gives
up the rights of root, for which no file is unreadable.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from pathlib import Path

from edge import logs
from edge.spool import CursorFile, Log, SpoolError
from edge.spool.inspect import verify

NOBODY = 65534


async def attempt(path: Path) -> dict[str, object]:
    """Look at a spool from outside, open it, read all, append, close."""
    started = time.monotonic()
    try:
        verify(path)
        log = Log.open(path, shard="shard-000", segment_bytes=64 * 1024)
    except SpoolError as error:
        return {"error": f"{type(error).__name__}: {error}", "secs": time.monotonic() - started}
    secs = time.monotonic() - started
    log.start(asyncio.get_running_loop())
    try:
        CursorFile(path, "fresh").load()
        seq = await log.append(b"fresh")
        payloads: list[str] = []
        position, lost = 0, 0
        while position < log.durable_seq:
            result = log.read(position, 1 << 20)
            position, lost = result.position, lost + result.lost_events
            payloads += [frame.payload.decode("latin-1") for frame in result.frames]
        return {"secs": secs, "seq": seq, "payloads": payloads, "lost": lost, "corrupt": log.stats().corrupt_bytes}
    finally:
        await log.close()


def main() -> None:
    if "--nobody" in sys.argv:
        asyncio.run(asyncio.sleep(0))  # whatever is imported late is imported now
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    logs.configure("error", "json")
    logging.disable(logging.CRITICAL)
    for line in sys.stdin:
        try:
            answer = asyncio.run(attempt(Path(line.rstrip("\n"))))
        except Exception as error:  # noqa: BLE001 - whatever it is, the row is to see it
            answer = {"error": f"TRACEBACK {type(error).__name__}: {error}", "secs": 0.0}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
