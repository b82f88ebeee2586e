"""How a process of the gateway runs its event loop, and with which code it ends."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from edge.api import EdgeError
from edge.binding import BindingError

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h."""

EXIT_SECS = 1.0
"""How long the interpreter may take to end by itself once the drain is over."""


def run_to_exit(serve: Coroutine[Any, Any, int]) -> int:
    """Run a process to its end and return the exit code; what keeps it from starting goes to stderr in one line."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            return _leave(runner.run(serve))
        except BindingError as error:
            print(error, file=sys.stderr)
            return EXIT_CONFIG
        except (EdgeError, OSError) as error:
            return cannot_start(error)


def cannot_start(error: Exception) -> int:
    """Say what keeps the gateway from starting; return the exit code."""
    print(f"the gateway cannot start: {error}", file=sys.stderr)
    return EXIT_FAILED


def _leave(code: int) -> int:
    """See to it that the process ends soon, whatever a plugin's threads or a disk that does not answer still do."""

    def end() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    timer = threading.Timer(EXIT_SECS, end)
    timer.daemon = True
    timer.start()
    return code


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
