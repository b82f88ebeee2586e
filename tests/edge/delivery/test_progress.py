from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edge.delivery import progress as progress_module
from edge.delivery.progress import SAVE_EVENTS, CursorKeeper
from edge.delivery.window import Progress
from edge.spool.cursor import Cursor, CursorFile

START = Cursor(0, 0, 0, 0, 0, 0)


def delivered(start: int, n_events: int) -> Progress:
    return Progress(start + n_events, n_events, 0, 0, 0, 0)


class Disk:
    """The file of a cursor on a disk that hangs or fails when the test says so."""

    is_damaged = False

    def __init__(self, directory: Path) -> None:
        self._file = CursorFile(directory, "crm")
        self.awake = threading.Event()
        self.awake.set()
        self.errors: list[BaseException] = []
        self.saves: list[Cursor] = []
        self.closes = 0

    def load(self) -> Cursor | None:
        return self._file.load()

    def save(self, cursor: Cursor) -> None:
        self.saves.append(cursor)
        self.awake.wait(20)
        if self.errors:
            raise self.errors.pop(0)
        self._file.save(cursor)

    def close(self) -> None:
        self.closes += 1
        self._file.close()


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as made:
        yield made


async def test_keeper_backs_off_whatever_a_save_raises(
    tmp_path: Path, executor: Any, eventually: Any, expect_log: list[str], monkeypatch: Any
) -> None:
    expect_log.append("the cursor of a sink cannot be saved")
    monkeypatch.setattr(progress_module, "RETRY_SECS", 0.3)
    disk = Disk(tmp_path)
    disk.errors = [RuntimeError("a defect"), ValueError("another"), OSError(5, "Input/output error")]
    keeper = CursorKeeper(object, "crm", disk, START, executor, durable=True)
    started = asyncio.get_running_loop().time()
    keeper.advance(delivered(0, SAVE_EVENTS + 500))
    await eventually(lambda: keeper.durable_position == SAVE_EVENTS + 500)
    assert len(disk.saves) == 4
    assert asyncio.get_running_loop().time() - started >= 0.9
    await keeper.close()


async def test_position_counts_as_durable_only_when_its_save_has_returned(
    tmp_path: Path, executor: Any, eventually: Any
) -> None:
    disk = Disk(tmp_path)
    disk.awake.clear()
    keeper = CursorKeeper(object, "crm", disk, START, executor, durable=True)
    keeper.advance(delivered(0, SAVE_EVENTS))
    await eventually(lambda: disk.saves)
    position = keeper.durable_position
    disk.awake.set()
    # Segments below it are unlinked: a sudden death in the middle of the save must find its events.
    assert position == 0
    await eventually(lambda: keeper.durable_position == SAVE_EVENTS)
    await keeper.close()


async def test_keeper_waits_with_its_saves_for_one_that_an_earlier_keeper_left_hanging(
    tmp_path: Path, executor: Any, eventually: Any, expect_log: list[str], monkeypatch: Any
) -> None:
    expect_log.append("is not saved in time")
    monkeypatch.setattr(progress_module, "STOP_SECS", 0.05)
    monkeypatch.setattr(progress_module, "SAVE_SECS", 0.01)

    class Spool:
        """Whose cursors they are."""

    spool, hung = Spool(), Disk(tmp_path)
    hung.awake.clear()
    first = CursorKeeper(spool, "crm", hung, START, executor, durable=True)
    first.advance(delivered(0, 10))
    await eventually(lambda: hung.saves)
    await first.close()
    assert hung.closes == 0

    disk = Disk(tmp_path)
    second = CursorKeeper(spool, "crm", disk, START, executor, durable=True)
    other = Disk(tmp_path / "other")
    elsewhere = CursorKeeper(Spool(), "crm", other, START, executor, durable=True)
    for keeper in (second, elsewhere):
        for step in range(5):
            keeper.advance(delivered(step * 10, 10))
    await eventually(lambda: elsewhere.durable_position == 50)
    assert disk.saves == []
    # A keeper that was closed while it waited keeps its place in the row.
    await second.close()
    third = CursorKeeper(spool, "crm", Disk(tmp_path), START, executor, durable=True)
    third.advance(delivered(0, 70))
    hung.awake.set()
    await eventually(lambda: third.durable_position == 70)
    assert (hung.closes, disk.closes) == (1, 1)
    assert CursorFile(tmp_path, "crm").load() == third.cursor
    for keeper in (third, elsewhere):
        await keeper.close()
    assert CursorFile(tmp_path, "crm").load() == Cursor(70, 0, 70, 0, 0, 0)
