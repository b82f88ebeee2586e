from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.api import PermanentError, RetryableError
from edge.delivery import poison
from edge.delivery.poison import NOTHING, RECORD_BYTES, FlightRecorder, Record, RecordFile
from edge.spool.files import Files

SUSPECT = Record(range(100, 200), 2)


@pytest.fixture
def file(tmp_path: Path) -> RecordFile:
    return RecordFile(tmp_path, "crm")


def test_record_comes_back_as_it_was_saved(tmp_path: Path, file: RecordFile) -> None:
    assert file.load() == Record()
    for record in (Record(in_flight=range(7, 507)), Record(range(1, 9), 2, range(3, 4)), Record()):
        file.save(record)
        assert RecordFile(tmp_path, "crm").load() == record
    file.close()
    assert (tmp_path / "inflight-crm").stat().st_size == RECORD_BYTES
    assert (tmp_path / "inflight-crm").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("torn", range(RECORD_BYTES))
def test_torn_record_is_none(tmp_path: Path, file: RecordFile, torn: int) -> None:
    file.save(Record(range(300, 400), 1, range(300, 310)))
    new = (tmp_path / "inflight-crm").read_bytes()
    file.save(Record(range(1, 2), 2, range(1, 2)))
    old = (tmp_path / "inflight-crm").read_bytes()
    mixed = new[:torn] + old[torn:]
    (tmp_path / "inflight-crm").write_bytes(mixed)
    assert file.load() == (_whole(mixed, file, old, new))
    file.close()


def _whole(mixed: bytes, file: RecordFile, old: bytes, new: bytes) -> Record:
    """Return the record that bytes are one whole of; an empty one for a mixture."""
    if mixed == old:
        return Record(range(1, 2), 2, range(1, 2))
    return Record(range(300, 400), 1, range(300, 310)) if mixed == new else Record()


@pytest.mark.parametrize("junk", [b"", b"x", b"x" * RECORD_BYTES, os.urandom(5000), bytes(RECORD_BYTES - 1)])
def test_garbage_is_no_record_and_is_written_over(tmp_path: Path, junk: bytes) -> None:
    (tmp_path / "inflight-crm").write_bytes(junk)
    file = RecordFile(tmp_path, "crm")
    assert file.load() == Record()
    file.save(SUSPECT)
    assert file.load() == SUSPECT
    file.close()


def _link(path: Path) -> None:
    target = path.parent / "elsewhere"
    target.write_bytes(b"theirs")
    path.symlink_to(target)


@pytest.mark.parametrize(
    "put", [_link, os.mkfifo, Path.mkdir, lambda path: path.symlink_to("nowhere")], ids=["link", "fifo", "dir", "loose"]
)
async def test_what_is_not_a_file_is_neither_followed_nor_removed_and_delivery_goes_on(
    put: Callable[[Path], None], spool: Any, station: Any, eventually: Any, expect_log: list[str]
) -> None:
    expect_log.append("in flight cannot be noted")
    path = spool.path / "inflight-crm"
    put(path)
    before = path.lstat().st_ino
    st = station(max_events=2)
    st.start()
    await spool.put(6)
    await eventually(lambda: st.settled)
    await st.worker.stop(1)
    assert st.sink.numbers() == list(range(6))
    assert path.lstat().st_ino == before
    assert not (spool.path / "nowhere").exists()
    elsewhere = spool.path / "elsewhere"
    assert not elsewhere.exists() or elsewhere.read_bytes() == b"theirs"


def test_full_disk_does_not_keep_a_file_that_was_made_from_being_written(tmp_path: Path) -> None:
    RecordFile(tmp_path, "crm")
    blocks = (tmp_path / "inflight-crm").stat().st_blocks

    class Full(Files):
        full = True

        def open(self, name: str, flags: int, mode: int = 0o600, *, dir_fd: int) -> int:
            if self.full and flags & os.O_CREAT:
                raise OSError(errno.ENOSPC, "no space left on device")
            return super().open(name, flags, mode, dir_fd=dir_fd)

    files = Full()
    made = RecordFile(tmp_path, "crm", files=files)
    made.save(SUSPECT)
    assert made.load() == SUSPECT
    assert (tmp_path / "inflight-crm").stat().st_size == RECORD_BYTES
    assert (tmp_path / "inflight-crm").stat().st_blocks <= max(blocks, 8)
    made.close()
    missing = RecordFile(tmp_path, "other", files=files)
    with pytest.raises(OSError, match="no space"):
        missing.save(SUSPECT)
    files.full = False
    missing.save(SUSPECT)
    assert missing.load() == SUSPECT
    missing.close()


