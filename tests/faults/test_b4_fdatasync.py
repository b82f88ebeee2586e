"""B4: the disk does not confirm a commit: EIO from fdatasync, once and from then on, in a gateway under load.

strace counts the calls of each thread by itself, so the k-th commit fails and the k-th save of a cursor as well.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from harness import filling, oracle, strace

SEGMENT_BYTES = 256 * 1024
CONTINUE_SECS, UNREADY_SECS, BACK_SECS = 1.0, 1.0, 2.0
OTHERS = ("fsync", "close", "openat")
"""Calls to write down: what happens to a descriptor whose fdatasync failed, and when its number is another one's."""

SYNCED_AGAIN = """\
7 100.1 fdatasync(3</s/seg-1.log> <unfinished ...>
8 100.2 openat(5</s>, "cursor-crm.a", O_RDWR) = 4</s/cursor-crm.a>
7 100.3 <... fdatasync resumed>)        = -1 EIO (Input/output error) (INJECTED)
8 100.4 fdatasync(4</s/cursor-crm.a>)   = 0
7 100.5 fsync(3</s/seg-1.log>)          = 0
7 100.6 close(3</s/seg-1.log>)          = 0
7 100.7 openat(5</s>, "seg-2.log", O_RDWR|O_CREAT) = 3</s/seg-2.log>
7 100.8 fdatasync(3</s/seg-2.log>)      = 0
"""


def test_b4_a_second_sync_is_seen_in_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.log"
    path.write_text(SYNCED_AGAIN)
    calls = strace.Trace(path).calls()
    assert [call.fd for call in calls if call.injected] == [3]
    assert [(call.name, call.path) for call in strace.synced_again(calls)] == [("fsync", "/s/seg-1.log")]


def test_b4_one_commit_that_is_not_confirmed(rig: Any, row: Any, scale: Any) -> None:
    with row("B4", what="fdatasync fails with EIO at the k-th call", unit="values of k") as found:
        strace.needed(found)
        target, gateway = _start(rig)
        loads, slowest, n_commits = [], 0.0, 0
        for k in range(1, scale(3, 50) + 1):
            path = rig.folder / f"trace-{k}.log"
            with strace.attached(gateway.pid, path, f"fdatasync:error=EIO:when={k}", OTHERS) as trace:
                load = rig.load(f"k{k}", senders=4)
                loads.append(load)
                failed = _first_failure(trace)
                oracle.wait_for(lambda: load.acked_between(failed.ended_at, time.monotonic()), CONTINUE_SECS, "acks")  # noqa: B023
                went_on = min(entry.at for entry in load.acked() if entry.at >= failed.ended_at) - failed.ended_at
                slowest = max(slowest, went_on)
                answers = load.stop()
            _expect_no_second_sync(trace)
            assert set(answers["statuses"]) <= {"200", "503"}, answers
            assert set(answers["codes"]) <= {"busy.unknown"}, answers
            if _is_commit(failed):
                n_commits += 1
                assert answers["codes"].get("busy.unknown"), "the commit failed and every sender got a 200"
            found.tried += 1
        assert n_commits, "no commit was hit"
        found.bound = f"0 lost, never a second fdatasync on that descriptor, goes on within {CONTINUE_SECS:g} s"
        found.note(f"{n_commits} of {found.tried} hit a commit; went on within {slowest:.2f} s")
        _finish(rig, found, gateway, target, loads)


