from __future__ import annotations

import asyncio
import threading
from typing import Any

from edge.api import RetryableError
from edge.delivery.circuit import CircuitState
from edge.outcomes import AttemptResult, SinkOutcome
from edge.spool.cursor import Cursor, CursorFile
from edge.spool.format import REPLAY

DELIVERED, DEAD, SKIPPED = SinkOutcome.DELIVERED, SinkOutcome.DEAD_LETTERED, SinkOutcome.SKIPPED


async def test_worker_delivers_every_event_in_order(spool: Any, station: Any, eventually: Any) -> None:
    st = station(max_events=10)
    st.start()
    for n in (3, 25, 1, 1, 12):
        await spool.put(n)
    await eventually(lambda: st.settled)
    assert st.sink.numbers() == list(range(42))
    assert st.sink.opens == 1
    assert st.sink.overlaps == 0
    assert st.observer.outcomes == {("crm", DELIVERED): 42}
    st.assert_balanced()


async def test_worker_begins_a_new_sink_at_the_end_of_the_spool(spool: Any, station: Any, eventually: Any) -> None:
    base = await spool.put(5) + 5
    st = station()
    worker = st.start()
    saved = CursorFile(spool.path, "crm").load()
    assert saved == Cursor(position=base, base=base, delivered=0, dead_lettered=0, skipped=0, lost=0)
    await spool.put(2)
    await eventually(lambda: st.settled)
    assert st.sink.numbers() == [5, 6]
    assert worker.snapshot().cursor.base == base


async def test_worker_waits_for_a_full_batch(spool: Any, station: Any, clock: Any, eventually: Any) -> None:
    st = station(clock=clock, max_events=10, max_age_secs=5)
    st.start()
    for _ in range(9):
        await spool.put(1)
    await eventually(lambda: clock.sleeping)
    assert st.sink.attempts == []
    await spool.put(1)
    await eventually(lambda: st.settled)
    assert [len(batch) for batch in st.sink.attempts] == [10]
    assert clock.now == 1000.0


async def test_worker_delivers_a_part_of_a_batch_once_it_is_old(
    spool: Any, station: Any, clock: Any, eventually: Any
) -> None:
    st = station(clock=clock, max_events=10, max_age_secs=5)
    st.start()
    await spool.put(4)
    await eventually(lambda: clock.sleeping == [5.0])
    clock.advance(3)
    await spool.put(2)
    await eventually(lambda: clock.sleeping == [2.0])
    assert st.sink.attempts == []
    clock.advance(2)
    await eventually(lambda: st.settled)
    assert [len(batch) for batch in st.sink.attempts] == [6]


async def test_worker_sees_that_a_batch_is_full_by_bytes(spool: Any, station: Any, clock: Any, eventually: Any) -> None:
    st = station(clock=clock, max_events=1000, max_bytes=5000, max_age_secs=3600)
    st.start()
    for _ in range(6):
        await spool.put(1, size=1000)
    await eventually(lambda: st.sink.attempts)
    assert clock.now == 1000.0
    assert len(st.sink.attempts[0]) == 4


async def test_worker_wakes_no_more_often_than_needed(
    spool: Any, station: Any, clock: Any, eventually: Any, monkeypatch: Any
) -> None:
    st = station(clock=clock, max_events=100, max_age_secs=5)
    await spool.put(1)
    st.start()
    await spool.put(100)
    await eventually(lambda: st.settled)
    reads = 0
    real = spool.log.read

    def read(position: int, max_bytes: int) -> Any:
        nonlocal reads
        reads += 1
        return real(position, max_bytes)

    monkeypatch.setattr(spool.log, "read", read)
    for _ in range(99):
        await spool.put(1)
    assert reads <= 2
    await spool.put(1)
    await eventually(lambda: st.settled)
    assert reads <= 4


async def test_worker_retries_the_same_batch_until_the_target_takes_it(
    spool: Any, station: Any, clock: Any, until: Any
) -> None:
    st = station(clock=clock, max_events=4)
    st.sink.script = [RetryableError("down"), OSError("refused"), RuntimeError("a bug"), RetryableError("down")]
    st.start()
    await spool.put(8)
    await until(lambda: st.settled)
    ids = [batch.id for batch in st.sink.attempts]
    assert len(set(ids)) == 2
    assert ids[:5] == [ids[0]] * 5
    assert st.sink.numbers() == list(range(8))
    assert st.observer.results == {AttemptResult.RETRYABLE: 4, AttemptResult.OK: 2}
    assert st.observer.batches == [4, 4]
    st.assert_balanced()


