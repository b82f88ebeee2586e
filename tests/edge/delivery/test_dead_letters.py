from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from edge.delivery.dead_letters import DeadLetterReason, DeadLetterStore, Letter, UnkeptError
from edge.delivery.selection import Selection
from edge.spool.errors import SpoolClosedError, SpoolFailedError, SpoolUnknownError
from edge.spool.files import Files
from edge.spool.log import Log

DIED = datetime(2025, 10, 9, 8, 0, tzinfo=UTC)


@pytest.fixture
def stores(io_loop: Any, tmp_path: Path) -> Iterator[Callable[..., DeadLetterStore]]:
    """Return a function that opens the store of a sink again, as a restart does; stores are closed after the test."""
    made: list[DeadLetterStore] = []

    def build(max_bytes: int = 1 << 26, segment_bytes: int = 1 << 20) -> DeadLetterStore:
        made.append(DeadLetterStore(tmp_path / "dead", "crm", segment_bytes=segment_bytes, max_bytes=max_bytes))
        return made[-1]

    yield build

    async def close() -> None:
        for store in made:
            await store.close()

    io_loop.run_sync(close)


def letter(n: int, reason: str = "permanent", died_at: datetime = DIED, pad: int = 0) -> Letter:
    return Letter(
        line=b'{"event_id":"evt_%d","pad":"%s"}' % (n, b"x" * pad),
        meta={"key": "web", "received_at": "2025-10-09T07:00:00+00:00", "request_id": f"req-{n}"},
        reason=DeadLetterReason(reason),
        attempts=n,
        first_error="busy",
        last_error=f"refused {n}",
        died_at=died_at,
    )


def ids(store: DeadLetterStore, selection: Selection | None = None) -> list[str]:
    return [entry.event_id for entry in store.entries(selection or Selection())]


async def test_store_costs_nothing_until_the_first_letter(stores: Any) -> None:
    store = stores()
    await store.start()
    assert store.count() == 0
    assert ids(store) == []
    assert not store.path.parent.exists()


async def test_store_gives_back_what_it_keeps(stores: Any) -> None:
    store = stores()
    await store.add([letter(1), letter(2, "gave_up")])
    first, second = store.entries()
    assert (first.sink, first.reason, first.attempts) == ("crm", "permanent", 1)
    assert (second.reason, second.first_error, second.last_error) == ("gave_up", "busy", "refused 2")
    assert first.line == letter(1).line
    assert first.died_at == DIED
    assert first.metadata.request_id == "req-1"
    assert second.id > first.id
    assert first.original_meta == letter(1).meta
    assert store.count() == 2


async def test_store_remembers_letters_and_marks_over_a_restart(stores: Any) -> None:
    store = stores()
    await store.add([letter(n) for n in range(10)])
    entries = list(store.entries())
    assert await store.mark([entries[3].id, entries[4].id, 10**9], "dropped") == 2
    assert await store.mark([entries[3].id], "dropped") == 0
    expected = [f"evt_{n}" for n in range(10) if n not in (3, 4)]
    assert ids(store) == expected
    assert store.count() == 8
    await store.close()
    again = stores()
    await again.start()
    assert again.count() == 8
    assert ids(again) == expected
    await again.add([letter(10)])
    assert again.count() == 9
    assert ids(again) == [*expected, "evt_10"]


async def test_store_does_not_open_again_once_closed(stores: Any) -> None:
    store = stores()
    await store.add([letter(1)])
    await store.close()
    with pytest.raises(SpoolClosedError):
        await store.add([letter(2)])
    assert ids(store) == ["evt_1"]


async def test_store_lists_beside_the_process_that_owns_it(stores: Any) -> None:
    owner = stores()
    await owner.add([letter(1)])
    assert ids(stores()) == ["evt_1"]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(), [0, 1, 2, 3]),
        (Selection(reason="gave_up"), [2, 3]),
        (Selection(event_id="evt_1"), [1]),
        (Selection(since=DIED + timedelta(hours=1)), [1, 2, 3]),
        (Selection(until=DIED + timedelta(hours=1)), [0]),
        (Selection(since=DIED + timedelta(hours=1), until=DIED + timedelta(hours=3)), [1, 2]),
        (Selection(reason="gave_up", since=DIED + timedelta(hours=3)), [3]),
        (Selection(sink="archive"), []),
        (Selection(sink="crm", reason="permanent"), [0, 1]),
    ],
)
async def test_store_lists_by_selection(stores: Any, selection: Selection, expected: list[int]) -> None:
    store = stores()
    await store.add([letter(n, "permanent" if n < 2 else "gave_up", DIED + timedelta(hours=n)) for n in range(4)])
    assert ids(store, selection) == [f"evt_{n}" for n in expected]


async def test_store_lists_by_id(stores: Any) -> None:
    store = stores()
    await store.add([letter(n) for n in range(5)])
    wanted = [entry.id for entry in store.entries()][1::2]
    assert [entry.id for entry in store.entries(Selection(seqs=frozenset(wanted)))] == wanted


