from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from edge.api import PermanentError, RetryableError


class Gate:
    """A sink's target that keeps a batch until the test lets it go."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self, _: Any) -> None:
        self.reached.set()
        await self.open.wait()


async def test_stop_lets_the_running_attempt_finish_and_delivers_what_is_pending(spool: Any, station: Any) -> None:
    st = station(max_events=5)
    gate = Gate()
    st.sink.script = [gate]
    worker = st.start()
    await spool.put(10)
    await gate.reached.wait()
    stopping = asyncio.create_task(worker.stop(10))
    await asyncio.sleep(0)
    gate.open.set()
    await stopping
    assert st.sink.numbers() == list(range(10))
    assert st.sink.closes == 1
    cursor = worker.snapshot().cursor
    assert cursor.delivered == 10
    assert worker.durable_position == cursor.position
    assert worker.snapshot().pending_events == 0


async def test_stop_without_pending_lets_only_the_running_attempt_finish(
    spool: Any, station: Any, eventually: Any
) -> None:
    st = station(max_events=5)
    gate = Gate()
    st.sink.script = [gate]
    worker = st.start()
    await spool.put(10)
    await gate.reached.wait()
    stopping = asyncio.create_task(worker.stop(10, deliver_pending=False))
    await asyncio.sleep(0)
    gate.open.set()
    await stopping
    assert len(st.sink.attempts) == 1
    assert st.sink.numbers() == [0, 1, 2, 3, 4]
    assert worker.snapshot().pending_events == 5
    assert worker.durable_position == worker.snapshot().cursor.position
    assert st.sink.closes == 1
    st.start()
    await eventually(lambda: st.settled)
    assert st.sink.numbers() == list(range(10))


async def test_stop_without_pending_does_not_retry_what_fails(spool: Any, station: Any) -> None:
    st = station(max_events=5)
    gate = Gate()

    async def fail(batch: Any) -> None:
        await gate(batch)
        raise RetryableError("busy")

    st.sink.script = [fail]
    worker = st.start()
    await spool.put(5)
    await gate.reached.wait()
    stopping = asyncio.create_task(worker.stop(10, deliver_pending=False))
    await asyncio.sleep(0)
    gate.open.set()
    await stopping
    assert len(st.sink.attempts) == 1
    assert worker.snapshot().pending_events == 5


@pytest.mark.parametrize("ignores_cancellation", [False, True])
async def test_stop_does_not_wait_for_a_hung_sink_beyond_the_timeout(
    spool: Any, station: Any, expect_log: list[str], ignores_cancellation: bool
) -> None:
    expect_log += ["did not end", "failed to close"] if ignores_cancellation else []
    st = station(max_events=5, timeout_secs=60)
    gate, release = Gate(), asyncio.Event()

    async def hang(batch: Any) -> None:
        try:
            await gate(batch)
        except asyncio.CancelledError:
            if not ignores_cancellation:
                raise
            await release.wait()

    async def hang_too() -> None:
        st.sink.closes += 1
        await release.wait()

    st.sink.script = [hang]
    if ignores_cancellation:
        st.sink.close = hang_too
    worker = st.start()
    await spool.put(5)
    await gate.reached.wait()
    started = time.monotonic()
    await worker.stop(0.2)
    assert time.monotonic() - started < 2.0
    assert st.sink.closes == 1
    assert worker.snapshot().cursor.delivered == 0
    st.assert_balanced()
    release.set()
    # The abandoned task ends on its own; let it, so that the loop closes without it.
    await asyncio.sleep(0.01)


async def test_stop_ends_a_backoff_at_once(spool: Any, station: Any, clock: Any, eventually: Any) -> None:
    st = station(clock=clock)
    st.sink.script = [RetryableError("later", retry_after=3600)]
    worker = st.start()
    await spool.put(1)
    await eventually(lambda: clock.sleeping)
    started = time.monotonic()
    await worker.stop(30)
    assert time.monotonic() - started < 1
    assert len(st.sink.attempts) == 1
    assert st.sink.closes == 1


async def test_stop_delivers_a_batch_that_is_not_full(spool: Any, station: Any, clock: Any, eventually: Any) -> None:
    st = station(clock=clock, max_age_secs=60)
    worker = st.start()
    await spool.put(3)
    await eventually(lambda: clock.sleeping)
    await worker.stop(30)
    assert [len(batch) for batch in st.sink.attempts] == [3]
    assert worker.snapshot().pending_events == 0
    st.assert_balanced()


async def test_stop_does_not_try_again_what_fails_while_stopping(
    spool: Any, station: Any, clock: Any, eventually: Any
) -> None:
    st = station(clock=clock, max_age_secs=60)
    st.sink.script = [RetryableError("later")]
    worker = st.start()
    await spool.put(3)
    await eventually(lambda: clock.sleeping)
    started = time.monotonic()
    await worker.stop(30)
    assert time.monotonic() - started < 1
    assert len(st.sink.attempts) == 1
    assert worker.snapshot().pending_events == 3


async def test_stop_closes_a_sink_that_never_opened(spool: Any, station: Any, clock: Any, eventually: Any) -> None:
    st = station(clock=clock)
    st.sink.open_script = [OSError("no route")]
    worker = st.start()
    await eventually(lambda: clock.sleeping)
    await worker.stop(30)
    assert st.sink.closes == 1


async def test_stop_reports_a_close_that_fails(spool: Any, station: Any, expect_log: list[str]) -> None:
    expect_log.append("failed to close")
    st = station()
    worker = st.start()

    async def close() -> None:
        raise SystemExit(4)

    st.sink.close = close
    await worker.stop(1)


async def test_stop_can_be_called_twice_and_before_start(spool: Any, station: Any) -> None:
    st = station()
    worker = st.start()
    await asyncio.gather(worker.stop(1), worker.stop(1))
    await worker.stop(1)
    assert st.sink.closes == 1


async def test_stop_keeps_dead_letters_of_the_running_attempt(spool: Any, station: Any, expect_log: list[str]) -> None:
    expect_log.append("dead letters")
    st = station()
    gate = Gate()

    async def refuse(batch: Any) -> None:
        await gate(batch)
        raise PermanentError("no")

    st.sink.script = [refuse]
    worker = st.start()
    await spool.put(2)
    await gate.reached.wait()
    stopping = asyncio.create_task(worker.stop(10))
    gate.open.set()
    await stopping
    assert len(await st.letters()) == 2
    assert worker.snapshot().cursor.dead_lettered == 2


async def test_restart_goes_on_where_the_last_worker_stopped(spool: Any, station: Any, eventually: Any) -> None:
    st = station(max_events=7)
    st.start()
    await spool.put(100)
    await eventually(lambda: len(st.sink.attempts) >= 3)
    await st.worker.stop(5)
    await spool.put(50)
    await spool.restart()
    st.start()
    await eventually(lambda: st.settled)
    assert st.sink.numbers() == list(range(150))
    assert st.worker.snapshot().cursor.delivered == 150
    st.assert_balanced()


async def test_restart_repeats_at_most_what_was_unsaved_after_a_sudden_death(
    spool: Any, station: Any, eventually: Any
) -> None:
    st = station(max_events=100)
    gate = Gate()
    st.sink.answer = lambda batch: gate(batch) if len(st.sink.attempts) == 30 else None
    worker = st.start()
    for _ in range(50):
        await spool.put(100)
    await gate.reached.wait()
    # The process dies here: nobody saves the cursor, nobody lets the attempt finish.
    for task in worker._tasks:
        task.cancel()
    worker._keeper._closed = True
    await eventually(lambda: worker._keeper._saving is None)
    gate.open.set()
    taken = list(st.sink.numbers())
    st.sink.answer = None
    st.start()
    await eventually(lambda: st.settled)
    numbers = st.sink.numbers()
    assert sorted(set(numbers)) == list(range(5000))
    assert numbers[len(taken) :] == list(range(numbers[len(taken)], 5000))
    assert len(numbers) - 5000 <= 100 + 1000
