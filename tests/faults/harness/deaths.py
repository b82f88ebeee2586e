"""How a gateway dies while nobody asks it to: at a named point of its work, or in the middle of its start."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from harness import failpoints, patching
from harness.gateway import Gateway


def killed_at(gateway: Gateway, point: str, secs: float, act: Callable[[], object] = lambda: None) -> float:
    """Wait until a gateway has died at a named point, by itself; `act` is called meanwhile. Returns the moment."""
    deadline = time.monotonic() + secs
    while gateway.process.poll() is None:
        assert time.monotonic() < deadline, f"it did not get to {point} within {secs:g} s"
        with contextlib.suppress(OSError, http.client.HTTPException):
            act()
        time.sleep(0.005)
    assert gateway.process.returncode == -signal.SIGKILL, f"exit code {gateway.process.returncode} at {point}"
    last = [line for line in gateway.log_lines() if line["event"] == failpoints.KILLED]
    assert [line["point"] for line in last] == [point]
    return float(last[0]["at"])


def spawn(config: Path, log_path: Path, *, patch: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """Start a gateway, in a process group of its own, and do not wait for it; its log goes to a file."""
    command = [sys.executable, "-m", "edge.cli", "run", "-c", str(config)]
    environ = {**os.environ, "NO_COLOR": "1", **patching.environ(patch)}
    with log_path.open("wb") as log:
        return subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=log, cwd=config.parent, env=environ, start_new_session=True
        )


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL a gateway and whatever it may have started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
