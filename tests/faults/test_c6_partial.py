"""C6: a target that judges every event of a batch for itself."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

from harness import ledger, oracle, plugin
from harness.rig import QUICK

RETRIES = 2
SOURCE = f'''
import hashlib
from pathlib import Path

from voluptuous import Required

from edge.api import PermanentError, RetryableError, Sink, hookimpl
from harness import ledger


class Picky(Sink):
    """Takes most events, refuses every 16th for good and every 4th {RETRIES} times, by the hash of its id."""

    type = "picky"
    options = {{Required("folder", description="Where its ledgers are."): str}}

    def __init__(self, id, options):
        super().__init__(id, options)
        folder = Path(options["folder"])
        self.asked = ledger.Ledger(folder / "picky-asked.log")
        self.taken = ledger.Ledger(folder / "picky-taken.log")
        self.times = {{}}

    @hookimpl
    async def edge_deliver(self, batch):
        errors = {{}}
        for at, event in enumerate(batch.events):
            name = event["event_id"]
            entry = [(name, ledger.digest_of(event))]
            self.asked.write(entry)
            kind = hashlib.sha256(name.encode()).digest()[0] % 16
            if kind == 0:
                errors[at] = PermanentError("not this one")
            elif kind < 5 and self.times.setdefault(name, 0) < {RETRIES}:
                self.times[name] += 1
                errors[at] = RetryableError("not now")
            else:
                self.taken.write(entry)
        return errors


@hookimpl
def edge_register_components(registry):
    registry.add(Picky)
'''


def test_c6_only_what_failed_is_tried_again(rig: Any, row: Any, scale: Any) -> None:
    with row("C6", what="a target that judges single events", unit="events judged badly") as found:
        folder = plugin.install(rig.folder, "picky", SOURCE)
        retry = {"initial_secs": 0.02, "max_secs": 0.05}
        rig.configure({"picky": {"type": "picky", "folder": str(rig.folder), **QUICK, "retry": retry}})
        gateway = rig.start(plugins=[folder])
        load = rig.load(senders=4, most_bytes=2_000)
        oracle.wait_for(lambda: load.n_acked() >= scale(1_500, 20_000), 120, "enough events")
        load.stop()
        rig.settle(gateway, ["picky"], 60)
        delivered = list(ledger.read(rig.folder / "picky-taken.log"))
        letters = oracle.entries_in_dead_letters(rig.folder / "dead-letters", "picky")
        kinds = {entry.event_id: _kind(entry.event_id) for entry in load.acked()}
        refused = {event_id for event_id, kind in kinds.items() if kind == 0}
        held_up = {event_id for event_id, kind in kinds.items() if 0 < kind < 5}
        assert len(refused) > 20
        assert len(held_up) > 100
        assert sorted(entry.event_id for entry in letters) == sorted(refused), "dead letters are what was refused"
        asked = Counter(entry.event_id for entry in ledger.read(rig.folder / "picky-asked.log"))
        assert asked == {event_id: 1 + RETRIES * (event_id in held_up) for event_id in kinds}, "tried too often"
        found.tried = len(refused) + len(held_up)
        found.note(f"{len(refused)} refused for good, {len(held_up)} tried {1 + RETRIES} times, the others once")
        rig.check(found, [load], delivered, letters, duplicates=0)
        assert gateway.stop()[0] == 0


def _kind(event_id: str) -> int:
    return hashlib.sha256(event_id.encode()).digest()[0] % 16
