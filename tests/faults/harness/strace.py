"""System calls that fail, or take long, in a gateway that runs: strace attached to it, and what it wrote down."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness import needs, oracle
from harness.record import Row

_LINE = re.compile(r"(\d+) +(\d+\.\d+) (.*)")
_CALL = re.compile(r"(?:<\.\.\. )?(\w+)(?:\(| resumed>)(.*)")
_FD = re.compile(r"(\d+)<([^>]*)>")
_RESULT = re.compile(r"= (-?\d+)(?: (E[A-Z0-9]+))?")
UNFINISHED = "<unfinished ...>"

SYNCS = ("fdatasync", "fsync")


@dataclass
class Call:
    """One system call."""

    thread: int
    name: str
    fd: int
    """Its first descriptor; -1 without one."""
    path: str
    """Of this descriptor."""
    began: int
    """Number of the trace's line in which it began."""
    ended: int = -1
    """Number of the line in which it ended; -1: it has not."""
    ended_at: float = 0.0
    """Seconds of the monotonic clock."""
    result: int = 0
    error: str = ""
    """``EIO``; empty for none."""
    injected: bool = False


class Trace:
    """What one strace writes; `process` is the strace that was attached."""

    def __init__(self, path: Path, process: subprocess.Popen[bytes] | None = None) -> None:
        self.path = path
        self._process = process
        self._monotonic_offset = time.monotonic() - time.time()

    def n_injected(self) -> int:
        """Return how many calls were tampered with so far."""
        text = self.path.read_bytes()
        return text.count(b"(INJECTED)") + text.count(b"(DELAYED)")

    def wait_for_injection(self, secs: float, count: int = 1) -> None:
        """Wait until so many calls were tampered with."""
        oracle.wait_for(lambda: self.n_injected() >= count, secs, "a system call was made to fail")

    def detach(self) -> None:
        """Let the process go on without strace; a second time does nothing."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def calls(self) -> list[Call]:
        """Return the calls, in the order in which they began."""
        return list(_parse(self.path.read_text(errors="replace"), self._monotonic_offset))


def command(path: Path, inject: str, trace: Sequence[str] = ()) -> list[str]:
    """Return what is put before a command, or before ``-p <pid>``; `trace` are further calls to write down."""
    names = ",".join(sorted({inject.split(":", maxsplit=1)[0], *trace}))
    shown = ["-f", "-y", "-ttt", "-s", "16", "-e", "signal=none", "-e", f"trace={names}"]
    return ["strace", *shown, "-e", f"inject={inject}", "-o", str(path)]


@contextmanager
def attached(pid: int, path: Path, inject: str, trace: Sequence[str] = ()) -> Iterator[Trace]:
    """Attach to a running process and all of its threads; `inject` is strace's: ``fdatasync:error=EIO:when=3``.

    `when` counts the calls of each thread by itself, from here on.
    """
    path.touch()
    process = subprocess.Popen(
        [*command(path, inject, trace), "-p", str(pid)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    said = process.stderr.readline()
    trace_of = Trace(path, process)
    try:
        assert b"attached" in said, said + process.stderr.read()
        yield trace_of
    finally:
        trace_of.detach()
        process.stderr.close()


def needed(row: Row) -> None:
    """Leave the row out unless strace may attach to processes here."""
    needs.tool(row, "strace")
    needs.root(row)
    tried = subprocess.run(["strace", "-qq", "-e", "trace=none", "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        row.skip(f"strace may not trace here: {tried.stderr.strip()}")


def synced_again(calls: Iterable[Call]) -> list[Call]:
    """Return the calls that break the rule: a sync of a descriptor whose sync failed before, and which was not closed.

    A number that was closed is another descriptor when it comes back.
    """
    events = [(call.began, "begin", call) for call in calls]
    events += [(call.ended, "end", call) for call in calls if call.ended >= 0]
    poisoned: set[int] = set()
    broken = []
    for _, kind, call in sorted(events, key=lambda event: (event[0], event[1])):
        if kind == "begin" and call.name == "close":
            poisoned.discard(call.fd)
        elif kind == "begin" and call.name in SYNCS and call.fd in poisoned:
            broken.append(call)
        elif kind == "end" and call.name in SYNCS and call.error:
            poisoned.add(call.fd)
    return broken


def _parse(text: str, monotonic_offset: float) -> Iterator[Call]:
    open_calls: dict[int, Call] = {}
    found = []
    for number, line in enumerate(text.splitlines()):
        head = _LINE.fullmatch(line)
        parts = _CALL.match(head[3]) if head else None
        if head is None or parts is None:
            continue
        thread, rest = int(head[1]), parts[2]
        if head[3].startswith("<..."):
            call = open_calls.pop(thread, None)
            if call is None:  # it began before strace was there
                continue
        else:
            fd = _FD.search(rest)
            call = Call(thread, parts[1], int(fd[1]) if fd else -1, fd[2] if fd else "", number)
            found.append(call)
            if rest.endswith(UNFINISHED):
                open_calls[thread] = call
                continue
        result = _RESULT.search(rest, rest.rfind(" = "))
        if result is None:  # the process ended in it
            continue
        call.ended, call.ended_at = number, float(head[2]) + monotonic_offset
        call.result, call.error = int(result[1]), result[2] or ""
        call.injected = "(INJECTED)" in rest or "(DELAYED)" in rest
    return iter(found)
