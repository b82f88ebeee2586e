"""The surroundings of a gateway under attack: ports, configuration, targets, load; and the checks at the end."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import orjson

from harness import ledger, oracle
from harness.gateway import Gateway
from harness.load import EVENT, Load, code_of
from harness.record import Row
from harness.target import Target

KEY = "test-key-0123456789"
QUICK = {"batch": {"max_events": 500, "max_age_secs": 0.02}, "retry": {"initial_secs": 0.05, "max_secs": 0.3}}
"""Options of a sink whose target comes back within the test."""

T = TypeVar("T")


class Probe(NamedTuple):
    """What one request of one event got."""

    status: int
    code: str | None
    """Of a refusal: ``busy.full``."""
    secs: float
    at: float
    """When it was sent, monotonic."""


class Rig:
    """Starts what a row needs and ends it with the test. One configuration at a time, on fixed ports."""

    def __init__(self, folder: Path, write_config: Callable[..., Path]) -> None:
        self.folder = folder
        self._write_config = write_config
        self._stack = ExitStack()
        self._ports = _free_ports(2)
        self.config: Path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def configure(self, sinks: dict[str, Any], **parts: Any) -> Path:
        """Write the configuration; `parts` are sections of it."""
        server = {"listen": f"127.0.0.1:{self._ports[0]}", "drain_timeout_secs": 2, **parts.pop("server", {})}
        admin = {"listen": f"127.0.0.1:{self._ports[1]}", **parts.pop("admin", {})}
        parts.setdefault("log", {"format": "json"})
        self.config = self._write_config(server=server, admin=admin, sinks=sinks, **parts)
        return self.config

    def http_sink(self, target: Target, **options: Any) -> dict[str, Any]:
        """Return the options of a sink that delivers to a target."""
        return {"type": "http", "url": target.url, **QUICK, **options}

    def file_sink(self, **options: Any) -> dict[str, Any]:
        """Return the options of a sink that writes below `events`."""
        return {"type": "file", "path": str(self.folder / "events"), **QUICK, **options}

    def hold(self, context: AbstractContextManager[T]) -> T:
        """Enter a context, for example a mounted disk; it is left with the test, after what was started later."""
        return self._stack.enter_context(context)

    def start(self, **options: Any) -> Gateway:
        """Start a gateway on the configuration; it is killed with the test if it still runs then."""
        return self._stack.enter_context(Gateway(self.config, **options))

    def target(self, name: str = "target", **orders: Any) -> Target:
        """Start a target."""
        return self._stack.enter_context(Target(self.folder, name, **orders))

    def load(self, prefix: str = "e", *, key: str = KEY, **options: Any) -> Load:
        """Start to post events at the gateway's port, whether it runs or not."""
        return self._stack.enter_context(Load(self.folder, self._ports[0], key, prefix=prefix, **options))

    def post(self, gateway: Gateway, event_id: str, **fields: Any) -> tuple[int, dict[str, Any]]:
        """Post one event outside of the load; it is in no ledger."""
        body = orjson.dumps({**EVENT, "event_id": event_id, **fields})
        status, answer = gateway.request("POST", "/ingest", body)
        return status, orjson.loads(answer)

    def probe(self, gateway: Gateway, *, secs: float = 10.0, **fields: Any) -> Probe:
        """Post one event outside of the load and say what came of it; the ledgers know of it."""
        event_id = f"probe-{time.monotonic_ns()}"
        event = {**EVENT, "event_id": event_id, **fields}
        line = [(event_id, ledger.digest_of(event))]
        ledger.Ledger(self.folder / "fresh-sent.log").write(line)
        started = time.monotonic()
        status, answer = gateway.request("POST", "/ingest", orjson.dumps(event), secs=secs)
        took = time.monotonic() - started
        if status == 200:
            ledger.Ledger(self.folder / "fresh-acked.log").write(line)
        return Probe(status, code_of(answer), took, started)

    def post_batch(self, gateway: Gateway, event_ids: Iterable[str]) -> tuple[int, dict[str, Any]]:
        """Post events in one request, which makes them one frame; they are in no ledger."""
        body = orjson.dumps([{**EVENT, "event_id": event_id} for event_id in event_ids])
        status, answer = gateway.request("POST", "/ingest/batch", body)
        return status, orjson.loads(answer)

    def is_alive(self, gateway: Gateway, target: Target, secs: float = 2.0) -> float:
        """Check V: a fresh event is accepted and delivered within `secs`; returns the seconds it took."""
        event_id = f"fresh-{time.monotonic_ns()}"
        event = {**EVENT, "event_id": event_id}
        ledger.Ledger(self.folder / "fresh-sent.log").write([(event_id, ledger.digest_of(event))])
        started = time.monotonic()
        status, answer = gateway.request("POST", "/ingest", orjson.dumps(event))
        assert status == 200, answer
        oracle.wait_for(lambda: any(entry.event_id == event_id for entry in target.delivered()), secs, "a fresh event")
        return time.monotonic() - started

    def settle(self, gateway: Gateway, sinks: Iterable[str], secs: float = 30.0) -> None:
        """Wait until no sink has anything before it, then check the books (A)."""
        for sink in sinks:
            oracle.wait_for(lambda sink=sink: gateway.pending(sink) == 0, secs, f"{sink} has had everything")
        oracle.wait_for(lambda: gateway.unaccounted() == 0, 2.0, "the books balance")
        # What balanced once has to stay so: nothing is in flight any more.
        assert gateway.unaccounted() == 0

    def check(
        self,
        row: Row,
        loads: Iterable[Load],
        delivered: Iterable[ledger.Entry],
        letters: Iterable[ledger.Entry] = (),
        *,
        duplicates: int | None = None,
    ) -> oracle.Findings:
        """Hold what was delivered to one sink against what was sent and acknowledged (L, C, F, D) and note it."""
        sent, acked = self.folder / "all-sent.log", self.folder / "all-acked.log"
        loads = list(loads)
        sent.write_bytes(b"".join(load.sent.read_bytes() for load in loads) + self._fresh("sent"))
        acked.write_bytes(b"".join(load.acknowledged.read_bytes() for load in loads) + self._fresh("acked"))
        found = oracle.judge(sent, acked, delivered, letters)
        row.losses += len(found.lost)
        row.corrupt += len(found.corrupt)
        row.duplicates += found.duplicates
        assert not found.lost, f"{len(found.lost)} acknowledged events were lost: {sorted(found.lost)[:5]}"
        assert not found.corrupt, f"corrupt: {sorted(found.corrupt)[:5]}"
        assert not found.foreign, f"never sent: {sorted(found.foreign)[:5]}"
        assert found.acknowledged, "nothing was acknowledged: nothing was shown"
        if duplicates is not None:
            assert found.duplicates <= duplicates, f"{found.duplicates} delivered twice, at most {duplicates} may be"
        return found

    def _fresh(self, what: str) -> bytes:
        """Return what the ledgers say of events outside of the loads."""
        path = self.folder / f"fresh-{what}.log"
        return path.read_bytes() if path.exists() else b""


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()