@pytest.mark.parametrize(
    ("found", "read"),
    [
        (Record(in_flight=range(5, 9)), Record(range(5, 9), 1)),
        (Record(range(5, 9), 1, range(5, 9)), Record(range(5, 9), 2)),
        (Record(range(5, 9), 2, range(7, 8)), Record(range(7, 8), 3)),
        (Record(range(5, 9), 2), Record(range(5, 9), 2)),
        (Record(range(5, 9), 2, range(1, 4)), Record(range(1, 4), 1)),
        (Record(range(5, 9), 2, range(4, 6)), Record(range(4, 6), 1)),
        (Record(), Record()),
    ],
)
def test_what_was_in_flight_at_the_death_is_suspect(found: Record, read: Record) -> None:
    assert found.after_death() == read


@pytest.mark.parametrize(
    ("position", "end", "left"),
    [
        (0, 500, range(100, 200)),
        (150, 500, range(150, 200)),
        (0, 120, range(100, 120)),
        (200, 500, None),
        (0, 99, None),
    ],
)
async def test_suspects_are_those_the_cursor_is_not_past_and_the_spool_holds(
    file: RecordFile, position: int, end: int, left: range | None
) -> None:
    file.save(SUSPECT)
    file.close()
    recorder = FlightRecorder("crm", file)
    recorder.load(position, end)
    assert recorder.deaths == (2 if left else 0)
    seqs = list(range(300))
    alone = {seqs[part[0]] for part in recorder.parts(seqs) if len(part) == 1}
    assert alone == set(left or ())


def test_parts_are_whole_after_one_death_and_single_after_two(file: RecordFile) -> None:
    recorder = FlightRecorder("crm", file)
    seqs = [1, 3, 10, 11, 15, 19, 20, 30]
    assert recorder.parts(seqs) == [range(8)]
    for deaths, parts in ((1, [range(2), range(2, 6), range(6, 8)]), (2, [range(2), *singles(2, 6), range(6, 8)])):
        file.save(Record(range(10, 20), deaths))
        recorder.load(0, 1000)
        assert recorder.parts(seqs) == parts
    assert recorder.parts([10, 12]) == singles(0, 2)
    assert recorder.parts([30]) == [range(1)]
    file.save(Record(range(5000), 2))
    file.close()
    recorder.load(0, 10_000)
    sizes = [len(part) for part in recorder.parts(list(range(6000)))]
    assert sizes == [*[10] * 500, 1000]


def singles(first: int, last: int) -> list[range]:
    return [range(index, index + 1) for index in range(first, last)]


async def test_attempts_of_an_unsuspected_sink_share_a_note(file: RecordFile, monkeypatch: Any) -> None:
    saved: list[Record] = []
    monkeypatch.setattr(file, "save", saved.append)
    recorder = FlightRecorder("crm", file)
    for start in range(0, 4000, 100):
        await recorder.begin(range(start, start + 100))
        recorder.end(survived=True)
    await recorder.begin(range(4000, 9000))
    recorder.end(survived=False)
    assert [record.in_flight for record in saved] == [range(2000), range(2000, 4000), range(4000, 9000)]
    await recorder.close()
    assert saved[-1] == Record()


async def test_note_goes_when_nothing_is_attempted_any_more(
    file: RecordFile, monkeypatch: Any, eventually: Any
) -> None:
    monkeypatch.setattr(poison, "IDLE_SECS", 0.01)
    recorder = FlightRecorder("crm", file)
    await recorder.begin(range(10))
    assert file.load().in_flight == range(2000)
    recorder.end(survived=True)
    await eventually(lambda: file.load() == Record())
    await recorder.close()


async def test_attempt_that_ended_clears_what_it_held_and_nothing_else(file: RecordFile, eventually: Any) -> None:
    file.save(SUSPECT)
    recorder = FlightRecorder("crm", file)
    recorder.load(0, 1000)
    await recorder.begin(range(50, 100))
    assert file.load() == Record(range(100, 200), 2, range(50, 100))
    recorder.end(survived=True)
    await eventually(lambda: file.load() == SUSPECT)
    await recorder.begin(range(100, 101))
    recorder.end(survived=False)
    await eventually(lambda: file.load() == SUSPECT)
    await recorder.begin(range(100, 101))
    recorder.end(survived=True)
    await eventually(lambda: file.load() == Record(range(101, 200), 2))
    await recorder.begin(range(200, 300))
    recorder.end(survived=True)
    await recorder.close()
    assert file.load() == Record()