async def test_worker_honours_retry_after(spool: Any, station: Any, clock: Any, eventually: Any) -> None:
    st = station(clock=clock)
    st.sink.script = [RetryableError("slow down", retry_after=30)]
    worker = st.start()
    await spool.put(1)
    await eventually(lambda: clock.sleeping == [30.0])
    assert worker.snapshot().retry_in_secs == 30.0
    assert worker.snapshot().last_error == "slow down"
    clock.advance(29.9)
    assert len(st.sink.attempts) == 1
    clock.advance(0.1)
    await eventually(lambda: st.settled)
    assert len(st.sink.attempts) == 2
    assert worker.snapshot().last_error == ""


async def test_worker_opens_the_circuit_and_the_sink_again(
    spool: Any, station: Any, clock: Any, until: Any, eventually: Any, expect_log: list[str]
) -> None:
    expect_log += ["circuit opened", "still failing"]
    st = station(clock=clock)
    st.sink.answer = lambda _: RetryableError("down")
    worker = st.start()
    await spool.put(1)
    await until(lambda: worker.snapshot().circuit == CircuitState.OPEN)
    assert len(st.sink.attempts) == 5
    assert not worker.snapshot().open
    assert st.sink.opens == 1
    probes = len(st.sink.attempts)
    started = clock.now
    await until(lambda: clock.now - started >= 600)
    # Rarer and rarer: a probe every 5 s would be 120 of them.
    assert 15 <= len(st.sink.attempts) - probes <= 40
    assert st.sink.opens == 1 + len(st.sink.attempts) - probes
    st.sink.answer = None
    back_at, wait = clock.now, worker.snapshot().retry_in_secs
    await until(lambda: st.settled)
    assert clock.now - back_at <= wait + 1
    snapshot = worker.snapshot()
    assert (snapshot.open, snapshot.circuit, snapshot.last_error) == (True, CircuitState.CLOSED, "")


async def test_worker_opens_the_circuit_at_once_when_the_error_asks_for_it(
    spool: Any, station: Any, clock: Any, eventually: Any, expect_log: list[str]
) -> None:
    expect_log.append("circuit opened")
    st = station(clock=clock)
    st.sink.script = [RetryableError("401", open_circuit=True)]
    worker = st.start()
    await spool.put(1)
    await eventually(lambda: worker.snapshot().circuit == CircuitState.OPEN and clock.sleeping)
    assert 5.0 <= clock.sleeping[0] <= 5.5
    clock.advance(5.5)
    await eventually(lambda: st.settled)


async def test_worker_opens_a_sink_that_does_not_open_at_first(
    spool: Any, station: Any, clock: Any, until: Any, expect_log: list[str]
) -> None:
    expect_log.append("circuit opened")
    st = station(clock=clock)
    st.sink.open_script = [OSError("no route"), *[SystemExit(2)] * 8]
    worker = st.start()
    await spool.put(3)
    await until(lambda: worker.snapshot().last_error == "edge_open: SystemExit: 2")
    assert not worker.snapshot().open
    await until(lambda: st.settled)
    assert st.sink.opens == 10
    assert st.sink.numbers() == [0, 1, 2]


async def test_worker_counts_a_timeout_and_tries_again(spool: Any, station: Any, eventually: Any) -> None:
    st = station(timeout_secs=0.05, initial_secs=0.001, max_secs=0.001)
    cancelled = asyncio.Event()

    async def hang(_: Any) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cancelled.set()

    st.sink.script = [hang]
    worker = st.start()
    await spool.put(2)
    await eventually(lambda: worker.snapshot().last_error == "no answer within 0.05 s" or st.settled)
    await eventually(lambda: st.settled)
    assert cancelled.is_set()
    assert st.observer.results == {AttemptResult.TIMEOUT: 1, AttemptResult.OK: 1}


async def test_worker_survives_whatever_a_sink_raises(spool: Any, station: Any, clock: Any, until: Any) -> None:
    class UnreadableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    st = station(clock=clock, max_secs=0.5)
    errors = [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError(), UnreadableError()]
    texts = []
    for error in errors:
        st.sink.script += [error, None]
    worker = st.start()
    for _ in errors:
        await spool.put(1)
        await until(lambda: worker.snapshot().last_error)
        texts.append(worker.snapshot().last_error)
        await until(lambda: st.settled)
    assert [text.split(":")[0] for text in texts] == [type(error).__name__ for error in errors]
    assert st.sink.numbers() == list(range(5))