async def test_store_deletes_segments_whose_letters_are_all_gone(stores: Any) -> None:
    store = stores(segment_bytes=16_384, max_bytes=1 << 20)
    for n in range(40):
        await store.add([letter(n, pad=2000)])
    before = len(list(store.path.glob("seg-*.log")))
    assert before > 4
    await store.mark([entry.id for entry in store.entries()][:-1], "dropped")
    assert len(list(store.path.glob("seg-*.log"))) <= 2
    assert ids(store) == ["evt_39"]


async def test_store_drops_the_oldest_letters_when_it_is_full(stores: Any, expect_log: list[str]) -> None:
    expect_log.append("dead letters are full")
    store = stores(segment_bytes=1 << 20, max_bytes=200_000)
    for n in range(300):
        await store.add([letter(n, pad=2000)])
    kept = ids(store)
    assert 20 < len(kept) < 100
    assert kept == [f"evt_{n}" for n in range(300 - len(kept), 300)]
    assert store.evicted == 300 - len(kept)
    assert store.count() == len(kept)
    assert sum(path.stat().st_size for path in store.path.glob("seg-*.log")) <= 300_000


async def test_store_names_the_letters_that_were_not_kept(stores: Any, monkeypatch: Any) -> None:
    store = stores()
    await store.add([letter(0)])
    real, calls = store._log.append, 0

    def append(payload: bytes, n_events: int, kind: int) -> Any:
        nonlocal calls
        calls += 1
        if calls not in (2, 4):
            return real(payload, n_events, kind)
        future = asyncio.get_running_loop().create_future()
        future.set_exception(SpoolFailedError("the events could not be written"))
        return future

    monkeypatch.setattr(store._log, "append", append)
    letters = [letter(n) for n in range(1, 6)]
    with pytest.raises(UnkeptError, match="could not be written") as raised:
        await store.add(letters)
    assert raised.value.letters == [letters[1], letters[3]]
    await store.add(raised.value.letters)
    assert sorted(ids(store)) == [f"evt_{n}" for n in range(6)]
    assert store.count() == 6


@pytest.fixture
def sleeping_disk(monkeypatch: Any) -> Iterator[Any]:
    """Return two functions: the first sends the disk to sleep, the second wakes it."""
    awake, real = threading.Event(), Files.fdatasync
    awake.set()

    def fdatasync(self: Files, fd: int) -> None:
        awake.wait(20)
        real(self, fd)

    monkeypatch.setattr(Files, "fdatasync", fdatasync)
    yield awake.clear, awake.set
    awake.set()


async def add_unknown(store: DeadLetterStore, letters: list[Letter], eventually: Any) -> UnkeptError:
    """Add letters while the disk sleeps; return what the store says once it has lost patience."""
    adding = asyncio.ensure_future(store.add(letters))

    def impatient() -> bool:
        store._log._queue.expire(0.01)
        return adding.done()

    await eventually(impatient)
    error = adding.exception()
    assert isinstance(error, UnkeptError)
    assert isinstance(error.cause, SpoolUnknownError)
    return error


async def test_store_keeps_a_letter_once_that_was_stored_late(stores: Any, sleeping_disk: Any, eventually: Any) -> None:
    sleep, wake = sleeping_disk
    store = stores()
    await store.add([letter(0)])
    sleep()
    twins = [letter(1), letter(1), letter(2)]
    error = await add_unknown(store, twins, eventually)
    assert error.letters == twins
    wake()
    await store.add([*error.letters, letter(3)])
    assert ids(store) == ["evt_0", "evt_1", "evt_1", "evt_2", "evt_3"]
    assert store.count() == 5
    await store.close()
    again = stores()
    await again.start()
    assert again.count() == 5


async def test_store_shows_a_letter_that_was_stored_late_and_takes_it_away(
    stores: Any, sleeping_disk: Any, eventually: Any
) -> None:
    sleep, wake = sleeping_disk
    store = stores()
    await store.add([letter(0)])
    sleep()
    await add_unknown(store, [letter(1)], eventually)
    wake()
    # Whatever is done next, the letter is there without a restart.
    assert await store.mark([store._live.lowest], "dropped") == 1
    assert ids(store) == ["evt_1"]
    assert await store.mark([entry.id for entry in store.entries()], "replayed") == 1
    assert (ids(store), store.count()) == ([], 0)


async def test_store_ignores_frames_that_are_no_letters(stores: Any, io_loop: Any, tmp_path: Path) -> None:
    store = stores()
    await store.add([letter(1)])
    await store.close()
    log = Log.open(store.path, shard="crm", segment_bytes=1 << 20, max_bytes=1 << 26, durability="disk", observer=None)
    log.start(io_loop.asyncio_loop)
    await log.append(b"\xff not ours")
    await log.append(b'{"seqs": 7}', 1, 3)
    await log.append(b"neither", 1, 3)
    await log.close()
    again = stores()
    await again.add([letter(2)])
    assert ids(again) == ["evt_1", "evt_2"]


async def test_store_takes_more_than_the_writers_queue_holds(stores: Any) -> None:
    store = stores(max_bytes=1 << 28)
    big = [letter(n, pad=60_000) for n in range(700)]
    await store.add(big)
    assert store.count() == 700
    assert len(await asyncio.to_thread(lambda: ids(store))) == 700
