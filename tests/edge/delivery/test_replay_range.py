from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from edge.api import PermanentError
from edge.delivery import replay as replay_module
from edge.delivery.replay_range import Range, RangeInterruptedError, RangeReport, oldest_received_at, replay_page
from edge.spool.errors import SpoolBackpressureError, SpoolFullError
from edge.spool.format import REPLAY

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


async def put_hours(spool: Any, hours: int, n_events: int = 1) -> None:
    """Append a frame of events for each hour from noon on."""
    for hour in range(hours):
        await spool.put(n_events, received_at=(NOON + timedelta(hours=hour)).isoformat())


def between(first: int, last: int, end: int) -> Range:
    return Range(NOON + timedelta(hours=first), NOON + timedelta(hours=last), end)


async def replay_all(log: Any, wanted: Range, **options: Any) -> RangeReport:
    """Replay a range page by page; return what all pages did together."""
    total = RangeReport(0)
    while total.position < wanted.end:
        report = await replay_page(log, "crm", wanted, total.position, **options)
        assert report.position > total.position
        total.matched += report.matched
        total.moved += report.moved
        total.lost += report.lost
        total.unreadable += report.unreadable
        total.position = report.position
    return total


async def test_range_is_delivered_again_to_its_sink_alone_and_the_books_balance(
    spool: Any, station: Any, new_sink: Any, eventually: Any
) -> None:
    crm, archive = station(), station(new_sink("archive"))
    crm.start()
    archive.start()
    await put_hours(spool, 6, n_events=3)
    await eventually(lambda: crm.settled and archive.settled)
    assert await replay_all(spool.log, between(2, 4, 18)) == RangeReport(18, matched=6, moved=6)
    await eventually(lambda: crm.settled and archive.settled)
    assert crm.sink.numbers() == [*range(18), *range(6, 12)]
    assert archive.sink.numbers() == list(range(18))
    assert crm.worker.snapshot().cursor.delivered == 24
    assert archive.worker.snapshot().cursor.skipped == 6
    assert spool.log.stats().appended_events == 18  # replayed events are not counted as accepted
    crm.assert_balanced()
    archive.assert_balanced()


async def test_when_is_asked_again(spool: Any, station: Any, new_sink: Any, eventually: Any) -> None:
    st = station(new_sink(when=lambda event: event["n"] % 2 == 0))
    st.start()
    await put_hours(spool, 4)
    await eventually(lambda: st.settled)
    assert (await replay_all(spool.log, between(0, 4, 4))).moved == 4
    await eventually(lambda: st.settled)
    assert st.sink.numbers() == [0, 2, 0, 2]
    st.assert_balanced()


async def test_replayed_frames_are_never_replayed_and_the_tail_is_not_chased(spool: Any) -> None:
    await put_hours(spool, 3)
    for expected_end in (6, 9):
        assert (await replay_all(spool.log, between(0, 3, spool.log.durable_seq))).moved == 3
        assert spool.log.durable_seq == expected_end


async def test_range_ends_in_the_middle_of_a_frame(spool: Any) -> None:
    await spool.put(10, received_at=NOON.isoformat())
    assert (await replay_all(spool.log, between(0, 1, 4))).moved == 4
    report = await replay_page(spool.log, "crm", between(0, 1, 8), 6)
    assert (report.moved, report.position) == (2, 8)
    frames = [frame for frame in spool.log.read(0, 1 << 20).frames if frame.kind == REPLAY]
    assert [frame.n_events for frame in frames] == [4, 2]
    assert b'"replay_of":6' in frames[1].payload
    assert frames[1].payload.count(b"evt_") == 2
    assert b"evt_6" in frames[1].payload


async def test_pages_are_short_and_go_on_where_the_last_one_ended(spool: Any) -> None:
    for _ in range(20):
        await spool.put(2, size=1000, received_at=NOON.isoformat())
    wanted = between(0, 1, 40)
    report = await replay_page(spool.log, "crm", wanted, 0, max_bytes=4000)
    assert report == RangeReport(4, matched=4, moved=4)
    assert (await replay_all(spool.log, wanted, max_bytes=4000)).moved == 40


