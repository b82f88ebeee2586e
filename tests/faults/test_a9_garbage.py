"""A9: whatever lies in a spool's directory, the gateway starts or ends with one clear message; it never hangs."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import garbage
import openonce
import pytest
from fastdir import fast_directory
from spoolbytes import write_spool

KEY = "test-key-0123456789"
HANG_SECS = 5.0
CASES = [*garbage.HARMLESS, *garbage.HARMFUL, *garbage.REFUSED]


class Opening:
    """A process that opens one spool after the other; one that hangs is ended."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, openonce.__file__, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

    def open(self, path: Path) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{path}\n".encode())
        if not select.select([self._process.stdout], [], [], HANG_SECS)[0]:
            self.close()
            raise AssertionError(f"the spool did not open within {HANG_SECS} s")
        line = self._process.stdout.readline()
        assert line, "the process that opened the spool is gone"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def opening(*arguments: str) -> Iterator[Opening]:
    made = Opening(*arguments)
    try:
        yield made
    finally:
        made.close()


def outside_of(path: Path) -> dict[str, bytes]:
    return {str(entry): entry.read_bytes() for entry in (path / "outside").rglob("*")}


def give_away(path: Path) -> None:
    """Let the process that gave up root's rights have everything under a directory."""
    path.chmod(0o755)
    for entry in path.rglob("*"):
        os.chown(entry, openonce.NOBODY, openonce.NOBODY, follow_symlinks=False)


def test_spool_opens_or_says_why_not_whatever_is_in_its_directory(row):
    assert len(CASES) >= 30
    with (
        row("A9", what="garbage in the directory of a spool", unit="directories") as result,
        fast_directory() as base,
        opening() as plain,
        opening("--nobody") if os.geteuid() == 0 else opening() as unprivileged,
    ):
        result.bound = "starts or one message; no hang > 5 s; no link followed"
        slowest = 0.0
        for make in CASES:
            home = base / make.__name__
            home.mkdir()
            path = home / "shard-000"
            write_spool(path, [b"one", b"two"], segment_bytes=64 * 1024)
            (home / "outside").mkdir()
            (home / "outside" / "precious").write_bytes(b"precious")
            make(path)
            process = plain
            if make is garbage.a_segment_nobody_may_read:
                process = unprivileged
                give_away(base)
            before = outside_of(home)
            for again in range(2):
                answer = process.open(path)
                slowest = max(slowest, answer["secs"])
                check(make, answer, again, result)
            assert outside_of(home) == before, f"{make.__name__}: something outside was touched"
            result.tried += 1
        result.note(f"slowest start {slowest:.2f} s")
        assert slowest <= 2.0


def check(make: garbage.Make, answer: dict[str, Any], again: int, result: Any) -> None:
    name = make.__name__
    if make in garbage.REFUSED:
        assert garbage.REFUSED[make] in answer.get("error", ""), f"{name}: {answer}"
        assert "\n" not in answer["error"]
        assert not answer["error"].startswith("TRACEBACK"), f"{name}: {answer}"
        return
    assert "error" not in answer, f"{name}: {answer}"
    kept = garbage.HARMFUL.get(make, [b"one", b"two"])
    expected = [payload.decode() for payload in kept] + ["fresh"] * (again + 1)
    result.losses += len(set(expected) - set(answer["payloads"]))
    result.corrupt += len(set(answer["payloads"]) - {"one", "two", "fresh"})
    assert answer["payloads"] == expected, f"{name}: {answer}"


def everything_at_once(path: Path) -> None:
    """Leave all that a gateway is to start with."""
    for make in (
        garbage.a_fifo,
        garbage.a_link_outside,
        garbage.foreign_files,
        garbage.broken_cursors,
        garbage.a_broken_meta,
        garbage.a_terabyte_behind_a_segment,
        garbage.an_absurd_number,
        garbage.a_left_over_temporary_file,
    ):
        make(path)


def spool_of(tmp_path: Path) -> Path:
    path = tmp_path / "spool" / "shard-000"
    write_spool(path, [b"one", b"two"], segment_bytes=64 * 1024)
    (tmp_path / "spool" / "outside").mkdir()
    (tmp_path / "spool" / "outside" / "precious").write_bytes(b"precious")
    return path


def run(config: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "edge.cli", "run", "-c", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "make",
    [garbage.newer_meta, garbage.a_lock_that_is_a_directory, garbage.a_file_in_place_of_the_directory],
    ids=lambda make: make.__name__,
)
def test_gateway_that_cannot_use_its_spool_says_so_in_one_line(config_path, tmp_path, row, make):
    with row("A9", what=f"edge run on {make.__name__}", unit="starts") as result:
        result.bound = "exit code 1, one line, <= 5 s"
        result.tried = 1
        make(spool_of(tmp_path))
        process = run(config_path(log={"level": "error", "format": "json"}))
        started = time.monotonic()
        try:
            _, errors = process.communicate(timeout=HANG_SECS * 2)
        finally:
            process.kill()
        result.note(f"ended after {time.monotonic() - started:.1f} s")
        assert process.returncode == 1
        (line,) = errors.splitlines()
        assert line.startswith("the gateway cannot start: ")
        assert garbage.REFUSED[make] in line


def test_gateway_starts_on_a_directory_full_of_garbage(config_path, tmp_path, row, example_event):
    with row("A9", what="edge run on everything at once", unit="starts") as result:
        result.bound = "accepts and ends in order"
        result.tried = 1
        path = spool_of(tmp_path)
        everything_at_once(path)
        process = run(config_path(log={"format": "json"}))
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if "the gateway is listening" in line:
                    port = json.loads(line)["ingest"][0].rpartition(":")[2]
                    break
            else:
                raise AssertionError("the gateway did not start")
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/ingest",
                json.dumps(example_event).encode(),
                {"X-API-Key": KEY, "Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=5) as response:
                assert response.status == 200
            process.terminate()
            process.stderr.read()
            assert process.wait(10) == 0
        finally:
            process.kill()
            process.wait()
            process.stderr.close()
        assert (tmp_path / "spool" / "outside" / "precious").read_bytes() == b"precious"
