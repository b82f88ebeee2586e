"""What is known after a start, out of real segments."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from edge.api import Context
from edge.dedup import LATE_SECS, Dedup
from edge.event import frame_meta, pack
from edge.spool import REPLAY, Log, SpoolFailedError

START = datetime(2026, 5, 1, tzinfo=UTC)
WINDOW_SECS = 100.0


class HandClock:
    """A clock that the test sets; `wall` counts from START."""

    def __init__(self, wall: float = 0.0) -> None:
        self.now = 5000.0
        self.wall = START.timestamp() + wall

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.wall

    async def sleep(self, secs: float) -> None:
        raise AssertionError("nothing here waits by the clock")


class Spool:
    """A log that the test fills with frames of events."""

    def __init__(self, loop: Any, path: Path) -> None:
        self._loop = loop
        self.log = Log.open(path, segment_bytes=4096)
        self.log.start(loop.asyncio_loop)

    async def store(self, ids: list[str], at: float = 0.0, key_id: str = "a", **options: Any) -> None:
        context = Context(START + timedelta(seconds=at), "", key_id, {}, "r", "")
        lines = [orjson.dumps({"event_id": event_id, "pad": "x" * 100}) for event_id in ids]
        await self.log.append(pack(frame_meta(context), lines), len(ids), **options)


@pytest.fixture
def spool(io_loop: Any, tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(io_loop, tmp_path / "shard-000")
    yield spool
    io_loop.run_sync(spool.log.close)


async def load(spool: Spool, clock: HandClock | None = None, window_events: int = 1000) -> Dedup:
    dedup = Dedup(WINDOW_SECS, window_events, clock or HandClock())
    await dedup.load(spool.log)
    assert dedup.is_ready
    return dedup


def known(dedup: Dedup, ids: list[str], key_id: str = "a") -> list[str]:
    claim = dedup.claim(key_id)
    return [event_id for event_id in ids if claim.first_of(claim.key(event_id)) is not None]


async def test_empty_spool_knows_nothing_and_is_ready(spool: Spool) -> None:
    assert len(await load(spool)) == 0


async def test_ids_of_all_segments_are_known_under_their_key(spool: Spool) -> None:
    ids = [f"evt_{number}" for number in range(200)]
    for start in range(0, 200, 4):
        await spool.store(ids[start : start + 4], key_id="b" if start % 8 else "a")
    assert len(spool.log.starts()) > 5
    dedup = await load(spool)
    assert len(dedup) == 200
    assert known(dedup, ids, "a") == [event_id for index, event_id in enumerate(ids) if index // 4 % 2 == 0]
    assert known(dedup, ids, "b") == [event_id for index, event_id in enumerate(ids) if index // 4 % 2 == 1]
    assert known(dedup, ids, "c") == []


async def test_newest_ids_are_known_when_there_are_more_than_the_window_holds(spool: Spool) -> None:
    ids = [f"evt_{number}" for number in range(300)]
    for start in range(0, 300, 3):
        await spool.store(ids[start : start + 3])
        # Events that are delivered again have numbers too; they must not take the place of what senders sent.
        await spool.store(["replayed"] * 5, kind=REPLAY)
    dedup = await load(spool, window_events=100)
    assert known(dedup, ids) == ids[-100:]
    assert known(dedup, ["replayed"]) == []


async def test_age_goes_on_where_it_was(spool: Spool) -> None:
    for at in range(0, 200, 10):
        await spool.store([f"evt_{at}"], at)
    clock = HandClock(wall=195.0)
    dedup = await load(spool, clock)
    ids = [f"evt_{at}" for at in range(0, 200, 10)]
    assert known(dedup, ids) == ids[10:]
    clock.now += 44.0
    assert known(dedup, ids) == ids[14:]
    clock.now += WINDOW_SECS
    assert known(dedup, ids) == []


async def test_slow_request_does_not_hide_those_that_were_stored_before_it(spool: Spool) -> None:
    clock = HandClock(wall=WINDOW_SECS + 50)
    ids = [f"evt_{number}" for number in range(100)]
    for event_id in ids:
        await spool.store([event_id], at=60)
    n_segments = len(spool.log.starts())
    for number in range(60):  # the last segments hold nothing but these
        await spool.store([f"slow_{number}"], at=60 - WINDOW_SECS / 2 - LATE_SECS / 2)
    assert len(spool.log.starts()) > n_segments + 1
    assert known(await load(spool, clock), ids) == ids


async def test_segments_older_than_the_window_are_not_all_read(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(400):
        await spool.store([f"evt_{number}"], at=0)
    read = []
    real = spool.log.read
    monkeypatch.setattr(
        spool.log,
        "read",
        lambda position, size, **options: read.append(position) or real(position, size, **options),
    )
    await load(spool, HandClock(wall=WINDOW_SECS + LATE_SECS + 1))
    assert len(read) < 4 < len(spool.log.starts())


@pytest.mark.parametrize("jump_secs", [-86_400.0, -3600.0, -1.0])
async def test_clock_that_was_put_back_gives_the_whole_window_once_more_and_no_longer(
    spool: Spool, jump_secs: float
) -> None:
    await spool.store(["evt_1"])
    clock = HandClock(wall=jump_secs)
    dedup = await load(spool, clock)
    clock.now += WINDOW_SECS - 0.5
    assert known(dedup, ["evt_1"]) == ["evt_1"]
    clock.now += 0.5
    assert known(dedup, ["evt_1"]) == []


async def test_clock_that_was_put_forward_forgets_what_is_from_before_the_start_only(spool: Spool) -> None:
    await spool.store(["evt_1"])
    clock = HandClock()
    dedup = await load(spool, clock)
    clock.wall += 86_400
    assert known(dedup, ["evt_1"]) == ["evt_1"]
    assert known(await load(spool, clock), ["evt_1"]) == []


async def test_frames_that_something_else_wrote_are_passed_over(spool: Spool) -> None:
    good = pack({"key": "a", "received_at": START.isoformat(), "request_id": "r"}, [b'{"event_id":"evt_1"}'])
    for payload in (
        b"",
        b"\xff\xfe",
        b"[]\n{}",
        b'{"key":"a"}\n{"event_id":"no time"}',
        b'{"key":7,"received_at":"2026-05-01T00:00:00+00:00"}\n{"event_id":"odd key"}',
        b'{"key":"a","received_at":7}\n{"event_id":"odd time"}',
        b'{"key":"a","received_at":"2026-05-01T00:00:00+00:00","event_ids":{"7":"x"}}\n{"event_id":"odd index"}',
        b'{"key":"a","received_at":"2026-05-01T00:00:00+00:00","event_ids":[]}\n{"event_id":"odd ids"}',
        b'{"key":"a","received_at":"2026-05-01T00:00:00+00:00"}\nno JSON',
        b'{"key":"a","received_at":"2026-05-01T00:00:00+00:00"}\n{"event_id":7}\n[]\n{}',
        good,
    ):
        await spool.log.append(payload)
    assert known(await load(spool), ["evt_1", "no time", "odd time", "odd index", "odd ids"]) == ["evt_1"]


async def test_segment_that_cannot_be_read_costs_what_it_holds_and_nothing_else(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, expect_log: list[str]
) -> None:
    expect_log.append("the ids of stored events could not be read back; repeats of them are stored again")
    ids = [f"evt_{number}" for number in range(100)]
    for event_id in ids:
        await spool.store([event_id])
    real = spool.log.read
    bad, after = spool.log.starts()[2:4]

    def read(position: int, size: int, **options: Any) -> Any:
        if position == bad:
            raise SpoolFailedError("the disk says no")
        return real(position, size, **options)

    monkeypatch.setattr(spool.log, "read", read)
    dedup = await load(spool)
    assert known(dedup, ids) == ids[:bad] + ids[after:]


async def test_reading_back_ends_when_the_gateway_stops(spool: Spool) -> None:
    await spool.store(["evt_1"])
    dedup = Dedup(WINDOW_SECS, 1000, HandClock())
    dedup.stop()
    await asyncio.wait_for(dedup.load(spool.log), 5)
    assert len(dedup) == 0