async def test_frames_that_are_not_meant_are_passed_in_large_steps(spool: Any) -> None:
    for _ in range(50):
        await spool.put(2, size=1000, received_at=NOON.isoformat())
    report = await replay_page(spool.log, "crm", between(1, 2, 100), 0, max_bytes=4000)
    assert report == RangeReport(32)
    assert spool.log.durable_seq == 100


async def test_spool_that_refuses_says_how_far_it_came(spool: Any) -> None:
    await put_hours(spool, 10)
    real, left = spool.log.append, 4

    class Filling:
        first_seq = 0
        read = spool.log.read

        def append(self, payload: bytes, n_events: int = 1, kind: int = REPLAY) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise SpoolFullError("no room")
            return real(payload, n_events, kind)

    with pytest.raises(RangeInterruptedError, match="no room") as caught:
        await replay_page(Filling(), "crm", between(0, 10, 10), 0)
    assert isinstance(caught.value.cause, SpoolFullError)
    assert (caught.value.report.position, caught.value.report.moved) == (4, 4)
    report = await replay_page(spool.log, "crm", between(0, 10, 10), caught.value.report.position)
    assert report == RangeReport(10, matched=6, moved=6)
    numbers = [frame.payload.rpartition(b'"n":')[2][:1] for frame in spool.log.read(10, 1 << 20).frames]
    assert numbers == [b"%d" % number for number in range(10)]


async def test_frame_that_a_commit_lost_is_where_to_go_on(spool: Any, io_loop: Any) -> None:
    await put_hours(spool, 5)
    real = spool.log.append

    class Failing:
        first_seq = 0
        read = spool.log.read

        def append(self, payload: bytes, n_events: int = 1, kind: int = REPLAY) -> Any:
            if b'"n":2' in payload:
                future = io_loop.asyncio_loop.create_future()
                future.set_exception(SpoolFullError("no room"))
                return future
            return real(payload, n_events, kind)

    with pytest.raises(RangeInterruptedError) as caught:
        await replay_page(Failing(), "crm", between(0, 5, 5), 0)
    assert caught.value.report.position == 2


async def test_writer_that_is_busy_is_waited_for(spool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_module, "BUSY_SECS", 0.001)
    await put_hours(spool, 3)
    real, refusals = spool.log.append, [None] * 5

    class Busy:
        first_seq = 0
        read = spool.log.read

        def append(self, payload: bytes, n_events: int = 1, kind: int = REPLAY) -> Any:
            if refusals:
                refusals.pop()
                raise SpoolBackpressureError("too much waits")
            return real(payload, n_events, kind)

    assert (await replay_page(Busy(), "crm", between(0, 3, 3), 0)).moved == 3


async def test_frames_that_hold_no_events_are_counted_and_passed(spool: Any) -> None:
    await spool.put(1, received_at=NOON.isoformat())
    await spool.log.append(b"not ours", 5)
    await spool.put(1, received_at=NOON.isoformat())
    assert await replay_all(spool.log, between(0, 1, 7)) == RangeReport(7, matched=2, moved=2, unreadable=5)


async def test_event_that_dies_again_is_a_dead_letter_like_any_other(
    spool: Any, station: Any, eventually: Any, expect_log: list[str]
) -> None:
    expect_log.append("dead letters")
    st = station()
    st.start()
    await put_hours(spool, 2)
    await eventually(lambda: st.settled)
    st.sink.answer = lambda _: PermanentError("no")
    await replay_all(spool.log, between(0, 1, 2))
    await eventually(lambda: st.settled)
    [letter] = await st.letters()
    assert letter.event_id == "evt_0"
    assert set(letter.original_meta) == {"key", "received_at", "request_id"}
    st.assert_balanced()


async def test_oldest_is_that_of_the_first_events(spool: Any) -> None:
    assert await oldest_received_at(spool.log, 0) is None
    await spool.put(1, kind=REPLAY, sink="crm", received_at=(NOON - timedelta(days=9)).isoformat())
    await put_hours(spool, 3)
    assert await oldest_received_at(spool.log, 4) == NOON
    assert await oldest_received_at(spool.log, 1) is None
