"""Proves that the suite notices: puts twelve defects into the program, one at a time, and shows what caught each.

Run by ``make faults-selftest``. The tests that are to catch a defect have to pass without it and to fail with it, by an
assertion of theirs; a test that breaks in another way, or runs out of time, has caught nothing. Nothing in the shipped
code knows of this: a defect gets into Python processes through ``sitecustomize`` (`harness.patching`), pytest's own and
those that a test starts.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

sys.path.insert(0, str(Path(__file__).parent))

from harness import mutants, patching

ROOT = Path(__file__).parents[2]
TIMEOUT_SECS = 180.0

A5 = "tests/faults/test_a5_crash_states.py"
A6 = "tests/faults/test_a6_model.py"
A8 = "tests/faults/test_a8_bit_flips.py"
B4 = "tests/faults/test_b4_fdatasync.py"
C12 = "tests/faults/test_c12_refused.py"
BOOKS = ("tests/edge/delivery/test_books.py", "tests/integration/test_books.py", "tests/integration/test_full_spool.py")

CATCHERS: dict[str, tuple[str, ...]] = {
    "no-fdatasync": (A5,),
    "no-dir-fsync": (A5,),
    "ack-before-fsync": (A6,),
    "unlink-before-cursor": (A5,),
    "no-crc": (A8,),
    "length-not-covered": (A8,),
    "seq-reuse": (A5,),
    "dedup-before-commit": (C12,),
    "retry-fsync": (B4,),
    "drop-not-counted": BOOKS,
    "cursor-ahead": (A5,),
    "reader-past-durable": (A6,),
}
"""Defect -> the rows and tests that are to notice it: as few and as quick ones as there are."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of some tests came to."""

    passed: int
    caught: list[str]
    """Tests that failed by an assertion, with what it said."""
    broken: list[str]
    """Tests that failed in another way: they have caught nothing."""
    secs: float


def run(nodes: tuple[str, ...], mutant: str = "") -> Outcome:
    """Run tests in a process of their own, with a defect or without."""
    started = time.monotonic()
    environ = {name: value for name, value in os.environ.items() if name not in ("EDGE_FAULTS", "EDGE_FAULTS_MUTANT")}
    if mutant:
        environ |= {"EDGE_FAULTS_MUTANT": mutant, **patching.environ([mutant])}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"--junitxml={result}", *nodes]
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=TIMEOUT_SECS, check=False
            )
        except subprocess.TimeoutExpired:
            return Outcome(0, [], [f"not done within {TIMEOUT_SECS:g} s"], TIMEOUT_SECS)
        cases = list(ET.parse(result).iter("testcase")) if result.exists() else []
        output = done.stdout + done.stderr
    caught, broken = [], []
    if not cases:
        broken.append(output[-500:])
    passed = 0
    for case in cases:
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        problem = next((item for item in case if item.tag in ("failure", "error", "skipped")), None)
        if problem is None:
            passed += 1
            continue
        said = (problem.get("message") or "").split("\n")[0]
        is_assertion = problem.tag == "failure" and said.startswith(("AssertionError", "assert ", "Failed: DID NOT"))
        (caught if is_assertion else broken).append(f"{name}: {said}")
    return Outcome(passed, caught, broken, time.monotonic() - started)


def main() -> int:
    """Try the defects and print what caught each; 0 when all were caught."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("mutants", nargs="*", help="which defects to try; all when none is named")
    names = parser.parse_args().mutants or list(mutants.MUTANTS)
    healthy: dict[tuple[str, ...], Outcome] = {}
    n_caught = 0
    width = max(map(len, names))
    for name in names:
        nodes = CATCHERS[name]
        if nodes not in healthy:
            healthy[nodes] = run(nodes)
        before = healthy[nodes]
        if before.caught or before.broken or not before.passed:
            verdict, seen = "no proof", f"fails without the defect: {[*before.caught, *before.broken]}"
            secs = before.secs
        else:
            after = run(nodes, name)
            secs = after.secs
            verdict = "caught" if after.caught else "NOT CAUGHT"
            seen = (after.caught or after.broken or ["all passed"])[0]
        n_caught += verdict == "caught"
        print(f"{name.ljust(width)}  {verdict.ljust(10)}  {secs:5.1f} s  {seen[:200]}", flush=True)
    print(f"{n_caught} of {len(names)} seeded defects were caught")
    return 0 if n_caught == len(names) else 1


if __name__ == "__main__":
    sys.exit(main())
