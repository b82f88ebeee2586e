"""A gateway of several processes. D4: one dies at its start, again and again. D5: all are restarted in turn.

D12: one is killed, again and again.
"""

from __future__ import annotations

import http.client
import os
import random
import signal
import time
from typing import Any

import pytest
from harness import oracle, plugin

CRASHER = '''
import os
from pathlib import Path

from edge.api import Enricher, hookimpl


class Crasher(Enricher):
    """Ends the process that opens it, while a file says so."""

    type = "crasher"
    options = {}

    @hookimpl
    async def edge_open(self):
        if Path("crash").exists():
            os._exit(7)

    @hookimpl
    def edge_enrich(self, event, context):
        return None


@hookimpl
def edge_register_components(registry):
    registry.add(Crasher)
'''
CRASH_SECS, FREE_RESTARTS = 12, 5
NAMES = ("ingest-1", "ingest-2", "delivery")


def test_d4_worker_in_a_crash_loop_leaves_the_others_serving(rig: Any, row: Any, scale: Any) -> None:
    secs = scale(CRASH_SECS, 60)
    bound = f"0 lost, others serve, 0 refused; 1 restart/s at most after {FREE_RESTARTS}"
    with row("D4", what="a worker in a crash loop", unit="restarts", bound=bound) as found:
        target = rig.target()
        sinks = {"crm": rig.http_sink(target), "archive": rig.file_sink()}
        rig.configure(sinks, server={"workers": 2}, pipeline=[{"type": "crasher"}])
        gateway = rig.start(plugins=[plugin.install(rig.folder, "crasher", CRASHER)])
        oracle.wait_for(gateway.is_ready, 5.0, "both processes are ready")
        (rig.folder / "crash").touch()
        os.kill(_pid(gateway, "ingest-2"), signal.SIGKILL)
        oracle.wait_for(lambda: _restarts(gateway, "ingest") >= 2, 5.0, "it dies again")
        # From here on nobody is there who had taken a request and could not answer it.
        load = rig.load(senders=8, rate=400, most_bytes=4096)
        started = time.monotonic()
        load.wait_for_acked(started, 200)
        before = _restarts(gateway, "ingest")
        time.sleep(secs)
        restarts = _restarts(gateway, "ingest") - before
        assert before >= 2
        assert restarts <= FREE_RESTARTS + secs
        assert load.acked_between(started, time.monotonic()) > 100 * secs
        assert not gateway.is_ready()
        samples = gateway.metrics()
        assert samples['edge_process_up{process="ingest-1"}'] == 1
        assert samples['edge_process_up{process="ingest-2"}'] == 0
        (rig.folder / "crash").unlink()
        oracle.wait_for(gateway.is_ready, 15.0, "it is back")
        answers = load.stop()
        found.tried = _restarts(gateway, "ingest")
        assert set(answers["statuses"]) == {"200"}, f"not served: {answers['statuses']} {answers['samples']}"
        rig.settle(gateway, ["crm", "archive"])
        rig.is_alive(gateway, target)
        assert gateway.stop()[0] == 0
        checked = rig.check(found, [load], target.delivered(), duplicates=0)
        found.note(
            f"{restarts} restarts in {secs} s of load; {checked.acknowledged:,} events acknowledged meanwhile, the"
            f" slowest answer took {answers['slowest']['200']:.2f} s"
        )


