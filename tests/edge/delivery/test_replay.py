from __future__ import annotations

import asyncio
from typing import Any

import pytest

from edge.api import PermanentError
from edge.delivery import replay as replay_module
from edge.delivery.replay import ReplayReport, drop, replay
from edge.delivery.selection import Selection
from edge.spool.errors import SpoolFullError


@pytest.fixture(autouse=True)
def _dead_letters_are_meant(expect_log: list[str]) -> None:
    expect_log.append("dead letters")


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_module, "PAGE_LETTERS", 10)


async def bury(st: Any, spool: Any, eventually: Any, n_events: int) -> None:
    """Start the station's worker and have `n_events` refused for good."""
    st.sink.answer = lambda _: PermanentError("no")
    st.start()
    await spool.put(n_events)
    await eventually(lambda: st.settled)
    st.sink.answer = None


async def test_replay_delivers_dead_letters_again(spool: Any, station: Any, eventually: Any) -> None:
    st = station()
    await bury(st, spool, eventually, 30)
    report = await replay(st.store, spool.log, "crm")
    assert report == ReplayReport(30, 30)
    await eventually(lambda: st.settled)
    assert st.sink.numbers() == list(range(30))
    assert st.sink.attempts[-1].metadata[0].request_id == "req-1"
    assert st.store.count() == 0
    assert await replay(st.store, spool.log, "crm") == ReplayReport(0, 0)
    assert st.worker.snapshot().cursor.dead_lettered == 30
    assert st.worker.snapshot().cursor.delivered == 30
    st.assert_balanced()


async def test_replay_reaches_no_other_sink(spool: Any, station: Any, new_sink: Any, eventually: Any) -> None:
    other = station(new_sink("archive"))
    other.start()
    st = station()
    await bury(st, spool, eventually, 5)
    await replay(st.store, spool.log, "crm")
    await eventually(lambda: st.settled and other.settled)
    assert other.sink.numbers() == list(range(5))
    assert other.worker.snapshot().cursor.skipped == 5


async def test_replay_moves_what_is_selected(spool: Any, station: Any, eventually: Any) -> None:
    st = station()
    await bury(st, spool, eventually, 5)
    selection = Selection(event_id="evt_3")
    assert await replay(st.store, spool.log, "crm", selection, dry_run=True) == ReplayReport(1, 0)
    assert st.store.count() == 5
    assert await replay(st.store, spool.log, "crm", selection) == ReplayReport(1, 1)
    await eventually(lambda: st.settled)
    assert st.sink.numbers() == [3]
    assert [letter.event_id for letter in await st.letters()] == ["evt_0", "evt_1", "evt_2", "evt_4"]


@pytest.mark.usefixtures("small_pages")
async def test_replay_tells_its_progress(spool: Any, station: Any, eventually: Any) -> None:
    st = station()
    await bury(st, spool, eventually, 25)
    heard: list[ReplayReport] = []
    await replay(st.store, spool.log, "crm", progress=heard.append)
    assert [report.moved for report in heard] == [10, 20, 25]


@pytest.mark.usefixtures("small_pages")
async def test_replay_leaves_events_that_die_again_for_the_next_run(spool: Any, station: Any, eventually: Any) -> None:
    st = station()
    await bury(st, spool, eventually, 25)
    st.sink.answer = lambda _: PermanentError("still no")
    assert await replay(st.store, spool.log, "crm") == ReplayReport(25, 25)
    await eventually(lambda: st.settled)
    letters = await st.letters()
    assert len(letters) == 25
    assert {letter.last_error for letter in letters} == {"still no"}
    assert "replay_of" not in letters[0].original_meta
    assert "replay_of" not in letters[0].meta


@pytest.mark.usefixtures("small_pages")
async def test_replay_that_dies_between_append_and_mark_loses_nothing(
    spool: Any, station: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    st = station()
    await bury(st, spool, eventually, 25)
    real, calls = st.store.mark, 0

    async def dying(seqs: Any, action: Any) -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise asyncio.CancelledError
        return await real(seqs, action)

    monkeypatch.setattr(st.store, "mark", dying)
    with pytest.raises(asyncio.CancelledError):
        await replay(st.store, spool.log, "crm")
    await st.worker.stop(5)
    await spool.restart()
    st.start()
    assert await replay(st.store, spool.log, "crm") == ReplayReport(15, 15)
    assert await replay(st.store, spool.log, "crm") == ReplayReport(0, 0)
    await eventually(lambda: st.settled)
    numbers = st.sink.numbers()
    assert sorted(set(numbers)) == list(range(25))
    assert len(numbers) - 25 <= 10
    st.assert_balanced()


@pytest.mark.usefixtures("small_pages")
async def test_replay_into_a_full_spool_keeps_what_was_not_moved(spool: Any, station: Any, eventually: Any) -> None:
    st = station()
    await bury(st, spool, eventually, 25)
    real, left = spool.log.append, 15

    class Filling:
        def append(self, payload: bytes, n_events: int = 1, kind: int = 2) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise SpoolFullError("no room")
            return real(payload, n_events, kind)

    with pytest.raises(SpoolFullError):
        await replay(st.store, Filling(), "crm")
    await eventually(lambda: st.settled)
    assert st.store.count() == 15
    await replay(st.store, spool.log, "crm")
    await eventually(lambda: st.settled)
    assert sorted(set(st.sink.numbers())) == list(range(25))


async def test_drop_gives_dead_letters_up(spool: Any, station: Any, eventually: Any) -> None:
    st = station()
    await bury(st, spool, eventually, 6)
    assert await drop(st.store, Selection(event_id="evt_2"), dry_run=True) == ReplayReport(1, 0)
    assert await drop(st.store, Selection(event_id="evt_2")) == ReplayReport(1, 1)
    assert st.store.count() == 5
    assert await drop(st.store) == ReplayReport(5, 5)
    assert await st.letters() == []
    await eventually(lambda: st.settled)
    assert st.sink.taken == []
