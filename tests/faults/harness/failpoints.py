"""Named points of the gateway's work at which a process can be killed, put in at run time.

The twelve of row A2 are passed while the gateway serves; those that begin with ``recovery`` are passed at its start.
The dead letters lie in logs of the spool's kind: the points of a log count in theirs as well.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

KILLED = "killed at a named point"
"""The sentence of the line that the process writes to its log before it dies."""

Reached = Callable[[], None]

POINTS: dict[str, Callable[[Reached], None]] = {}
"""Name -> what patches the running program so that it calls its argument there."""


def install(name: str) -> None:
    """Let the process die at a point: ``at:<point>:<count>``, the count-th time it gets there."""
    _, point, count = name.split(":")
    left = int(count)
    lock = threading.Lock()

    def reached() -> None:
        nonlocal left
        with lock:
            left -= 1
            if left == 0:
                line = {"event": KILLED, "level": "info", "point": point, "at": time.monotonic()}
                os.write(2, json.dumps(line).encode() + b"\n")
                os.kill(os.getpid(), signal.SIGKILL)

    POINTS[point](reached)


def _point(name: str) -> Callable[[Callable[[Reached], None]], None]:
    def add(patch: Callable[[Reached], None]) -> None:
        POINTS[name] = patch

    return add


def _around(owner: Any, name: str, *, before: Any = None, after: Any = None) -> None:
    """Have something called, with the same arguments, before or after a function of a class or module."""
    original = getattr(owner, name)

    @wraps(original)
    def around(*args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before(*args, **kwargs)
        result = original(*args, **kwargs)
        if after is not None:
            after(*args, **kwargs)
        return result

    setattr(owner, name, around)


@_point("after-write")
def _after_write(reached: Reached) -> None:
    """A group of frames is written; its fdatasync has not begun."""
    from edge.spool.active import ActiveSegment

    _around(ActiveSegment, "write", after=lambda *_: reached())


@_point("after-sync")
def _after_sync(reached: Reached) -> None:
    """A group is durable; nobody has been told."""
    from edge.spool.active import ActiveSegment

    _around(ActiveSegment, "sync", after=lambda *_: reached())


@_point("in-group")
def _in_group(reached: Reached) -> None:
    """Half of the bytes of a group of several frames are written."""
    from edge.spool.active import ActiveSegment
    from edge.spool.files import write_all

    def write_half(active: ActiveSegment, buffers: Any) -> None:
        if len(buffers) >= 4 and active.segment is not None:  # a header and a payload for each frame
            data = b"".join(buffers)
            write_all(active._files, active._fd, [data[: len(data) // 2]], active.segment.data_end)
            reached()

    _around(ActiveSegment, "write", before=write_half)


@_point("roll-allocated")
def _roll_allocated(reached: Reached) -> None:
    """The next segment has its room, and neither header nor name."""
    from edge.spool import active

    _around(active, "prepare", after=lambda *_: reached())


@_point("roll-renamed")
def _roll_renamed(reached: Reached) -> None:
    """The next segment has its name; the directory is not durable."""
    from edge.spool.files import Files

    def renamed(files: Files, old: str, new: str, *, dir_fd: int) -> None:
        if new.startswith("seg-"):
            reached()

    _around(Files, "rename", after=renamed)


@_point("roll-synced")
def _roll_synced(reached: Reached) -> None:
    """The next segment is durable, its name too; the one before is neither cut nor closed."""
    from edge.spool import active

    _around(active, "activate", after=lambda *_: reached())


@_point("cursor-half")
def _cursor_half(reached: Reached) -> None:
    """Half of a cursor's slot is written over."""
    from edge.spool import cursor

    def write_half(files: Any, fd: int, buffers: Any, offset: int) -> None:
        if any(buffers[0]):  # not the zeros that make a slot
            os.pwrite(fd, buffers[0][: cursor.SLOT_BYTES // 2], offset)
            reached()

    _around(cursor, "write_all", before=write_half)


def _unlinking(reached: Reached) -> Callable[..., None]:
    def unlinking(files: Any, name: str, *, dir_fd: int) -> None:
        if name.endswith(".log"):
            reached()

    return unlinking


@_point("before-unlink")
def _before_unlink(reached: Reached) -> None:
    """A segment is needed no more and still there."""
    from edge.spool.files import Files

    _around(Files, "unlink", before=_unlinking(reached))


@_point("after-unlink")
def _after_unlink(reached: Reached) -> None:
    """A segment has just gone."""
    from edge.spool.files import Files

    _around(Files, "unlink", after=_unlinking(reached))


@_point("letter-kept")
def _letter_kept(reached: Reached) -> None:
    """A dead letter is durable; the cursor of its sink has not moved."""
    from edge.delivery.dead_letters import DeadLetterStore

    add = DeadLetterStore.add

    async def add_and_tell(store: DeadLetterStore, letters: Any) -> None:
        await add(store, letters)
        reached()

    DeadLetterStore.add = add_and_tell  # type: ignore[method-assign]


@_point("replay-appended")
def _replay_appended(reached: Reached) -> None:
    """Dead letters are in the spool again and not marked as replayed."""
    from edge.delivery.dead_letters import DeadLetterStore

    def marking(store: DeadLetterStore, seqs: Any, action: str) -> None:
        if action == "replayed":
            reached()

    _around(DeadLetterStore, "mark", before=marking)


@_point("reload-opened")
def _reload_opened(reached: Reached) -> None:
    """At a reload everything new is open; the old configuration is still in place."""
    from edge.gateway import Gateway

    open_all = Gateway._open_all

    async def open_and_tell(gateway: Gateway, lifecycles: Any) -> None:
        await open_all(gateway, lifecycles)
        if hasattr(gateway, "door"):  # not at the start
            reached()

    Gateway._open_all = open_and_tell  # type: ignore[method-assign]


@_point("recovery-begun")
def _recovery_begun(reached: Reached) -> None:
    """The directory is locked; nothing in it has been looked at."""
    from edge.spool import log

    _around(log, "recover", before=lambda *_: reached())


@_point("recovery-cut")
def _recovery_cut(reached: Reached) -> None:
    """The torn tail of the last segment is cut off; the cut is not durable."""
    from edge.spool.files import Files

    _around(Files, "ftruncate", after=lambda *_: reached())


@_point("recovery-done")
def _recovery_done(reached: Reached) -> None:
    """The spool is recovered; there is no segment to write to."""
    from edge.spool import log

    _around(log, "recover", after=lambda *_: reached())
