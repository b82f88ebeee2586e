"""D1: SIGTERM under load, a request half-sent at that moment. D2: SIGTERM, and SIGKILL before the drain is over."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from typing import Any

import pytest
from harness import oracle
from harness.hand import Hand, event_bytes
from harness.rig import KEY

ACKED_BEFORE, WITHIN_SECS = 50, 0.25
DRAIN_SECS = 2
"""`server.drain_timeout_secs` of the rig."""
HEALTHY_SECS, GRACE_SECS = 5.0, 1.0
HUNG_ONE_IN = 5


class HalfSent:
    """A request of which half the body is there."""

    def __init__(self, gateway: Any, event_id: str) -> None:
        self._body = event_bytes(event_id)
        self._socket = socket.create_connection(("127.0.0.1", gateway.port), timeout=10)
        head = (
            f"POST /ingest HTTP/1.1\r\nHost: t\r\nX-API-Key: {KEY}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(self._body)}\r\n\r\n"
        )
        self._socket.sendall(head.encode() + self._body[:40])

    def finish(self) -> tuple[int, bool]:
        """Send the rest; return the status, and whether the answer was complete when the connection ended."""
        with self._socket as sock:
            sock.sendall(self._body[40:])
            data = b""
            while chunk := sock.recv(65_536):
                data += chunk
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        return int(head.split(b" ")[1]), len(body) == length


def test_d1_drain_under_load_answers_everybody_and_exits_in_time(rig: Any, row: Any, scale: Any) -> None:
    drains = scale(5, 50)
    dice = random.Random(oracle.seed())
    bound = (
        f"0 lost, 0 resets, exit 0 within {HEALTHY_SECS:g} s; with a hung sink within drain_timeout_secs ({DRAIN_SECS})"
        f" + {GRACE_SECS:g} s + what a drain takes without one"
    )
    with row("D1", what="SIGTERM under load, a request half-sent", unit="drains", bound=bound) as found:
        target = rig.target()
        rig.configure({"crm": rig.http_sink(target, timeout_secs=30), "archive": rig.file_sink()})
        load = rig.load(senders=16, rate=1000, most_bytes=4096)
        hand = Hand(rig.folder, "half")
        longest = {False: 0.0, True: 0.0}
        statuses = []
        while found.tried < drains:
            is_hung = found.tried % HUNG_ONE_IN == HUNG_ONE_IN - 1
            target.order(mode="hang" if is_hung else "answer")
            gateway = rig.start()
            load.wait_for_acked(gateway.ready_at, 200)
            event_id = f"half-{found.tried}"
            hand.will_send(event_id)
            half = HalfSent(gateway, event_id)
            time.sleep(dice.uniform(0.05, 0.2))  # the request has to be there before the signal is
            at = time.monotonic()
            os.kill(gateway.pid, signal.SIGTERM)
            assert load.acked_between(at - WITHIN_SECS, at) >= ACKED_BEFORE
            time.sleep(dice.uniform(0.0, 0.3))
            status, is_complete = half.finish()
            assert is_complete
            assert status in (200, 503)
            if status == 200:
                hand.was_acknowledged(event_id)
            statuses.append(status)
            code = gateway.process.wait(20)
            secs = time.monotonic() - at
            assert code == 0
            assert secs <= (DRAIN_SECS + GRACE_SECS + longest[False] if is_hung else HEALTHY_SECS)
            longest[is_hung] = max(longest[is_hung], secs)
            found.tried += 1
        answers = load.stop()
        unexpected = {kind: n for kind, n in answers["statuses"].items() if kind not in ("200", "503", "refused")}
        assert not unexpected, f"not answered in full: {unexpected} {answers['samples']}"
        target.order(mode="answer")
        gateway = rig.start()
        rig.settle(gateway, ["crm", "archive"])
        rig.is_alive(gateway, target)
        assert gateway.stop()[0] == 0
        # Drains save their cursors: only a batch that a hung target has been handed may come again.
        hung = drains // HUNG_ONE_IN * oracle.IN_FLIGHT_EVENTS
        checked = rig.check(found, [load, hand], target.delivered(), duplicates=hung)
        rig.check(found, [load, hand], oracle.entries_in_files(rig.folder / "events"), duplicates=0)
        found.note(
            f"half-sent requests: {statuses.count(200)} times 200, {statuses.count(503)} times 503; the longest drain"
            f" took {longest[False]:.1f} s, {longest[True]:.1f} s with a hung sink;"
            f" {checked.acknowledged:,} events acknowledged"
        )


@pytest.mark.full
def test_d2_kill_during_the_drain_loses_nothing(rig: Any, row: Any, scale: Any) -> None:
    kills = scale(2, 50)
    dice = random.Random(oracle.seed())
    with row("D2", what="SIGTERM, then SIGKILL while it drains", unit="kills") as found:
        target = rig.target()
        slow = {"max_events": oracle.IN_FLIGHT_EVENTS, "max_age_secs": 0.02}
        rig.configure({"crm": rig.http_sink(target, batch=slow, timeout_secs=30), "archive": rig.file_sink()})
        load = rig.load(senders=16, rate=1000, most_bytes=4096)
        vain = 0
        moments = []
        while found.tried < kills:
            target.order(mode=dice.choice(("hang", "answer")), delay_secs=0.4)  # else there would be nothing to drain
            gateway = rig.start()
            load.wait_for_acked(gateway.ready_at, 200)
            at = time.monotonic()
            acked = load.acked_between(at - WITHIN_SECS, at)
            os.kill(gateway.pid, signal.SIGTERM)
            wait = dice.uniform(0.0, DRAIN_SECS)
            time.sleep(wait)
            gateway.kill()
            ended = gateway.process.returncode == 0  # the drain was over before the kill, however narrowly
            if ended or acked < ACKED_BEFORE:
                vain += 1
                assert vain <= 2 * kills, "the drain is over before it can be killed"
                continue
            assert gateway.process.returncode == -signal.SIGKILL
            assert any(line["event"] == "draining" for line in gateway.log_lines()) or wait < 0.1
            moments.append(wait)
            found.tried += 1
        load.stop()
        target.order(mode="answer", delay_secs=0)
        gateway = rig.start()
        rig.settle(gateway, ["crm", "archive"])
        rig.is_alive(gateway, target)
        assert gateway.stop()[0] == 0
        bound = (kills + vain) * (oracle.IN_FLIGHT_EVENTS + oracle.UNSAVED_EVENTS)
        found.bound = f"0 lost, at most {bound:,} duplicates a sink"
        # What is in flight at three deaths is taken for what kills the process, and becomes a dead letter.
        letters = [oracle.entries_in_dead_letters(rig.folder / "dead-letters", sink) for sink in ("crm", "archive")]
        checked = rig.check(found, [load], target.delivered(), letters[0], duplicates=bound)
        rig.check(found, [load], oracle.entries_in_files(rig.folder / "events"), letters[1], duplicates=bound)
        found.note(
            f"killed {min(moments):.2f} to {max(moments):.2f} s after SIGTERM, {vain} drains were over before;"
            f" {sum(map(len, letters))} dead letters;"
            f" {checked.acknowledged:,} events acknowledged"
        )
