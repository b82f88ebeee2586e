"""The sink `console`."""

from __future__ import annotations

import errno
import os
import sys

from edge.api import Batch, ComponentRegistry, RetryableError, Sink, hookimpl

from ..support.threads import JobThread


class Console(Sink):
    """Write each event as one line of JSON to standard output.

    For looking on while trying things out, and for containers whose output is collected. A reader that is slow (a full
    pipe, a paused terminal) delays this sink and nothing else. When the reader is gone or the write fails, the batch is
    retried; lines that were written before may then come twice.

    Example:

    ```yaml
    sinks:
      screen:
        type: console
        when: {event_type: purchase}
    ```
    """

    type = "console"

    _thread: JobThread | None = None

    @hookimpl
    async def edge_open(self) -> None:
        if self._thread is None:
            self._thread = JobThread(f"console sink {self.id}")

    @hookimpl
    async def edge_deliver(self, batch: Batch) -> None:
        if self._thread is None:
            raise RetryableError("the sink is not open")
        data = b"\n".join((*[block.text for block in batch.blocks], b""))
        try:
            await self._thread.run(lambda: _write_all(data), key=(batch.id, len(data)))
        except OSError as error:
            raise RetryableError(f"standard output cannot be written: {error.strerror}") from error

    @hookimpl
    async def edge_close(self) -> None:
        if self._thread is not None:
            self._thread.stop()
            self._thread = None


def _write_all(data: bytes) -> None:
    """Write to the file descriptor of standard output, whatever became of `sys.stdout`. Blocks as long as it takes."""
    if sys.__stdout__ is None:
        # The process was started with its output closed; the number 1 may be any file by now.
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    descriptor = sys.__stdout__.fileno()
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


@hookimpl
def edge_register_components(registry: ComponentRegistry) -> None:
    """Register the sink."""
    registry.add(Console)
