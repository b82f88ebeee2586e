"""The sink `file`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from voluptuous import All, In, Invalid, Length, Optional, Required

from edge.api import Batch, ComponentRegistry, RetryableError, Sink, hookimpl

from ..support.checks import takes
from ..support.codecs import CODECS
from ..support.confined import OutsideRootError
from ..support.partitions import PartitionedFiles, Parts
from ..support.threads import JobThread

MIN_LOOK_SECS, MAX_LOOK_SECS = 0.05, 30.0
"""How often at most and at least the ages of open files are looked at."""


@takes("number above 0")
def _positive(value: object) -> int | float:
    """Check a number above zero."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise Invalid("must be a number above 0")
    return value


@takes("whole number above 0")
def _positive_whole(value: object) -> int:
    """Check a whole number above zero."""
    if isinstance(value, bool) or not isinstance(value, int) or not value > 0:
        raise Invalid("must be a whole number above 0")
    return value


class File(Sink):
    """Append each event as one line of JSON to files, partitioned by the hour in which it was received.

    A file is called ``<path>/dt=2026-11-23/hour=20/<id>-<time of opening>-<number>.ndjson`` (date and hour in UTC) and
    has the suffix ``.open`` while it is written. It is closed, and loses the suffix in one step, when it reaches
    `rotate.max_bytes` or is `rotate.max_age_secs` old, also when no events come; a file of that name is never
    overwritten. Whatever lacks the suffix is complete and never changes again.

    A batch is delivered once its lines are on disk (``durability: disk``). With compression each batch is a gzip member
    or zstd frame of its own, so that the file is readable up to the last batch at any time. What a killed gateway left
    open is repaired when the sink opens: a line or member that was cut off is removed (its batch was not acknowledged
    and is delivered again), and the file gets its final name.

    A full disk or an I/O error is retried; the file is cut back to the last complete batch first. Files are created
    with mode 0640 and directories with 0750 (the umask may take more away). Nothing below `path` may be a symbolic
    link to a directory: the sink refuses to write there and tries again later. Several sinks may share a `path` if
    their ids differ.

    Example:

    ```yaml
    sinks:
      archive:
        type: file
        path: /var/lib/edge/events
        rotate: {max_bytes: 268435456, max_age_secs: 900}
        compression: zstd
    ```
    """

    type = "file"
    # A batch is an fdatasync and four changes of threads, which for 500 events cost more than writing them.
    defaults = {"batch": {"max_events": 5000, "max_bytes": 4 * 1024 * 1024}}
    options = {
        Required("path", description="Directory of the files; created when it is missing."): All(
            str, Length(min=1, msg="must be a directory")
        ),
        Optional("partition", default="hour", description="Directories by time of receipt: hour, day or none."): In(
            ["hour", "day", "none"]
        ),
        Optional("rotate", default=dict, description="When a file is closed and the next one begins."): {
            Optional(
                "max_bytes", default=134217728, description="Size of the file, compressed if it is."
            ): _positive_whole,
            Optional("max_age_secs", default=3600, description="Time since the file was opened."): _positive,
        },
        Optional("compression", default="none", description="none, gzip or zstd; decides the extension too."): In(
            list(CODECS)
        ),
        Optional(
            "durability", default="disk", description="disk: delivered means fdatasync returned; os: written."
        ): In(["disk", "os"]),
    }

    def __init__(self, id: str, options: Mapping[str, Any]) -> None:
        super().__init__(id, options)
        self.monotonic: Callable[[], float] = time.monotonic
        """The clock that files age by; tests set their own before the sink is opened."""
        self.sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
        self._thread: JobThread | None = None
        self._files: PartitionedFiles | None = None
        self._aging: asyncio.Task[None] | None = None

    @hookimpl
    async def edge_open(self) -> None:
        options = self.options
        if self._thread is None or self._files is None:
            self._thread = JobThread(f"file sink {self.id}")
            self._files = PartitionedFiles(
                Path(options["path"]),
                self.id,
                codec=CODECS[options["compression"]],
                max_bytes=options["rotate"]["max_bytes"],
                max_age_secs=options["rotate"]["max_age_secs"],
                durable=options["durability"] == "disk",
                monotonic=self.monotonic,
            )
        try:
            await self._thread.run(self._files.open, key="open")
        except OSError as error:
            raise self._retryable(error) from error
        if self._aging is None or self._aging.done():
            self._aging = asyncio.create_task(self._age(self._thread, self._files))

    @hookimpl
    async def edge_deliver(self, batch: Batch) -> None:
        thread, files = self._thread, self._files
        if thread is None or files is None:
            raise RetryableError("the sink is not open")
        by = self.options["partition"]
        try:
            await thread.run(lambda: files.append(partitioned(batch, by)), key=(batch.id, batch.size_bytes))
        except OSError as error:
            raise self._retryable(error) from error
        except OutsideRootError as error:
            message = f"{error}; below {self.options['path']} only directories are used"
            raise RetryableError(message, open_circuit=True) from error

    @hookimpl
    async def edge_close(self) -> None:
        thread, files, aging = self._thread, self._files, self._aging
        self._thread = self._files = self._aging = None
        if thread is None or files is None:
            return
        try:
            if aging is not None:
                aging.cancel()
                await asyncio.wait([aging])
            await thread.run(files.close)
        finally:
            thread.stop()

    async def _age(self, thread: JobThread, files: PartitionedFiles) -> None:
        """Close files by age for as long as the sink is open."""
        secs = min(MAX_LOOK_SECS, max(MIN_LOOK_SECS, self.options["rotate"]["max_age_secs"] / 20))
        while True:
            await self.sleep(secs)
            await thread.run(files.expire)

    def _retryable(self, error: OSError) -> RetryableError:
        return RetryableError(f"{self.options['path']} cannot be written: {error.strerror or type(error).__name__}")


def partitioned(batch: Batch, by: str) -> dict[Parts, list[bytes]]:
    """Return the lines of a batch by the partition they belong to (`by`: hour, day or none), in the order they have.

    Lines that came together are one text.
    """
    if by == "none":
        return {(): [block.text for block in batch.blocks]} if batch.blocks else {}
    groups: dict[Parts, list[bytes]] = {}
    begin, end = datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)
    lines: list[bytes] = []
    for metadata, _, text in batch.blocks:
        # Nearly all of a batch came in the same hour.
        if not begin <= metadata.received_at <= end:
            begin = metadata.received_at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
            end = begin.replace(minute=59, second=59, microsecond=999_999)
            parts: Parts = (f"dt={begin:%Y-%m-%d}", f"hour={begin:%H}") if by == "hour" else (f"dt={begin:%Y-%m-%d}",)
            lines = groups.setdefault(parts, [])
        lines.append(text)
    return groups


@hookimpl
def edge_register_components(registry: ComponentRegistry) -> None:
    """Register the sink."""
    registry.add(File)