async def test_stop_leaves_the_suspects_and_nothing_in_flight(file: RecordFile) -> None:
    file.save(SUSPECT)
    recorder = FlightRecorder("crm", file)
    recorder.load(0, 1000)
    await recorder.begin(range(100, 101))
    await recorder.close()
    recorder.end(survived=False)
    assert file.load() == SUSPECT
    assert SUSPECT.in_flight == NOTHING


async def test_suspects_of_two_sinks_are_in_flight_one_at_a_time(tmp_path: Path, monkeypatch: Any) -> None:
    turn = asyncio.Lock()
    recorders = []
    for name in ("crm", "archive"):
        file = RecordFile(tmp_path, name)
        file.save(SUSPECT)
        recorders.append(FlightRecorder(name, file, turn))
        recorders[-1].load(0, 1000)
    first, second = recorders
    await first.begin(range(100, 101))
    waiting = asyncio.create_task(second.begin(range(100, 101)))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    assert RecordFile(tmp_path, "archive").load() == SUSPECT
    first.end(survived=True)
    await waiting
    assert RecordFile(tmp_path, "crm").load().in_flight == NOTHING
    # What is not suspect waits for nobody.
    await first.begin(range(50, 60))
    first.end(survived=True)
    # Nor does anybody wait for ever: a call may never end.
    monkeypatch.setattr(poison, "TURN_SECS", 0.01)
    await first.begin(range(101, 102))
    second.end(survived=True)
    first.end(survived=True)
    await first.close()
    await second.close()
    assert not turn.locked()


async def test_two_recorders_may_follow_each_other_at_a_reload(file: RecordFile, tmp_path: Path) -> None:
    before, after = FlightRecorder("crm", file), FlightRecorder("crm", RecordFile(tmp_path, "crm"))
    await before.begin(range(10))
    await before.close()
    after.load(0, 1000)
    assert after.deaths == 0
    await after.begin(range(10))
    assert file.load().in_flight
    await after.close()
    assert file.load() == Record()


class Minefield:
    """Delivers into the void until a mine is met; then the process is dead as far as the test goes."""

    def __init__(self, *mines: int) -> None:
        self.mines = set(mines)
        self.hit = asyncio.Event()
        self.release = asyncio.Event()

    async def __call__(self, batch: Any) -> None:
        if not self.mines.isdisjoint(event["n"] for event in batch.events):
            self.hit.set()
            await self.release.wait()


async def die(st: Any, mines: Minefield) -> None:
    """Wait until a mine is met; then leave on disk what the death of the process would leave, and start anew."""
    await asyncio.wait_for(mines.hit.wait(), 10)
    files = {path: path.read_bytes() for path in st.spool.path.iterdir() if path.name.startswith(("infl", "curs"))}
    await st.worker.stop(0)
    for path, data in files.items():
        path.write_bytes(data)
    mines.hit.clear()
    st.start()


def sizes(st: Any) -> list[int]:
    return [len(batch) for batch in st.sink.attempts]


async def test_killer_becomes_a_dead_letter_after_three_deaths_and_the_others_are_delivered(
    spool: Any, station: Any, eventually: Any, expect_log: list[str]
) -> None:
    expect_log += ["dead letters", "died while a sink", "each of the last deaths"]
    st = station(max_events=50)
    mines = Minefield(70)
    st.sink.answer = mines
    st.start()
    await spool.put(130)
    for _ in range(3):
        await die(st, mines)
    await eventually(lambda: st.settled)
    assert set(st.sink.numbers()) == set(range(130)) - {70}
    [letter] = await st.letters()
    assert (letter.event_id, letter.reason, letter.attempts) == ("evt_70", "poison", 3)
    assert letter.last_error == letter.first_error == "the process died while it was being delivered, 3 times"
    st.assert_balanced()
    assert st.worker.snapshot().cursor.dead_lettered == 1
    # Behind the killer batches are as large as ever.
    st.sink.attempts.clear()
    await spool.put(100)
    await eventually(lambda: st.settled)
    assert sizes(st) == [50, 50]


async def test_killer_is_counted_and_not_kept_when_dead_letters_are_not_wanted(
    spool: Any, station: Any, eventually: Any, expect_log: list[str]
) -> None:
    expect_log += ["not kept", "died while a sink", "each of the last deaths"]
    st = station(max_events=10, dead_letter=False)
    mines = Minefield(3)
    st.sink.answer = mines
    st.start()
    await spool.put(5)
    for _ in range(3):
        await die(st, mines)
    await eventually(lambda: st.settled)
    assert not st.store.path.exists()
    assert st.worker.snapshot().cursor.dead_lettered == 1
    st.assert_balanced()