async def test_worker_skips_what_the_sink_does_not_want(
    spool: Any, station: Any, new_sink: Any, eventually: Any
) -> None:
    st = station(new_sink(when=lambda event: event["n"] % 2 == 1))
    st.start()
    await spool.put(10)
    await spool.put(3, kind=REPLAY, sink="archive")
    await eventually(lambda: st.settled)
    assert st.sink.numbers() == [1, 3, 5, 7, 9]
    assert st.observer.outcomes == {("crm", DELIVERED): 5, ("crm", SKIPPED): 5}
    assert st.worker.snapshot().cursor.skipped == 8
    st.assert_balanced()


async def test_worker_saves_the_cursor_of_an_idle_sink(spool: Any, station: Any, eventually: Any) -> None:
    st = station()
    worker = st.start()
    end = await spool.put(3) + 3
    await eventually(lambda: worker.durable_position == end)
    saved = CursorFile(spool.path, "crm").load()
    assert saved == worker.snapshot().cursor
    assert saved.delivered == 3


async def test_worker_keeps_few_events_unsaved(spool: Any, station: Any, eventually: Any) -> None:
    st = station(max_events=400)
    for _ in range(20):
        await spool.put(1000)
    worst = 0
    file = CursorFile(spool.path, "crm")
    first = spool.log.first_seq
    file.save(Cursor(first, first, 0, 0, 0, 0))

    def look(batch: Any) -> None:
        nonlocal worst
        saved = CursorFile(spool.path, "crm").load()
        worst = max(worst, st.worker.snapshot().cursor.position - saved.position)

    st.sink.answer = look
    st.start()
    await eventually(lambda: st.settled)
    assert len(st.sink.taken) == 20_000
    assert worst <= 1000


async def test_worker_reports_the_age_of_the_oldest_pending_event(
    spool: Any, station: Any, clock: Any, eventually: Any
) -> None:
    st = station(clock=clock)
    st.sink.script = [RetryableError("down", retry_after=100)]
    worker = st.start()
    assert worker.snapshot().oldest_pending_age_secs == 0.0
    await spool.put(1, received_at="2025-10-09T08:53:10+00:00")
    await eventually(lambda: clock.sleeping == [100.0])
    assert worker.snapshot().oldest_pending_age_secs == 10.0
    clock.wall -= 3600
    assert worker.snapshot().oldest_pending_age_secs == 0.0
    clock.advance(100)
    await eventually(lambda: st.settled)
    assert worker.snapshot().oldest_pending_age_secs == 0.0


async def test_worker_knows_the_age_although_the_sink_never_opened(
    spool: Any, station: Any, clock: Any, eventually: Any
) -> None:
    first = spool.log.first_seq
    CursorFile(spool.path, "crm").save(Cursor(first, first, 0, 0, 0, 0))
    await spool.put(1, received_at="2025-10-09T08:53:00+00:00")
    st = station(clock=clock, initial_secs=1000, max_secs=1000)
    st.sink.open_script = [OSError("no route")]
    worker = st.start()
    await eventually(lambda: clock.sleeping)
    assert worker.snapshot().oldest_pending_age_secs == 20.0
    assert worker.snapshot().pending_events == 1


async def test_worker_never_lets_a_dead_sink_slow_another_one(
    spool: Any, station: Any, new_sink: Any, eventually: Any
) -> None:
    dead = station(new_sink("dead"), timeout_secs=30)

    async def hang(_: Any) -> None:
        await asyncio.get_running_loop().create_future()

    dead.sink.answer = hang
    well = station(new_sink("well"))
    dead.start()
    well.start()
    for _ in range(50):
        await spool.put(10)
        await eventually(lambda: well.settled, timeout_secs=1)
    assert well.sink.numbers() == list(range(500))
    assert dead.worker.snapshot().pending_events == 500


async def test_worker_passes_events_that_the_spool_lost(
    spool: Any, station: Any, eventually: Any, expect_log: list[str]
) -> None:
    expect_log += ["lost events", "of the spool are lost", "the spool was opened"]
    st = station()
    worker = st.start()
    await spool.put(5)
    await eventually(lambda: st.settled)
    await worker.stop(1)
    await spool.log.close()
    spool.log = spool._open(spool.log.durable_seq + 40)
    worker = st.start()
    await spool.put(5)
    await eventually(lambda: st.settled)
    assert st.sink.numbers() == list(range(10))
    assert worker.snapshot().cursor.lost == 40
    st.assert_balanced()


