"""Posts single events by hand, each on a connection of its own, and keeps the ledgers that a load keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from harness import ledger
from harness.gateway import Gateway
from harness.load import EVENT


class Hand:
    """Posts events one by one. The ids are the test's to choose; the ledgers' names begin with `prefix`."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self.sent = folder / f"{prefix}-sent.log"
        self.acknowledged = folder / f"{prefix}-acked.log"
        self._sent, self._acknowledged = ledger.Ledger(self.sent), ledger.Ledger(self.acknowledged)

    def post(self, gateway: Gateway, event_id: str, **fields: Any) -> int:
        """Post an event and return the status of the answer; raises `OSError` and the like when there is none."""
        self.will_send(event_id, **fields)
        status, _ = gateway.request("POST", "/ingest", event_bytes(event_id, **fields))
        if status == 200:
            self.was_acknowledged(event_id, **fields)
        return status

    def will_send(self, event_id: str, **fields: Any) -> None:
        """Write down that an event is about to be sent by somebody."""
        self._sent.write([(event_id, ledger.digest_of({**EVENT, "event_id": event_id, **fields}))])

    def was_acknowledged(self, event_id: str, **fields: Any) -> None:
        """Write down that an event got its 2xx."""
        self._acknowledged.write([(event_id, ledger.digest_of({**EVENT, "event_id": event_id, **fields}))])


def event_bytes(event_id: str, **fields: Any) -> bytes:
    """Return the body of a request with one event."""
    return orjson.dumps({**EVENT, "event_id": event_id, **fields})
