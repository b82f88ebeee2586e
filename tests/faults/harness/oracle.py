"""What the ledgers have to say when the dust has settled: the checks L, C, F and D of every row.

L  acknowledged is a subset of delivered and dead letters       C  what was delivered is what was sent
F  nothing is delivered that was never sent                     D  what was delivered twice, to be held against a bound

A (the books) and V (it still works) are asked of the gateway itself.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from harness import ledger

IN_FLIGHT_EVENTS = 500
"""`batch.max_events` of the sinks of a test: what one attempt may hold."""
UNSAVED_EVENTS = 1000
"""Events whose delivery a cursor may not know of yet (``edge.delivery.progress.SAVE_EVENTS``)."""


@dataclass
class Findings:
    """What the oracle found; sets of event ids."""

    acknowledged: int = 0
    delivered: int = 0
    lost: set[str] = field(default_factory=set)
    corrupt: set[str] = field(default_factory=set)
    foreign: set[str] = field(default_factory=set)
    duplicates: int = 0


def judge(
    sent: Path, acknowledged: Path, delivered: Iterable[ledger.Entry], letters: Iterable[ledger.Entry] = ()
) -> Findings:
    """Compare what was sent, acknowledged and delivered."""
    known = {entry.event_id: entry.digest for entry in ledger.read(sent)}
    promised = {entry.event_id for entry in ledger.read(acknowledged)}
    arrivals = list(delivered)
    buried = {entry.event_id for entry in letters}
    found = Findings(acknowledged=len(promised), delivered=len(arrivals))
    times = Counter(entry.event_id for entry in arrivals)
    found.lost = promised - times.keys() - buried
    found.foreign = times.keys() - known.keys()
    found.corrupt = {entry.event_id for entry in arrivals if known.get(entry.event_id, entry.digest) != entry.digest}
    found.duplicates = len(arrivals) - len(times)
    return found


def entries_in_files(directory: Path) -> list[ledger.Entry]:
    """Return what a `file` sink wrote. A line that does not parse in a finished file is a corrupt event."""
    entries = []
    for path in sorted(directory.rglob("*.ndjson*")):
        try:
            lines = path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:  # closed and renamed meanwhile
            continue
        for line in lines:
            if path.name.endswith(".open") and not line.endswith(b"\n"):
                continue
            try:
                event = orjson.loads(line)
            except orjson.JSONDecodeError:
                entries.append(ledger.Entry(f"torn line in {path.name}", "", 0.0))
                continue
            entries.append(ledger.Entry(event["event_id"], ledger.digest_of(event), 0.0))
    return entries


def entries_in_dead_letters(directory: Path, sink: str) -> list[ledger.Entry]:
    """Return the dead letters of a sink."""
    from edge.delivery.dead_letters import DeadLetterStore

    store = DeadLetterStore(directory, sink, segment_bytes=1 << 20, max_bytes=1 << 30)
    entries = []
    for letter in store.entries():
        event = orjson.loads(letter.line)
        entries.append(ledger.Entry(event["event_id"], ledger.digest_of(event), 0.0))
    return entries


def lags(acknowledged: Iterable[ledger.Entry], delivered: Iterable[ledger.Entry]) -> list[tuple[float, float]]:
    """Return for each event when it was acknowledged and how many seconds later it was first delivered."""
    first: dict[str, float] = {}
    for entry in delivered:
        first.setdefault(entry.event_id, entry.at)
    return [(entry.at, first[entry.event_id] - entry.at) for entry in acknowledged if entry.event_id in first]


def p99(values: Iterable[float]) -> float:
    """Return the value that 99 of 100 do not exceed; fails without at least 100 of them."""
    ordered = sorted(values)
    assert len(ordered) >= 100, f"{len(ordered)} values have no 99th percentile"
    return ordered[len(ordered) * 99 // 100]


def wait_for(condition: Callable[[], object], secs: float, what: str, *, every_secs: float = 0.02) -> float:
    """Wait until a condition holds, looking now and then; returns the seconds it took, fails after `secs`."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < secs, f"not within {secs:g} s: {what}"
        time.sleep(every_secs)
    return time.monotonic() - started


def seed() -> int:
    """Return the seed of this run's dice: a failure prints it, and EDGE_FAULTS_SEED sets it."""
    value = int(os.environ.get("EDGE_FAULTS_SEED", random.randrange(1 << 32)))
    sys.stderr.write(f"seed {value}: EDGE_FAULTS_SEED={value} repeats it\n")
    return value