async def test_worker_begins_at_the_first_event_in_the_spool_when_its_cursor_lies_before_it(
    spool: Any, station: Any, eventually: Any, caplog: Any, expect_log: list[str]
) -> None:
    expect_log += ["before the first one in the spool", "the spool was opened"]
    await spool.log.close()
    for segment in spool.path.glob("seg-*.log"):
        segment.unlink()
    CursorFile(spool.path, "crm").save(Cursor(10, 0, 8, 1, 1, 0))
    spool.log = spool._open(50)
    st = station()
    worker = st.start()
    assert worker.snapshot().cursor == Cursor(50, 0, 8, 1, 1, 40)
    assert CursorFile(spool.path, "crm").load() == Cursor(50, 0, 8, 1, 1, 40)
    await spool.put(3)
    await eventually(lambda: st.settled)
    assert st.sink.numbers() == [0, 1, 2]
    [record] = [record for record in caplog.records if "before the first one" in str(record.msg)]
    assert (record.levelname, record.msg["events"]) == ("WARNING", 40)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    st.assert_balanced()


async def test_worker_delivers_although_nobody_can_count(
    spool: Any, station: Any, eventually: Any, caplog: Any, expect_log: list[str]
) -> None:
    expect_log.append("cannot be counted")

    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise ValueError(name)

    st = station(max_events=5)
    st.observer = Broken()
    st.start()
    await spool.put(20)
    await eventually(lambda: st.settled)
    assert st.sink.numbers() == list(range(20))
    assert len([record for record in caplog.records if "cannot be counted" in str(record.msg)]) == 1
    st.assert_balanced()


async def test_worker_sets_a_cursor_beyond_the_spool_back(
    spool: Any, station: Any, eventually: Any, expect_log: list[str]
) -> None:
    expect_log.append("beyond the spool")
    CursorFile(spool.path, "crm").save(Cursor(10_000, 0, 10_000, 0, 0, 0))
    st = station()
    st.start()
    await spool.put(3)
    await eventually(lambda: st.settled)
    assert st.sink.numbers() == [0, 1, 2]
    st.assert_balanced()


async def test_worker_delivers_the_whole_spool_when_the_cursor_is_damaged(
    spool: Any, station: Any, eventually: Any, expect_log: list[str]
) -> None:
    expect_log.append("cursor is damaged")
    await spool.put(7)
    for suffix in "ab":
        (spool.path / f"cursor-crm.{suffix}").write_bytes(b"\x00" * 20 + b"garbage" * 7)
    st = station()
    st.start()
    await eventually(lambda: st.settled)
    assert st.sink.numbers() == list(range(7))


async def test_worker_needs_no_thread_that_plugins_share(spool: Any, station: Any, eventually: Any) -> None:
    release = threading.Event()
    hogs = [asyncio.get_running_loop().run_in_executor(None, release.wait, 20) for _ in range(64)]
    try:
        st = station()
        worker = st.start()
        await spool.put(5)
        await eventually(lambda: st.settled and worker.durable_position == 5)
        await worker.stop(1)
    finally:
        release.set()
        await asyncio.gather(*hogs)


async def test_worker_starts_over_from_its_cursor_when_the_spool_cannot_be_read(
    spool: Any, station: Any, clock: Any, until: Any, monkeypatch: Any, expect_log: list[str]
) -> None:
    expect_log.append("starts over")
    st = station(clock=clock)
    st.start()
    await spool.put(3)
    await until(lambda: st.settled)
    real, calls = spool.log.read, 0

    def read(position: int, max_bytes: int) -> Any:
        nonlocal calls
        calls += 1
        if calls <= 3:
            raise OSError(5, "Input/output error")
        return real(position, max_bytes)

    monkeypatch.setattr(spool.log, "read", read)
    await spool.put(3)
    await until(lambda: st.settled)
    assert calls >= 4
    assert st.sink.numbers() == list(range(6))
    st.assert_balanced()


async def test_worker_passes_what_others_had_replayed_while_it_was_stopped(
    spool: Any, station: Any, eventually: Any
) -> None:
    st = station()
    worker = st.start()
    await spool.put(1)
    await eventually(lambda: st.settled)
    await worker.stop(1)
    await spool.put(3, kind=REPLAY, sink="another")
    worker = st.start()
    await eventually(lambda: worker.snapshot().pending_events == 0)
    assert st.sink.numbers() == [0]
    assert worker.snapshot().cursor.skipped == 3
    assert worker.snapshot().oldest_pending_age_secs == 0
