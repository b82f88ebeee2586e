"""C4: what a target answers: each status in its class, Retry-After honoured, redirects never followed."""

from __future__ import annotations

import itertools
from typing import Any

from harness import oracle
from harness.gateway import Gateway
from harness.target import Target

RETRIED = (500, 503, 429)
OF_ONE_EVENT = (400, 413)
CONFIGURATION = (401, 404)
ASKED_SECS = 2
N_EVENTS = 5


def _post(rig: Any, gateway: Gateway, name: str) -> list[str]:
    """Post a few events, one batch for the sink; return their ids."""
    ids = [f"{name}-{number}" for number in range(N_EVENTS)]
    status, answer = rig.post_batch(gateway, ids)
    assert status == 200, answer
    return ids


def _has(target: Target, ids: list[str]) -> bool:
    return set(ids) <= {entry.event_id for entry in target.delivered()}


def _letters(rig: Any) -> set[str]:
    return {entry.event_id for entry in oracle.entries_in_dead_letters(rig.folder / "dead-letters", "crm")}


def test_c4_each_status_is_in_its_class(rig: Any, row: Any) -> None:
    with row("C4", what="answers of every class", unit="statuses", bound="0 lost, 0 redirects followed") as found:
        internal = rig.target("internal")
        target = rig.target()
        rig.configure({"crm": rig.http_sink(target)})
        gateway = rig.start()
        for status in (*RETRIED, *CONFIGURATION):
            before = len(target.moments("asked"))
            target.order(status=status)
            ids = _post(rig, gateway, f"s{status}")
            oracle.wait_for(lambda n=before: len(target.moments("asked")) >= n + 3, 5, f"{status} is tried again")
            assert gateway.pending("crm") == N_EVENTS
            if status in CONFIGURATION:
                # One answer is enough for a pause; a target under load gets five attempts first.
                first, second = target.moments("asked")[before : before + 2]
                assert second - first >= 0.3 * 0.95, f"{status} did not open the circuit"
            target.order(status=200)
            oracle.wait_for(lambda ids=ids: _has(target, ids), 5, f"what {status} held up is delivered")
            assert not _letters(rig)
            found.tried += 1
        buried: set[str] = set()
        for status in OF_ONE_EVENT:
            ids = [f"s{status}-{number}" for number in range(N_EVENTS)]
            target.order(statuses={ids[2]: status})
            _post(rig, gateway, f"s{status}")
            oracle.wait_for(lambda: gateway.pending("crm") == 0, 5, f"{status} is settled")
            buried.add(ids[2])
            assert _letters(rig) == buried, "only the event at fault becomes a dead letter"
            assert _has(target, [event_id for event_id in ids if event_id != ids[2]])
            found.tried += 1
        before = len(target.moments("asked"))
        target.order(statuses={}, status=301, headers={"Location": internal.url})
        buried |= set(_post(rig, gateway, "s301"))
        oracle.wait_for(lambda: gateway.pending("crm") == 0, 5, "301 is settled")
        assert _letters(rig) == buried
        assert len(target.moments("asked")) == before + 1
        assert internal.n_attempts() == 0, "a redirect was followed"
        found.tried += 1
        target.order(status=200, headers={})
        rig.settle(gateway, ["crm"])
        rig.is_alive(gateway, target)
        assert gateway.stop()[0] == 0


def test_c4_retry_after_is_honoured(rig: Any, row: Any, scale: Any) -> None:
    with row("C4", what="Retry-After", unit="waits", bound=f"{ASKED_SECS} s +-10 %") as found:
        headers = {"Retry-After": str(ASKED_SECS)}
        targets = [rig.target(f"s{status}", status=status, headers=headers) for status in (429, 503)]
        rig.configure({f"s{at}": rig.http_sink(target) for at, target in enumerate(targets)})
        gateway = rig.start()
        n_waits = scale(1, 4)
        ids = _post(rig, gateway, "later")
        waits = []
        for target in targets:
            oracle.wait_for(lambda of=target: len(of.moments("asked")) >= n_waits, 20, "the last refusal")
            target.order(status=200, headers={})
        for target in targets:
            oracle.wait_for(lambda of=target: _has(of, ids), 2 * ASKED_SECS, "delivery")
            asked = target.moments("asked")
            waits += [after - before for before, after in itertools.pairwise(asked)]
        found.tried = len(waits)
        found.note(f"waited {min(waits):.2f} to {max(waits):.2f} s")
        assert all(abs(wait - ASKED_SECS) <= 0.1 * ASKED_SECS for wait in waits), waits
        rig.settle(gateway, ["s0", "s1"])


def test_c4_mixed_answers_under_load_bury_exactly_what_was_refused(rig: Any, row: Any, scale: Any) -> None:
    with row("C4", what="answers of every class by id under load", unit="events answered badly") as found:
        n_each = scale(60, 1000)
        # Every 40th event is refused for good, every 20th holds its batch up once.
        ids = [f"e-{sender}-{count}" for sender in range(8) for count in range(n_each)]
        refused = {event_id: OF_ONE_EVENT[at % 2] for at, event_id in enumerate(ids) if at % 40 == 0}
        held_up = {event_id: RETRIED[at % 3] for at, event_id in enumerate(ids) if at % 20 == 3}
        target = rig.target(statuses=refused, once=held_up)
        rig.configure({"crm": rig.http_sink(target, batch={"max_events": 20, "max_age_secs": 0.02})})
        gateway = rig.start()
        load = rig.load(senders=8, most_bytes=2_000)
        oracle.wait_for(lambda: load.n_acked() >= len(ids), 60, "enough events")
        load.stop()
        rig.settle(gateway, ["crm"], 60)
        known = {entry.event_id for entry in load.acked()}
        letters = oracle.entries_in_dead_letters(rig.folder / "dead-letters", "crm")
        assert {entry.event_id for entry in letters} == refused.keys() & known
        assert len(letters) == len(refused.keys() & known), "a dead letter is there twice"
        found.tried += len(letters) + len(held_up.keys() & known)
        assert gateway.attempts("crm", "retryable") > 10
        # Nothing that a target answered is unknown: not one event may come twice.
        rig.check(found, [load], target.delivered(), letters, duplicates=0)
        assert gateway.stop()[0] == 0