def test_b4_no_commit_is_confirmed_any_more(rig: Any, row: Any, scale: Any) -> None:
    with row("B4", what="fdatasync fails with EIO from the k-th call on", unit="values of k") as found:
        strace.needed(found)
        target, gateway = _start(rig)
        loads, slowest_unready, slowest_back = [], 0.0, 0.0
        for k in (1, 2, 3, 5, 8, 13, 21, 34, 50)[: scale(1, 9)]:
            target.order(listen=False)
            load = rig.load(f"s{k}", senders=4)
            loads.append(load)
            filling.wait_for_acks(load)
            oracle.wait_for(lambda: gateway.pending("crm") > 100, 10, "a backlog")
            path = rig.folder / f"sticky-{k}.log"
            with strace.attached(gateway.pid, path, f"fdatasync:error=EIO:when={k}+", OTHERS) as trace:
                failed = _first_failure(trace)
                oracle.wait_for(lambda: not gateway.is_ready(), UNREADY_SECS, "not ready")
                slowest_unready = max(slowest_unready, time.monotonic() - failed.ended_at)
                told = rig.probe(gateway)
                assert (told.status, told.code) == (503, "busy.full")
                target.order(listen=True)
                oracle.wait_for(lambda: not gateway.pending("crm"), 15, "the backlog is delivered")
                assert not gateway.is_ready()
                assert gateway.process.poll() is None
                # The disk is asked again once a second, each time with a file of its own.
                oracle.wait_for(lambda: trace.n_injected() >= 3, 5, "the disk is asked again")
            _expect_no_second_sync(trace)
            slowest_back = max(slowest_back, filling.wait_for_acks(load, BACK_SECS))
            answers = load.stop()
            filling.expect_answers(answers, "busy.full", "busy.unknown")
            found.tried += 1
        found.bound = (
            f"0 lost, not ready within {UNREADY_SECS:g} s, the backlog is delivered, back within {BACK_SECS:g} s"
        )
        found.note(f"not ready within {slowest_unready:.2f} s, takes events {slowest_back:.2f} s after the disk does")
        _finish(rig, found, gateway, target, loads)


@pytest.mark.full
@pytest.mark.parametrize("when", ["1", "1+"])
def test_b4_a_disk_that_fails_from_the_start(rig: Any, row: Any, when: str) -> None:
    with row("B4", what="fdatasync fails with EIO at the start", unit="starts") as found:
        strace.needed(found)
        target = rig.target()
        rig.configure({"crm": rig.http_sink(target)}, spool={"segment_bytes": SEGMENT_BYTES})
        path = rig.folder / "trace.log"
        gateway = rig.start(wrap=strace.command(path, f"fdatasync:error=EIO:when={when}", OTHERS))
        told = rig.probe(gateway)
        assert (told.status, told.code) == (503, "busy.full")
        assert not gateway.is_ready()
        if when == "1":  # of each thread: of the one that opens the spool, then of the writer
            oracle.wait_for(lambda: rig.probe(gateway).status == 200, 5, "it takes events")
            rig.is_alive(gateway, target)
            rig.check(found, [], target.delivered(), duplicates=0)
        assert gateway.stop()[0] == 0
        _expect_no_second_sync(strace.Trace(path))
        found.tried += 1


def _start(rig: Any) -> tuple[Any, Any]:
    target = rig.target()
    rig.configure({"crm": rig.http_sink(target)}, spool={"segment_bytes": SEGMENT_BYTES})
    return target, rig.start()


def _finish(rig: Any, found: Any, gateway: Any, target: Any, loads: list[Any]) -> None:
    rig.settle(gateway, ["crm"])
    rig.is_alive(gateway, target)
    rig.check(found, loads, target.delivered(), duplicates=0)
    assert gateway.stop()[0] == 0


def _first_failure(trace: strace.Trace, secs: float = 30.0) -> strace.Call:
    """Wait until a sync of a segment has failed, and return it."""
    failed: list[strace.Call] = []

    def look() -> bool:
        failed[:] = [call for call in trace.calls() if call.injected and "/cursor-" not in call.path]
        return bool(failed)

    oracle.wait_for(look, secs, "a sync of a segment has failed")
    assert failed[0].name == "fdatasync"
    assert failed[0].error == "EIO"
    return failed[0]


def _is_commit(call: strace.Call) -> bool:
    """Say whether a call was the sync of frames; a segment that is being started has another name yet."""
    return "/seg-" in call.path and call.path.endswith(".log")


def _expect_no_second_sync(trace: strace.Trace) -> None:
    calls = trace.calls()
    assert any(call.injected for call in calls)
    assert not strace.synced_again(calls), "a descriptor whose fdatasync had failed was synced again"
