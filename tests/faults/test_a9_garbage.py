"""A9: whatever lies in a spool's directory, the gateway starts or ends with one clear message; it never hangs."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from harness import garbage, openonce
from harness.fastdir import fast_directory
from harness.processes import HANG_SECS, KEY, RUN, gateway, opening
from harness.spoolbytes import write_spool

CASES = [*garbage.HARMLESS, *garbage.HARMFUL, *garbage.REFUSED]


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
        config = config_path(log={"level": "error", "format": "json"})
        started = time.monotonic()
        ended = subprocess.run([*RUN, str(config)], check=False, capture_output=True, text=True, timeout=HANG_SECS * 2)
        result.note(f"ended after {time.monotonic() - started:.1f} s")
        assert ended.returncode == 1
        (line,) = ended.stderr.splitlines()
        assert line.startswith("the gateway cannot start: ")
        assert garbage.REFUSED[make] in line


def test_gateway_starts_on_a_directory_full_of_garbage(config_path, tmp_path, row, example_event):
    with row("A9", what="edge run on everything at once", unit="starts") as result:
        result.bound = "accepts and ends in order"
        result.tried = 1
        path = spool_of(tmp_path)
        everything_at_once(path)
        with gateway(config_path(log={"format": "json"})) as running:
            request = urllib.request.Request(
                f"http://127.0.0.1:{running.port}/ingest",
                json.dumps(example_event).encode(),
                {"X-API-Key": KEY, "Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=5) as response:
                assert response.status == 200
            assert running.stop() == 0
            assert "Traceback" not in "".join(running.lines)
        assert (tmp_path / "spool" / "outside" / "precious").read_bytes() == b"precious"