def test_d5_all_workers_restarted_in_turn_refuse_nobody(rig: Any, row: Any, scale: Any) -> None:
    rounds = scale(2, 20)
    with row("D5", what="all workers restarted in turn", unit="restarts", bound="0 lost, 0 refused") as found:
        target = rig.target()
        rig.configure({"crm": rig.http_sink(target), "archive": rig.file_sink()}, server={"workers": 2})
        gateway = rig.start()
        oracle.wait_for(gateway.is_ready, 5.0, "all processes are ready")
        load = rig.load(senders=8, rate=400, most_bytes=4096)
        load.wait_for_acked(gateway.ready_at, 100)
        for name in NAMES * rounds:
            before = _pid(gateway, name)
            os.kill(before, signal.SIGTERM)
            oracle.wait_for(
                lambda name=name, before=before: _is_another(gateway, name, before), 10.0, f"{name} is back"
            )
            found.tried += 1
        answers = load.stop()
        unexpected = {kind: n for kind, n in answers["statuses"].items() if kind not in ("200", "503")}
        assert not unexpected, f"not answered in full: {unexpected} {answers['samples']}"
        rig.settle(gateway, ["crm", "archive"])
        accepted = gateway.metrics()['edge_events_outcome_total{outcome="accepted",reason=""}']
        rig.is_alive(gateway, target)
        assert gateway.stop()[0] == 0
        checked = rig.check(found, [load], target.delivered(), duplicates=0)
        assert accepted == checked.acknowledged
        found.note(
            f"{answers['statuses'].get('503', 0)} of {sum(answers['statuses'].values()):,} requests were told to come"
            f" again, on connections that had been open before; {checked.acknowledged:,} events acknowledged"
        )


@pytest.mark.parametrize("name", ["ingest-1", "delivery"])
def test_d12_workers_killed_in_turn_lose_nothing(rig: Any, row: Any, scale: Any, name: str) -> None:
    kills = scale(2, 20)
    dice = random.Random(oracle.seed())
    what = "SIGKILL of one of several processes"
    with row("D12", what=what, unit="kills") as found:
        target = rig.target()
        rig.configure({"crm": rig.http_sink(target), "archive": rig.file_sink()}, server={"workers": 2})
        gateway = rig.start()
        load = rig.load(senders=8, rate=400, most_bytes=4096, repeat=True)
        oracle.wait_for(lambda: _is_ready(gateway), 5.0, "all processes are ready")
        while found.tried < kills:
            load.wait_for_acked(time.monotonic() - 0.2, 50)
            # Killed in the first attempts of each of its lives, it would take their events for the cause.
            time.sleep(dice.uniform(0.3, 1.0))
            before = _pid(gateway, name)
            os.kill(before, signal.SIGKILL)
            found.tried += 1
            # The one that dies so often is started again after a pause of seconds.
            oracle.wait_for(lambda before=before: _is_another(gateway, name, before), 15.0, f"{name} is back")
        answers = load.stop()
        assert "refused" not in answers["statuses"], answers["statuses"]
        rig.settle(gateway, ["crm", "archive"])
        rig.is_alive(gateway, target)
        assert gateway.stop()[0] == 0
        unsaved = oracle.IN_FLIGHT_EVENTS + oracle.UNSAVED_EVENTS
        # An ingest process takes requests with it whose events are stored and whose senders repeat them.
        twice = 2 * kills * unsaved if name == "delivery" else answers["statuses"].get("broken", 0) * 20
        letters = oracle.entries_in_dead_letters(rig.folder / "dead-letters", "crm")
        checked = rig.check(found, [load], target.delivered(), letters, duplicates=twice)
        found.note(f"{checked.acknowledged:,} events acknowledged, {answers['statuses'].get('broken', 0)} answers lost")


def _pid(gateway: Any, name: str) -> int:
    return int(gateway.metrics()[f'edge_process_pid{{process="{name}"}}'])


def _is_another(gateway: Any, name: str, before: int) -> bool:
    """Return whether a process was replaced and all is well again."""
    return _is_ready(gateway) and _pid(gateway, name) not in (0, before)


def _is_ready(gateway: Any) -> bool:
    try:
        return bool(gateway.is_ready())
    except (OSError, http.client.HTTPException):
        return False  # the admin listener is that of the delivery process


def _restarts(gateway: Any, role: str) -> int:
    """Return how often a process was started again; the log says no more than ten lines a minute of that."""
    return int(gateway.metrics()[f'edge_process_restarts_total{{role="{role}"}}'])
