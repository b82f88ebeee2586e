"""A worker that is told to give its oldest events up: what becomes of each of them, and that it goes on."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from edge.api import PermanentError, RetryableError
from edge.delivery import dropping
from edge.outcomes import SinkOutcome
from edge.spool.cursor import CursorFile
from edge.spool.errors import SpoolFailedError
from edge.spool.format import REPLAY

DELIVERED, DEAD = SinkOutcome.DELIVERED, SinkOutcome.DEAD_LETTERED
SKIPPED, DROPPED = SinkOutcome.SKIPPED, SinkOutcome.DROPPED
SAID = "the oldest events of a sink were dropped"


@pytest.fixture(autouse=True)
def _said(expect_log: list[str]) -> None:
    expect_log.append(SAID)


async def test_dead_sink_gives_up_what_lies_before_the_position_and_goes_on_from_there(
    spool: Any, station: Any, clock: Any, until: Any, eventually: Any, caplog: Any
) -> None:
    st = station(clock=clock, max_events=7)
    st.sink.script = [RetryableError("down", retry_after=1000)]
    worker = st.start()
    for _ in range(5):
        await spool.put(10)
    await eventually(lambda: clock.sleeping == [1000.0])
    assert await worker.drop_before(30)
    cursor = worker.snapshot().cursor
    assert (cursor.position, cursor.dropped, cursor.delivered) == (30, 30, 0)
    assert CursorFile(spool.path, "crm").load() == cursor  # durable when it returns
    assert worker.durable_position == 30
    st.assert_balanced()
    [line] = [record.msg for record in caplog.records if record.levelname == "ERROR"]
    assert (line["event"].endswith(SAID), line["sink"], line["events"]) == (True, "crm", 30)
    assert worker.snapshot().retry_in_secs == 1000.0  # the target is no less dead than before
    await until(lambda: st.settled)
    assert st.sink.numbers() == list(range(30, 50))
    assert st.observer.outcomes == {("crm", DROPPED): 30, ("crm", DELIVERED): 20}
    st.assert_balanced()


async def test_nothing_is_given_up_by_a_sink_that_is_past_the_position(
    spool: Any, station: Any, eventually: Any
) -> None:
    st = station()
    worker = st.start()
    await spool.put(10)
    await eventually(lambda: st.settled)
    assert await worker.drop_before(10)  # at once: not when the next save is due
    assert CursorFile(spool.path, "crm").load().delivered == 10
    assert st.observer.outcomes == {("crm", DELIVERED): 10}


@pytest.mark.parametrize("position", [10, 5])
async def test_events_that_had_their_outcome_keep_it(
    spool: Any, station: Any, clock: Any, eventually: Any, until: Any, expect_log: list[str], position: int
) -> None:
    expect_log.append("dead letters")
    st = station(clock=clock)
    st.sink.script = [{0: PermanentError("no"), 2: RetryableError("busy", retry_after=500), 4: PermanentError("no")}]
    worker = st.start()
    await spool.put(10)
    await eventually(lambda: clock.sleeping == [500.0])
    assert worker.snapshot().cursor.position == 2
    assert await worker.drop_before(position)
    cursor = worker.snapshot().cursor
    # Number 4 was refused for good and waited behind number 2 to become a dead letter.
    assert (cursor.dead_lettered, cursor.dropped) == (1, 2)
    assert (cursor.position, cursor.delivered) == (10, 7)
    st.assert_balanced()
    await spool.put(1)
    await until(lambda: st.settled)
    assert len(await st.letters()) == 1
    st.assert_balanced()


async def test_events_of_the_batch_behind_the_position_are_delivered(
    spool: Any, station: Any, clock: Any, eventually: Any, until: Any
) -> None:
    st = station(clock=clock)
    st.sink.script = [RetryableError("down", retry_after=500)]
    worker = st.start()
    await spool.put(10)
    await eventually(lambda: clock.sleeping == [500.0])
    assert await worker.drop_before(4)
    await until(lambda: st.settled)
    assert st.sink.numbers() == [4, 5, 6, 7, 8, 9]
    assert worker.snapshot().cursor.dropped == 4
    st.assert_balanced()


async def test_what_the_sink_would_not_have_had_is_not_counted_as_dropped(
    spool: Any, station: Any, new_sink: Any, clock: Any, eventually: Any
) -> None:
    st = station(new_sink(when=lambda event: event["n"] % 5 == 0), clock=clock, max_events=2)
    st.sink.answer = lambda _: RetryableError("down", retry_after=1000)
    worker = st.start()
    accepted = 0
    for _ in range(40):
        await spool.put(9)
        accepted += 9
        await spool.put(1, kind=REPLAY, sink="archive")
    end = spool.log.durable_seq
    await eventually(lambda: clock.sleeping == [1000.0])
    assert await worker.drop_before(end)
    cursor = worker.snapshot().cursor
    assert (cursor.position, cursor.dropped, cursor.skipped) == (end, 80, 320)
    outcomes = st.observer.outcomes
    assert outcomes["crm", DROPPED] + outcomes["crm", SKIPPED] == accepted
    st.assert_balanced()


@pytest.mark.parametrize("failure", ["error", "slow"])
async def test_what_cannot_be_read_is_counted_by_its_numbers(
    spool: Any,
    station: Any,
    clock: Any,
    eventually: Any,
    until: Any,
    monkeypatch: Any,
    expect_log: list[str],
    failure: str,
) -> None:
    expect_log.append("starts over")
    st = station(clock=clock, max_events=5)
    st.sink.script = [RetryableError("down", retry_after=50)]
    worker = st.start()
    await spool.put(5)
    await eventually(lambda: clock.sleeping == [50.0])
    for _ in range(4):
        await spool.put(5)
    read = spool.log.read

    def unreadable(position: int, max_bytes: int) -> Any:
        if failure == "error":
            raise SpoolFailedError("it cannot be opened")
        clock.now += dropping.READ_SECS
        return read(position, 1)

    monkeypatch.setattr(spool.log, "read", unreadable)
    assert await worker.drop_before(20)
    monkeypatch.setattr(spool.log, "read", read)
    assert worker.snapshot().cursor.dropped == 20
    st.assert_balanced()
    await until(lambda: st.settled)
    assert st.sink.numbers() == list(range(20, 25))
    st.assert_balanced()


async def test_attempt_that_ends_in_time_counts(spool: Any, station: Any, eventually: Any) -> None:
    st = station(max_events=10)
    going = asyncio.Event()

    async def slowly(_: Any) -> None:
        going.set()
        await asyncio.sleep(dropping.GRACE_SECS / 5)

    st.sink.script = [slowly]
    worker = st.start()
    await spool.put(20)
    await going.wait()
    assert await worker.drop_before(20)
    assert st.sink.numbers() == list(range(10))
    assert st.observer.outcomes == {("crm", DELIVERED): 10, ("crm", DROPPED): 10}


@pytest.mark.parametrize("ignores_cancellation", [False, True])
async def test_attempt_that_hangs_is_cancelled_and_no_other_begins_before_it_has_ended(
    spool: Any, station: Any, eventually: Any, monkeypatch: Any, ignores_cancellation: bool
) -> None:
    monkeypatch.setattr(dropping, "GRACE_SECS", 0.05)
    st = station(max_events=10)
    cancelled, release = asyncio.Event(), asyncio.Event()

    async def hang(_: Any) -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                cancelled.set()
                if not ignores_cancellation:
                    raise

    st.sink.script = [hang]
    worker = st.start()
    await spool.put(25)
    await eventually(lambda: st.sink.attempts)
    assert await worker.drop_before(20)
    assert cancelled.is_set()
    assert worker.snapshot().cursor.dropped == 20
    if ignores_cancellation:
        await spool.put(5)
        assert await worker.drop_before(25)  # and again, while the call before goes on
        assert len(st.sink.attempts) == 1
        release.set()
    await eventually(lambda: st.settled)
    assert st.sink.overlaps == 0
    assert sum(st.observer.outcomes.values()) == spool.log.durable_seq
    st.assert_balanced()


async def test_sink_that_never_opened_gives_up_as_well(
    spool: Any, station: Any, clock: Any, eventually: Any, until: Any
) -> None:
    st = station(clock=clock, initial_secs=500, max_secs=1000)
    st.sink.open_script = [OSError("no route")]
    worker = st.start()
    await eventually(lambda: clock.sleeping)
    await spool.put(10)
    assert await worker.drop_before(10)
    assert (worker.snapshot().cursor.dropped, worker.snapshot().pending_events) == (10, 0)
    await spool.put(3)
    await until(lambda: st.settled)
    assert st.sink.numbers() == [10, 11, 12]


async def test_waiting_for_a_full_batch_is_interrupted(
    spool: Any, station: Any, clock: Any, eventually: Any, until: Any
) -> None:
    st = station(clock=clock, max_events=1000, max_age_secs=3600)
    worker = st.start()
    await spool.put(10)
    await eventually(lambda: clock.sleeping == [3600.0])
    assert await worker.drop_before(6)
    await until(lambda: st.settled)
    assert st.sink.numbers() == [6, 7, 8, 9]
    st.assert_balanced()


async def test_stopped_worker_gives_nothing_up(spool: Any, station: Any) -> None:
    st = station()
    st.sink.answer = lambda _: RetryableError("down")
    worker = st.start()
    await spool.put(10)
    await worker.stop(0.1)
    assert not await worker.drop_before(10)
    assert CursorFile(spool.path, "crm").load().position == 0


async def test_cursor_that_cannot_be_saved_is_not_past_it(
    spool: Any, station: Any, clock: Any, eventually: Any, monkeypatch: Any, expect_log: list[str]
) -> None:
    expect_log.append("cannot be saved")
    st = station(clock=clock)
    st.sink.answer = lambda _: RetryableError("down", retry_after=1000)
    file = CursorFile(spool.path, "crm")
    worker = st.start(file)
    await spool.put(10)
    await eventually(lambda: clock.sleeping == [1000.0])
    save, failing = file.save, True

    def fail(cursor: Any) -> None:
        if failing:
            raise SpoolFailedError("Input/output error")
        save(cursor)

    monkeypatch.setattr(file, "save", fail)
    assert not await worker.drop_before(10)
    assert worker.durable_position == 0
    failing = False
    assert await worker.drop_before(10)  # what was given up is not given up again
    assert CursorFile(spool.path, "crm").load().dropped == 10


async def test_drain_that_meets_a_drop_ends_in_time(spool: Any, station: Any, eventually: Any) -> None:
    st = station(max_events=10)

    async def hang(_: Any) -> None:
        await asyncio.get_running_loop().create_future()

    st.sink.answer = hang
    worker = st.start()
    await spool.put(30)
    await eventually(lambda: st.sink.attempts)
    started = asyncio.get_running_loop().time()
    dropped, _ = await asyncio.gather(worker.drop_before(20), worker.stop(0.2))
    assert asyncio.get_running_loop().time() - started < 3
    cursor = CursorFile(spool.path, "crm").load()
    assert dropped == (cursor.position >= 20)
    assert cursor.position == cursor.base + cursor.settled_events


@pytest.mark.parametrize("seed", range(8))
async def test_books_balance_whatever_is_dropped_when(
    spool: Any, station: Any, new_sink: Any, eventually: Any, expect_log: list[str], monkeypatch: Any, seed: int
) -> None:
    expect_log += ["dead letters", "circuit opened", "still failing"]
    monkeypatch.setattr(dropping, "GRACE_SECS", 0.02)
    rng = random.Random(seed)
    when = (lambda event: event["n"] % 5 != 0) if seed % 2 else None
    options = {"max_events": rng.choice([3, 20, 200]), "initial_secs": 0.001, "max_secs": 0.005}
    st = station(new_sink(when=when), **options)

    async def hang(_: Any) -> None:
        await asyncio.sleep(rng.choice([0.001, 0.03, 60]))

    def answer(batch: Any) -> Any:
        roll = rng.random()
        if roll < 0.3:
            return RetryableError("busy", retry_after=rng.choice([None, 0.01, 60]))
        if roll < 0.4:
            return PermanentError("no", divide=rng.random() < 0.7)
        if roll < 0.7:
            errors = [RetryableError("429", retry_after=rng.choice([None, 60])), PermanentError("400"), KeyError("x")]
            return {i: rng.choice(errors) for i in range(len(batch)) if rng.random() < 0.3}
        return hang(batch) if roll < 0.85 else None

    st.sink.answer = answer
    st.start()
    accepted = foreign = 0
    for _ in range(12):
        for _ in range(rng.randrange(1, 8)):
            size = rng.randrange(1, 30)
            await spool.put(size)
            accepted += size
            if rng.random() < 0.2:
                await spool.put(1, kind=REPLAY, sink="archive")
                foreign += 1
        await asyncio.sleep(rng.choice([0, 0.001, 0.01]))
        position = rng.randrange(spool.log.durable_seq + 1)
        assert await st.worker.drop_before(position)
        cursor = st.worker.snapshot().cursor
        assert cursor.position >= position
        assert CursorFile(spool.path, "crm").load().position >= position
        st.assert_balanced()
    assert await st.worker.drop_before(spool.log.durable_seq)
    cursor, counted = st.worker.snapshot().cursor, st.observer.outcomes
    assert accepted == sum(counted.values())
    assert cursor.skipped == counted["crm", SKIPPED] + foreign
    assert (cursor.delivered, cursor.dropped) == (counted["crm", DELIVERED], counted["crm", DROPPED])
    assert cursor.dead_lettered == counted["crm", DEAD] == len(await st.letters())
    assert cursor.dropped > 0
    assert st.sink.overlaps == 0


async def test_circuit_that_attempts_have_opened_is_not_closed_by_a_drop(
    spool: Any, station: Any, clock: Any, until: Any, eventually: Any, expect_log: list[str]
) -> None:
    expect_log.append("circuit opened")
    st = station(clock=clock)
    st.sink.script = [RetryableError("down", retry_after=1000, open_circuit=True)]
    worker = st.start()
    for _ in range(3):
        await spool.put(10)
    await eventually(lambda: clock.sleeping == [1000.0])
    assert worker.snapshot().circuit == 2
    assert await worker.drop_before(20)
    # It waits for the time of its probe, and opens (which reaches nobody) only for that.
    await eventually(lambda: clock.sleeping == [1000.0])
    assert worker.snapshot().circuit == 2
    await until(lambda: st.settled)
    assert worker.snapshot().circuit == 0
    st.assert_balanced()
