"""One sink with workers on several shards: called by one at a time, opened and closed as if there were one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from edge.clock import SystemClock
from edge.config.model import DeadLetters
from edge.delivery.shared import SinkPool, TurnCaller
from edge.delivery.worker import SinkWorker
from edge.outcomes import AttemptResult
from edge.spool.errors import SpoolFailedError
from edge.workers import Workers


@pytest.fixture
def pool(tmp_path: Path) -> SinkPool:
    return SinkPool(DeadLetters(tmp_path / "letters", 1 << 20, 1 << 26))


class Shards:
    """Workers on several logs that share one pool."""

    def __init__(self, pool: SinkPool, logs: list[Any], observer: Any, tmp_path: Path) -> None:
        letters = DeadLetters(tmp_path / "letters", 1 << 20, 1 << 26)
        self.all = [Workers(log, path, letters, observer, SystemClock(), pool) for path, log in logs]

    async def replace(self, sink: Any, config: Any) -> None:
        for workers, prepared in [(workers, workers.prepare([(sink, config)])) for workers in self.all]:
            await workers.replace(prepared, [config], 1.0)

    async def stop(self) -> None:
        await asyncio.gather(*(workers.stop(1.0) for workers in self.all))

    @property
    def pending(self) -> int:
        return sum(snapshot.pending_events for workers in self.all for snapshot in workers.snapshots())


async def test_calls_of_one_sink_never_overlap_and_waiting_is_no_part_of_their_time(
    pool: SinkPool, new_sink: Any, new_config: Any
) -> None:
    sink = new_sink()
    shared = pool.sink(sink, new_config())
    callers = [TurnCaller(shared) for _ in range(3)]
    running: list[int] = []

    async def slowly() -> None:
        running.append(1)
        assert len(running) == 1
        await asyncio.sleep(0.1)
        running.pop()

    answers = await asyncio.gather(*(caller.call(slowly, 0.2) for caller in callers))
    assert [answer.result for answer in answers] == [AttemptResult.OK] * 3
    assert sorted(round(caller.waited_secs, 1) for caller in callers) == [0.0, 0.1, 0.2]


async def test_call_that_waits_for_its_turn_can_be_cancelled(pool: SinkPool, new_sink: Any, new_config: Any) -> None:
    shared = pool.sink(new_sink(), new_config())
    first, second = TurnCaller(shared), TurnCaller(shared)

    async def hang() -> None:
        await asyncio.sleep(60)

    hanging = asyncio.create_task(first.call(hang, 60))
    await asyncio.sleep(0.01)
    waiting = asyncio.create_task(second.call(hang, 60))
    await asyncio.sleep(0.01)
    await second.cancel()
    assert (await waiting).result is None
    await first.cancel()
    assert (await hanging).result is None
    assert not shared.turn.locked()


async def test_sink_is_opened_once_and_closed_by_the_last(pool: SinkPool, new_sink: Any, new_config: Any) -> None:
    sink = new_sink()
    shared = pool.sink(sink, new_config())
    one, other = shared.seat(), shared.seat()
    await one.open()
    await other.open()
    assert sink.opens == 1
    await one.open()  # the connection was lost
    assert sink.opens == 2
    await other.open()  # which the first one has mended
    assert sink.opens == 2
    await other.open()
    assert sink.opens == 3
    await one.close()
    assert sink.closes == 0
    await other.close()
    assert sink.closes == 1


async def test_workers_of_several_shards_deliver_to_one_sink_one_batch_at_a_time(
    pool: SinkPool, spool: Any, logs: Any, new_sink: Any, new_config: Any, tmp_path: Path, eventually: Any
) -> None:
    sink = new_sink()

    async def slowly(batch: Any) -> None:
        await asyncio.sleep(0.002)

    sink.answer = slowly
    shards = Shards(pool, logs, logs.observer, tmp_path)
    await shards.replace(sink, new_config(max_events=5, max_age_secs=0.001))
    for _ in range(20):
        for one in logs.spools:
            await one.put(3)
    await eventually(lambda: shards.pending == 0)
    await shards.stop()
    assert sink.overlaps == 0
    assert len(sink.taken) == 120
    assert len({batch.id for batch in sink.attempts}) == len(sink.attempts)
    assert {batch.id[:9] for batch in sink.attempts} == {"shard-000", "shard-001"}
    assert (sink.opens, sink.closes) == (1, 1)


async def test_changed_sink_begins_on_no_shard_before_its_predecessor_has_ended_on_all(
    pool: SinkPool, logs: Any, new_sink: Any, new_config: Any, tmp_path: Path, eventually: Any
) -> None:
    before, after = new_sink(), new_sink()
    closed_when_opened: list[int] = []
    shards = Shards(pool, logs, logs.observer, tmp_path)
    await shards.replace(before, new_config(max_age_secs=0.001))
    for one in logs.spools:
        await one.put(3)
    await eventually(lambda: shards.pending == 0)
    after.answer = lambda batch: closed_when_opened.append(before.closes)
    for one in logs.spools:
        await one.put(3)
    await shards.replace(after, new_config(max_age_secs=0.002))
    for one in logs.spools:
        await one.put(3)
    await eventually(lambda: shards.pending == 0)
    await shards.stop()
    assert set(closed_when_opened) == {1}
    assert (before.opens, before.closes, after.opens, after.closes) == (1, 1, 1, 1)
    assert len(before.taken) + len(after.taken) == 18


async def test_everybody_waits_for_the_predecessor_until_it_is_closed(
    pool: SinkPool, new_sink: Any, new_config: Any
) -> None:
    before = pool.sink(new_sink(), new_config())
    seat, closing = before.seat(), asyncio.Event()

    async def close_slowly() -> None:
        await closing.wait()

    before.sink.close = close_slowly  # type: ignore[method-assign]
    after = pool.sink(new_sink(), new_config(max_events=7))
    waiting = [asyncio.create_task(after.ready()) for _ in range(3)]
    leaving = asyncio.create_task(seat.close())  # nobody uses it any more, and it is not closed
    late = asyncio.create_task(after.ready())
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in (*waiting, late))
    closing.set()
    await asyncio.gather(leaving, *waiting, late)
    await asyncio.wait_for(after.ready(), 1.0)


async def test_sink_that_cannot_be_started_is_told_and_is_started_later(
    pool: SinkPool,
    logs: Any,
    new_sink: Any,
    new_config: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    expect_log: list[str],
) -> None:
    expect_log += ["a sink could not be started"]
    path, log = next(iter(logs))
    workers = Workers(
        log, path, DeadLetters(tmp_path / "letters", 1 << 20, 1 << 26), logs.observer, SystemClock(), pool
    )
    sinks = [(new_sink(), new_config())]
    configs = [config for _, config in sinks]

    def fail(self: Any) -> None:
        raise SpoolFailedError("right now it cannot be read")

    with monkeypatch.context() as patched:
        patched.setattr(SinkWorker, "start", fail)
        assert not await workers.replace(workers.prepare(sinks), configs, 1.0)
    assert await workers.replace(workers.prepare(sinks), configs, 1.0)
    await workers.stop(1.0)


async def test_dead_letters_of_all_shards_are_in_one_store(
    pool: SinkPool, logs: Any, new_sink: Any, new_config: Any, tmp_path: Path, eventually: Any, expect_log: list[str]
) -> None:
    from edge.api import PermanentError

    expect_log += ["events became dead letters"]
    sink = new_sink()
    sink.answer = lambda batch: PermanentError("no")
    shards = Shards(pool, logs, logs.observer, tmp_path)
    await shards.replace(sink, new_config(max_age_secs=0.001))
    for one in logs.spools:
        await one.put(4)
    await eventually(lambda: shards.pending == 0)
    store = shards.all[0].get("crm").dead_letters
    assert store is shards.all[1].get("crm").dead_letters
    assert len(await asyncio.to_thread(lambda: list(store.entries()))) == 8
    assert [snapshot.dead_letters for workers in shards.all for snapshot in workers.snapshots()] == [8, 8]
    await shards.stop()
    assert store._log is None