async def test_two_killers_side_by_side_take_three_deaths_each(
    spool: Any, station: Any, eventually: Any, expect_log: list[str]
) -> None:
    expect_log += ["dead letters", "died while a sink", "each of the last deaths"]
    st = station(max_events=20)
    mines = Minefield(4, 5)
    st.sink.answer = mines
    st.start()
    await spool.put(20)
    for _ in range(6):
        await die(st, mines)
    await eventually(lambda: st.settled)
    assert [letter.event_id for letter in await st.letters()] == ["evt_4", "evt_5"]
    assert set(st.sink.numbers()) == set(range(20)) - {4, 5}
    st.assert_balanced()


@pytest.mark.parametrize("answer", [None, RetryableError("busy"), PermanentError("no")])
async def test_attempt_that_ends_makes_the_deaths_before_it_count_for_nothing(
    spool: Any, station: Any, eventually: Any, expect_log: list[str], answer: Any
) -> None:
    expect_log += ["dead letters", "died while a sink"]
    st = station(initial_secs=0.01)
    mines = Minefield(0)
    st.sink.answer = mines
    st.start()
    await spool.put(1)
    await die(st, mines)
    st.sink.script = [mines, answer]
    if isinstance(answer, RetryableError):
        # It kills when it is tried again; that is the first death of a new count.
        st.sink.script += [mines, None]
        await die(st, mines)
    await die(st, mines)
    await eventually(lambda: st.settled)
    assert [letter.reason for letter in await st.letters()] == (
        ["permanent"] if isinstance(answer, PermanentError) else []
    )
    st.assert_balanced()


async def test_orderly_stops_in_the_middle_of_attempts_are_no_deaths(spool: Any, station: Any, eventually: Any) -> None:
    st = station(max_events=10)
    mines = Minefield(0)
    st.sink.answer = mines
    st.start()
    await spool.put(5)
    for _ in range(4):
        await asyncio.wait_for(mines.hit.wait(), 10)
        await st.worker.stop(0)
        mines.hit.clear()
        st.start()
    mines.mines.clear()
    mines.release.set()
    await eventually(lambda: st.settled)
    assert set(sizes(st)) == {5}
    assert await st.letters() == []


async def test_orderly_stop_between_deaths_neither_counts_nor_clears(
    spool: Any, station: Any, eventually: Any, expect_log: list[str]
) -> None:
    expect_log += ["dead letters", "died while a sink", "each of the last deaths"]
    st = station(max_events=10)
    mines = Minefield(3)
    st.sink.answer = mines
    st.start()
    await spool.put(5)
    await die(st, mines)
    await asyncio.wait_for(mines.hit.wait(), 10)
    await st.worker.stop(0)
    mines.hit.clear()
    st.start()
    await die(st, mines)
    await die(st, mines)
    await eventually(lambda: st.settled)
    [letter] = await st.letters()
    assert (letter.event_id, letter.attempts) == ("evt_3", 3)
    st.assert_balanced()


async def test_call_that_is_stuck_at_the_stop_is_no_death(
    spool: Any, station: Any, eventually: Any, expect_log: list[str]
) -> None:
    expect_log += ["did not end its call"]
    st = station(max_events=10)
    reached, release = asyncio.Event(), asyncio.Event()

    async def ignore_cancellation(batch: Any) -> None:
        reached.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    st.sink.script = [ignore_cancellation]
    st.start()
    await spool.put(5)
    await reached.wait()
    assert RecordFile(spool.path, "crm").load().in_flight
    await st.worker.stop(0)
    assert RecordFile(spool.path, "crm").load() == Record()
    release.set()
    st.start()
    await eventually(lambda: st.settled)


async def test_disk_that_refuses_the_note_does_not_stop_delivery(
    spool: Any, station: Any, eventually: Any, monkeypatch: Any, expect_log: list[str], caplog: Any
) -> None:
    expect_log.append("in flight cannot be noted")

    def refuse(self: RecordFile, record: Record) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(RecordFile, "save", refuse)
    st = station(max_events=1000)
    st.start()
    await spool.put(3000)
    await spool.put(3000)
    await eventually(lambda: st.settled)
    assert len(st.sink.numbers()) == 6000
    assert sum("cannot be noted" in str(record.msg) for record in caplog.records) == 1
