"""D3: a storm of reloads under load, one in five of a configuration that is wrong."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness import oracle
from harness.rig import KEY

INVALID_ONE_IN = 5
POOL_THREADS = min(32, (os.cpu_count() or 1) + 4)
"""asyncio's own pool grows to so many as it is used, for good. One thread left behind by each reload would be more."""
SETTLE_SECS = 0.6
"""Two saves of a cursor, and more."""
GOOD = ("the configuration was reloaded",)
BAD = (
    "the new configuration is wrong; the old one goes on",
    "the new configuration cannot be used; the old one goes on",
)


class Storm:
    """Reloads a gateway, each time with another configuration."""

    def __init__(self, rig: Any, target: Any) -> None:
        self._rig = rig
        self._target = target
        self.gateway: Any = None
        self.valid = self.invalid = 0
        self.key = self.configure(0)

    def configure(self, number: int) -> str:
        """Write configuration `number`: a key of its own, a changed sink, components that come and go."""
        key = f"key-of-configuration-{number}"
        sinks = {
            "crm": self._rig.http_sink(
                self._target, batch={"max_events": 500, "max_age_secs": 0.02 + number % 3 / 100}
            ),
            "archive": self._rig.file_sink(),
            **({"extra": {"type": "blackhole"}} if number % 2 else {}),
        }
        drop = {"type": "drop", "when": {"event_type": "purchase"}}
        self._rig.configure(
            sinks,
            auth={"mode": "keys", "keys": [{"id": "test", "key": KEY}, {"id": "now", "key": key}]},
            # So much that none is begun meanwhile: what is open of the spool would be another number of files.
            spool={"segment_bytes": 1 << 28},
            pipeline=[{**drop, "id": f"no_purchases_{step}"} for step in range(number % 4)],
        )
        return key

    def spoil(self, number: int) -> str:
        """Write a configuration that is wrong in one of several ways; return a key that must not be valid."""
        key = self.configure(number)
        path: Path = self._rig.config
        text = path.read_text()
        wrong = (
            text.replace("pipeline:", "pipelines:"),
            text + "\n  - ]broken",
            text.replace("drain_timeout_secs: 2", "drain_timeout_secs: soon"),
            text.replace(str(self._rig.folder / "spool"), str(self._rig.folder / "elsewhere")),
        )
        assert all(other != text for other in wrong)
        path.write_text(wrong[self.invalid % len(wrong)])
        return key

    def reload(self, number: int) -> None:
        """Reload once and see that exactly what is right is in force."""
        is_bad = number % INVALID_ONE_IN == INVALID_ONE_IN - 1
        key = self.spoil(number) if is_bad else self.configure(number)
        words = BAD if is_bad else GOOD
        before = self._n_lines(words)
        os.kill(self.gateway.pid, signal.SIGHUP)
        oracle.wait_for(lambda: self._n_lines(words) > before, 10, f"reload {number} is through")
        if is_bad:
            self.invalid += 1
            assert not self._is_known(key)
        else:
            self.valid += 1
            assert not self._is_known(self.key)
            self.key = key
        assert self._is_known(self.key)

    def _n_lines(self, words: tuple[str, ...]) -> int:
        return sum(line["event"] in words for line in self.gateway.log_lines())

    def _is_known(self, key: str) -> bool:
        status, _ = self.gateway.request("POST", "/ingest", b"{}", X_API_Key=key)
        assert status in (400, 401)
        return status == 400


def open_files(gateway: Any) -> Counter[str]:
    """Return what the gateway has open; sockets and the like only by kind, files by name."""
    names: Counter[str] = Counter()
    for link in Path(f"/proc/{gateway.pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            names[str(link.readlink()).partition(":[")[0].rpartition("/")[2]] += 1
    return names


def measured(gateway: Any, load: Any) -> tuple[int, Counter[str], int]:
    """Let the last reload settle in and return memory, open files and threads of the gateway, nobody sending to it."""
    # Cursors and the threads of a new worker come with its first batches.
    load.wait_for_acked(time.monotonic(), 500)
    time.sleep(SETTLE_SECS)
    answers = load.stop()
    assert set(answers["statuses"]) == {"200"}, answers
    for sink in ("crm", "archive"):
        oracle.wait_for(lambda: gateway.pending(sink) == 0, 10, f"{sink} has had everything")  # noqa: B023
    # What was asked a moment ago is still being hung up.
    fewest = open_files(gateway)
    for _ in range(20):
        time.sleep(0.02)
        fewest = min(fewest, open_files(gateway), key=Counter.total)
    return gateway.rss_bytes(), fewest, len(list(Path(f"/proc/{gateway.pid}/task").iterdir()))


def test_d3_storm_of_reloads_fails_no_request_and_leaks_nothing(rig: Any, row: Any, scale: Any) -> None:
    reloads = scale(20, 100)
    secs = scale(4, 60)
    # The allocator takes many reloads, and events between them, until it has what it needs: a small figure has to allow
    # for that.
    warm_ups, pause, share = scale(10, 150), scale(0, 200) / 1000, scale(15, 5) / 100
    bound = f"0 failed requests, 0 lost, memory +{share:.0%}, descriptors +0, threads +0 but for a pool"
    with row("D3", what="SIGHUP under load, one in five invalid", unit="reloads", bound=bound) as found:
        target = rig.target()
        storm = Storm(rig, target)
        storm.gateway = gateway = rig.start()
        warm_up = rig.load("w", senders=8, rate=300, most_bytes=4096)
        for number in range(1, warm_ups + 1):
            storm.reload(number)
            time.sleep(pause)
        memory, descriptors, threads = measured(gateway, warm_up)
        load = rig.load(senders=8, rate=300, most_bytes=4096)
        load.wait_for_acked(0.0, 50)
        started = time.monotonic()
        valid, invalid = storm.valid, storm.invalid
        for number in range(warm_ups + 1, warm_ups + reloads + 1):
            storm.reload(number)
            found.tried += 1
            time.sleep(max(0.0, started + found.tried * secs / reloads - time.monotonic()))
        took = time.monotonic() - started
        assert storm.invalid - invalid == reloads // INVALID_ONE_IN
        assert storm.valid - valid == reloads - reloads // INVALID_ONE_IN
        now_memory, now_descriptors, now_threads = measured(gateway, load)
        assert now_descriptors.total() <= descriptors.total(), f"{now_descriptors - descriptors} more than before"
        assert now_threads <= threads + POOL_THREADS
        grown = now_memory / memory - 1
        assert grown <= share, f"memory grew by {grown:.1%}"
        rig.settle(gateway, ["crm", "archive"])
        rig.is_alive(gateway, target)
        assert gateway.stop()[0] == 0
        checked = rig.check(found, [warm_up, load], target.delivered(), duplicates=0)
        rig.check(found, [warm_up, load], oracle.entries_in_files(rig.folder / "events"), duplicates=0)
        found.note(
            f"in {took:.0f} s; memory {grown:+.1%};"
            f" {descriptors.total()} descriptors before and {now_descriptors.total()} after,"
            f" {threads} threads and {now_threads};"
            f" {checked.acknowledged:,} events acknowledged; tasks cannot be seen from outside"
        )
