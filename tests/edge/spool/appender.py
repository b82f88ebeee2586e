"""Appends numbered payloads as fast as it can; writes the number and the place of each once it was acknowledged.

Run by the tests as a process of its own: `appender.py DIRECTORY FIRST_NUMBER`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sys
from dataclasses import replace
from pathlib import Path

from edge.spool import Cursor, CursorFile, Log


def payload(number: int) -> bytes:
    return b"%012d" % number + random.Random(number).randbytes(random.Random(number).randrange(600))


async def main(path: Path, start: int) -> None:
    log = Log.open(path, segment_bytes=64 * 1024)
    log.start(asyncio.get_running_loop())
    numbers = itertools.count(start)

    async def append() -> None:
        for number in numbers:
            seq = await log.append(payload(number))
            os.write(1, b"ack %d %d\n" % (number, seq))

    async def release() -> None:
        """Move a cursor and free segments all the time, so that unlinking happens under fire as well."""
        cursor_file = CursorFile(path, "archive")
        cursor = cursor_file.load() or Cursor()
        while True:
            position = max(log.durable_seq - 2000, cursor.position)
            cursor = replace(cursor, position=position, delivered=position)
            await asyncio.to_thread(cursor_file.save, cursor)
            await asyncio.to_thread(log.release, position)

    await asyncio.gather(release(), *(append() for _ in range(20)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
