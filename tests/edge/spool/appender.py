"""Appends numbered payloads as fast as it can and writes the number of each to stdout once it was acknowledged."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sys
from pathlib import Path

from edge.spool import CursorFile, Log


def payload(number: int) -> bytes:
    return b"%012d" % number + random.Random(number).randbytes(random.Random(number).randrange(600))


async def main(path: Path, start: int) -> None:
    log = Log.open(path, segment_bytes=64 * 1024)
    log.start(asyncio.get_running_loop())
    cursor_file = CursorFile(path, "archive")
    cursor = cursor_file.load()
    os.write(1, b"ready\n")
    numbers = itertools.count(start)

    async def append() -> None:
        for number in numbers:
            await log.append(payload(number))
            os.write(1, b"%d\n" % number)

    async def release() -> None:
        # Frees old segments all the time, so that unlinking happens under fire as well.
        from dataclasses import replace

        from edge.spool import Cursor

        position = cursor or Cursor()
        while True:
            await asyncio.sleep(0.01)
            target = max(log.durable_seq - 2000, position.position)
            delivered = position.delivered + target - position.position
            position = replace(position, position=target, delivered=delivered)
            await asyncio.to_thread(cursor_file.save, position)
            await asyncio.to_thread(log.release, position.position)

    await asyncio.gather(release(), *(append() for _ in range(20)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
