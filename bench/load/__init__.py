"""The load generator as the benchmark sees it: a program and a core of its own, in C where it can be built."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

HERE: Final = Path(__file__).parent
BUILT: Final = HERE.parents[1] / "var" / "bench"

GRACE_SECS: Final = 30.0
"""So much longer than asked for the generator may take before it is taken for stuck."""

Mode = Literal["closed", "open"]


class LoadError(Exception):
    """The generator failed, or the server did not do as it should."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What one run of the generator found. Latencies are in milliseconds."""

    answers: int
    statuses: dict[str, int]
    elapsed_secs: float
    """From the first request to the last answer."""
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    cpu_secs: float
    """What the generator itself used; close to `elapsed_secs` it would be what is measured."""
    unfinished: int
    """Requests that had no answer in the end."""
    waited: int
    """Requests of an open loop that found no connection free when they were due."""
    late_p99_ms: float
    """How late the generator sent those that did find one."""

    @property
    def per_sec(self) -> float:
        """Answers a second."""
        return self.answers / self.elapsed_secs


class Generator:
    """Runs the load generator: `load.c`, or `client.py` where there is no compiler."""

    def __init__(self, command: Sequence[str], kind: str) -> None:
        self._command = command
        self.kind = kind
        """What it is, for the page."""

    def run(self, mode: Mode, port: int, request: Path, *, connections: int, secs: float, rate: float = 0.0) -> Answers:
        """Post a request for so long; `LoadError` unless every answer is 200."""
        command = self._line(mode, port, request, connections, secs, rate)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=secs + GRACE_SECS, check=False)  # noqa: S603 - our own command
        except subprocess.TimeoutExpired:
            raise LoadError("the load generator did not end") from None
        if done.returncode != 0:
            raise LoadError(done.stderr.strip() or f"the load generator ended with {done.returncode}")
        answers = Answers(**json.loads(done.stdout))
        if set(answers.statuses) != {"200"} or (mode == "closed" and answers.unfinished):
            raise LoadError(f"answers by status: {answers.statuses}, without an answer: {answers.unfinished}")
        return answers

    @contextmanager
    def held(self, port: int, request: Path, connections: int) -> Iterator[None]:
        """Hold so many connections that are silent after one request each."""
        command = self._line("idle", port, request, connections, 0.0, 0.0)
        process: subprocess.Popen[str] = subprocess.Popen(  # noqa: S603 - our own command
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        with process:
            assert process.stdout is not None and process.stderr is not None and process.stdin is not None  # noqa: S101, PT018 - pipes were asked for
            if not process.stdout.readline():
                raise LoadError(process.stderr.read().strip() or "no connection could be held")
            try:
                yield
            finally:
                process.stdin.close()

    def _line(self, *arguments: Any) -> list[str]:
        return [*self._command, *map(str, arguments)]


def generator(*, compiled: bool = True) -> Generator:
    """Return the load generator; in C unless there is no compiler or `compiled` is false."""
    program = _built() if compiled else None
    if program is not None:
        return Generator([str(program)], "load.c")
    return Generator([sys.executable, str(HERE / "client.py")], "client.py")


def _built() -> Path | None:
    """Return the compiled program; None when it cannot be compiled. It is kept until its source changes."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    source = HERE / "load.c"
    program = BUILT / f"load-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}"
    if program.exists():
        return program
    BUILT.mkdir(parents=True, exist_ok=True)
    made = program.with_suffix(".new")
    done = subprocess.run(  # noqa: S603 - our own command
        [compiler, "-O2", "-o", str(made), str(source), "-lm"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        print(f"load.c could not be compiled, the load comes from Python: {done.stderr.strip()}", file=sys.stderr)
        return None
    made.replace(program)
    return program
