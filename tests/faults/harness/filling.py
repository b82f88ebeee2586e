"""What the rows of a full disk have in common: seeing from the ledgers when ingest stops and when it goes on."""

from __future__ import annotations

import time
from typing import Any

from harness import oracle
from harness.load import Load

LEAST_BYTES = 4_000
"""No event of the load is smaller, so that what is left of the last segment is soon too little for any."""
LARGER_THAN_LEFT = {"extras": {"pad": "x" * 2 * LEAST_BYTES}}
"""Fields of an event that does not fit either."""
NO_CAP = {"max_bytes": 1 << 30}
"""Options of a spool that only its disk keeps within bounds; by default it takes half of the volume."""
QUIET_SECS = 1.5
RESUME_SECS = 2.0


def wait_until_quiet(load: Load, secs: float = 60.0) -> None:
    """Wait until nothing was acknowledged for `QUIET_SECS`."""
    size, changed_at = -1, time.monotonic()

    def is_quiet() -> bool:
        nonlocal size, changed_at
        now = acknowledged_bytes(load)
        if now != size:
            size, changed_at = now, time.monotonic()
        return size > 0 and time.monotonic() - changed_at > QUIET_SECS

    oracle.wait_for(is_quiet, secs, "ingest has stopped")


def wait_for_acks(load: Load, secs: float = RESUME_SECS) -> float:
    """Wait until something is acknowledged; returns the seconds."""
    size = acknowledged_bytes(load)
    return oracle.wait_for(lambda: acknowledged_bytes(load) > size, secs, "something is acknowledged")


def acknowledged_bytes(load: Load) -> int:
    """Return the size of the ledger of acknowledged events; much cheaper than reading it."""
    return load.acknowledged.stat().st_size if load.acknowledged.exists() else 0


def expect_answers(answers: dict[str, Any], *codes: str) -> None:
    """Check that senders got nothing but 200 and 503 with these codes, all of which have been seen."""
    assert set(answers["statuses"]) == {"200", "503"}, answers
    assert set(answers["codes"]) == set(codes), answers
