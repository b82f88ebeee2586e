"""Named points of the gateway's work at which a process can be killed, put in at run time."""

from __future__ import annotations

from collections.abc import Callable

POINTS: dict[str, Callable[[Callable[[], None]], None]] = {}


def install(name: str) -> None:
    """Let the process die at a point: ``at:<point>:<count>``, the count-th time it gets there."""
    _, point, count = name.split(":")
    left = int(count)

    def reached() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGKILL)

    POINTS[point](reached)
