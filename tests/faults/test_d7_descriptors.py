"""D7: fewer descriptors than clients: a low limit at the start, and one that is lowered while clients are connected."""

from __future__ import annotations

import socket
import time
from collections import Counter
from types import TracebackType
from typing import Any, Self

import pytest
from harness import disks, filling, needs, oracle

FILES, CLIENTS = 256, 400
STARVED_SECS = 4.0
CPU_SHARE = 0.2
RECOVER_SECS = 2.0


@pytest.mark.full
def test_d7_a_low_limit_at_the_start(rig: Any, row: Any) -> None:
    with row("D7", what=f"{CLIENTS} clients, {FILES} descriptors", unit="limits", bound=_BOUND) as found:
        needs.tool(found, "prlimit")
        target, gateway, load = _start(rig, 64 * 1024, wrap=["prlimit", f"--nofile={FILES}", "--"])
        with Clients(gateway.port) as clients:
            share = _cpu_share(gateway, clients)
            refused = clients.refused
            assert refused, "everybody was let in: nothing was short"
            assert gateway.n_descriptors() < FILES
            first = _segments(rig)
            delivered = target.ledger.stat().st_size
            oracle.wait_for(lambda: not first & _segments(rig), 20, "new segments are begun, old ones are released")
            assert target.ledger.stat().st_size > delivered, "nothing was delivered meanwhile"
        back = oracle.wait_for(lambda: _takes(rig, gateway), RECOVER_SECS, "it recovers")
        answers = load.stop()
        assert set(answers["statuses"]) == {"200"}, answers
        found.tried += 1
        found.note(
            f"limit at the start: {share:.0%} of a core, {refused} connections turned away, back in {back:.2f} s"
        )
        _finish(rig, found, gateway, target, load)


@pytest.mark.full
@pytest.mark.parametrize("segment_bytes", [8 * disks.MIB, 64 * 1024])
def test_d7_a_limit_that_is_lowered(rig: Any, row: Any, segment_bytes: int) -> None:
    with row("D7", what=f"{CLIENTS} clients, {FILES} descriptors", unit="limits", bound=_BOUND) as found:
        needs.tool(found, "prlimit")
        lasts = segment_bytes > disks.MIB
        target, gateway, load = _start(rig, segment_bytes)
        disks.run("prlimit", f"--pid={gateway.pid}", f"--nofile={FILES}")
        with Clients(gateway.port) as clients:
            oracle.wait_for(lambda: gateway.n_descriptors() >= FILES - 2, 5, "it has no descriptors left")
            acknowledged = filling.acknowledged_bytes(load)
            share = _cpu_share(gateway, clients)
            assert gateway.n_descriptors() >= FILES - 2
            if lasts:
                assert filling.acknowledged_bytes(load) > acknowledged, "the spool does not write"
        gateway.wait_for_log("connections cannot be accepted right now", 1)
        back = oracle.wait_for(lambda: _takes(rig, gateway), RECOVER_SECS, "it recovers")
        answers = load.stop()
        if lasts:
            assert set(answers["statuses"]) == {"200"}, answers
        else:  # another segment needs a descriptor, and connections have them all
            filling.expect_answers(answers, "busy.full")
        found.tried += 1
        found.note(
            f"lowered while running, segments of {segment_bytes >> 10} KiB: {share:.0%} of a core,"
            f" {answers['statuses'].get('503', 0)} requests told busy, back in {back:.2f} s"
        )
        _finish(rig, found, gateway, target, load)


_BOUND = f"0 lost, {CPU_SHARE:.0%} of a core, a log line of each kind a second, recovers within {RECOVER_SECS:g} s"


class Clients:
    """Connections that send nothing; those that are closed come again within a second."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._sockets = [self._connect() for _ in range(CLIENTS)]
        self.refused = 0
        """How often one was closed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for sock in self._sockets:
            sock.close()

    def _connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self._port), timeout=5)
        sock.setblocking(False)  # noqa: FBT003 - the name it has in Python
        return sock

    def come_again(self) -> None:
        """Connect anew where the gateway has closed."""
        for at, sock in enumerate(self._sockets):
            try:
                while sock.recv(4096):
                    pass
            except BlockingIOError:
                continue
            except ConnectionResetError:
                pass
            self.refused += 1
            sock.close()
            self._sockets[at] = self._connect()


def _start(rig: Any, segment_bytes: int, **options: Any) -> tuple[Any, Any, Any]:
    """Start a gateway and a quiet load, whose one connection is there before the clients are."""
    target = rig.target()
    rig.configure({"crm": rig.http_sink(target)}, spool={"segment_bytes": segment_bytes})
    gateway = rig.start(**options)
    load = rig.load(senders=1, rate=20, least_bytes=filling.LEAST_BYTES, most_bytes=40_000)
    oracle.wait_for(target.delivered, 10, "something is delivered")
    return target, gateway, load


def _cpu_share(gateway: Any, clients: Clients) -> float:
    """Watch the starved gateway for a while; returns the share of a core it used, which is checked, as is its log."""
    n_lines, used, started = len(gateway.log_lines()), gateway.cpu_secs(), time.monotonic()
    while time.monotonic() - started < STARVED_SECS:
        clients.come_again()
        time.sleep(1.0)
    elapsed = time.monotonic() - started
    share = (gateway.cpu_secs() - used) / elapsed
    kinds = Counter(line["event"] for line in gateway.log_lines()[n_lines:])
    assert share <= CPU_SHARE, f"{share:.0%} of a core while it can do nothing"
    assert all(count <= elapsed + 1 for count in kinds.values()), kinds
    return float(share)


def _takes(rig: Any, gateway: Any) -> bool:
    try:
        return bool(rig.probe(gateway, secs=1).status == 200)
    except OSError:
        return False


def _segments(rig: Any) -> set[str]:
    return {path.name for path in (rig.folder / "spool" / "shard-000").glob("seg-*.log")}


def _finish(rig: Any, found: Any, gateway: Any, target: Any, load: Any) -> None:
    rig.settle(gateway, ["crm"])
    rig.is_alive(gateway, target)
    rig.check(found, [load], target.delivered(), duplicates=oracle.IN_FLIGHT_EVENTS)
    assert gateway.stop()[0] == 0
