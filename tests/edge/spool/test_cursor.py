from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from zlib import crc32

import pytest

from edge.spool import Cursor, CursorFile, SpoolFailedError, SpoolFullError, cursor_names
from edge.spool.cursor import SLOT_BYTES, load_cursor


def cursor_at(position: int) -> Cursor:
    return Cursor(position=position, base=1, delivered=position - 9, dead_lettered=1, skipped=1, lost=1, dropped=5)


def test_cursor_survives_a_round_trip(tmp_path):
    CursorFile(tmp_path, "archive").save(cursor_at(2**40))
    assert CursorFile(tmp_path, "archive").load() == cursor_at(2**40)
    assert load_cursor(tmp_path, "archive") == cursor_at(2**40)


def test_cursor_is_none_before_the_first_save(tmp_path):
    assert load_cursor(tmp_path / "nowhere", "archive") is None
    file = CursorFile(tmp_path / "new", "archive")
    assert file.load() is None
    assert {path.name: path.stat().st_size for path in (tmp_path / "new").iterdir()} == {
        "cursor-archive.a": SLOT_BYTES,
        "cursor-archive.b": SLOT_BYTES,
    }


def test_save_writes_the_slots_in_turn(tmp_path):
    file = CursorFile(tmp_path, "archive")
    paths = [tmp_path / "cursor-archive.a", tmp_path / "cursor-archive.b"]
    for position in range(10, 16):
        before = [path.read_bytes() for path in paths]
        file.save(cursor_at(position))
        assert sum(path.read_bytes() != old for path, old in zip(paths, before, strict=True)) == 1
        assert load_cursor(tmp_path, "archive") == cursor_at(position)
    file.close()
    file.save(cursor_at(16))
    assert file.load() == cursor_at(16)


def test_load_falls_back_to_the_other_slot_whatever_bit_flips(tmp_path):
    file = CursorFile(tmp_path, "archive")
    file.save(cursor_at(10))
    file.save(cursor_at(20))
    newest = next(path for path in tmp_path.iterdir() if path.read_bytes()[8] == 2)
    good = newest.read_bytes()
    for bit in range(SLOT_BYTES * 8):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        newest.write_bytes(flipped)
        assert load_cursor(tmp_path, "archive") == cursor_at(10)
    for length in range(SLOT_BYTES):
        newest.write_bytes(good[:length])
        assert load_cursor(tmp_path, "archive") == cursor_at(10)


def test_save_spares_the_good_slot_after_the_newest_was_torn(tmp_path):
    file = CursorFile(tmp_path, "archive")
    file.save(cursor_at(10))
    file.save(cursor_at(20))
    newest = next(path for path in tmp_path.iterdir() if path.read_bytes()[8] == 2)
    good = next(path for path in tmp_path.iterdir() if path != newest)
    newest.write_bytes(bytes(SLOT_BYTES))
    before = good.read_bytes()
    file = CursorFile(tmp_path, "archive")
    file.save(cursor_at(30))
    assert good.read_bytes() == before
    assert load_cursor(tmp_path, "archive") == cursor_at(30)


def test_failed_save_keeps_the_cursor_before_and_the_descriptor_is_not_used_again(tmp_path, files):
    file = CursorFile(tmp_path, "archive", files=files)
    file.save(cursor_at(10))
    good = next(path for path in tmp_path.iterdir() if path.read_bytes() != bytes(SLOT_BYTES))
    before = good.read_bytes()
    files.calls.clear()
    files.fail_once("fdatasync", errno.EIO)
    with pytest.raises(SpoolFailedError):
        file.save(cursor_at(20))
    file.save(cursor_at(30))
    assert good.read_bytes() == before
    synced = [number for name, number in files.calls if name == "fdatasync"]
    assert len(synced) == len(set(synced)) == 2
    assert CursorFile(tmp_path, "archive").load() == cursor_at(30)


def test_cursor_made_on_a_full_disk_is_made_by_a_later_save(tmp_path, files):
    files.fail_always("fsync", errno.ENOSPC)
    file = CursorFile(tmp_path, "archive", files=files)
    with pytest.raises(SpoolFullError):
        file.save(cursor_at(10))
    assert load_cursor(tmp_path, "archive") is None
    files.heal()
    file.save(cursor_at(10))
    assert load_cursor(tmp_path, "archive") == cursor_at(10)


def test_cursor_names_lists_those_of_sinks_that_are_gone(tmp_path):
    for name in ("archive", "live", "old.one"):
        CursorFile(tmp_path, name)
    (tmp_path / "cursor-live.a").unlink()
    (tmp_path / "cursor-").write_bytes(b"")
    (tmp_path / "seg-1.log").write_bytes(b"")
    assert cursor_names(tmp_path) == ["archive", "live", "old.one"]
    assert cursor_names(tmp_path / "nowhere") == []


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a\n", "a" * 200])
def test_cursor_refuses_names_that_are_no_file_names(tmp_path, name):
    with pytest.raises(ValueError, match="cannot be the name"):
        CursorFile(tmp_path, name)


def test_cursor_never_follows_links_or_waits_for_a_fifo(tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    directory = tmp_path / "spool"
    directory.mkdir()
    (directory / "cursor-a.a").symlink_to(outside)
    os.mkfifo(directory / "cursor-b.a")
    for name in "ab":
        assert load_cursor(directory, name) is None
        with pytest.raises(SpoolFailedError):
            CursorFile(directory, name)
    assert outside.read_bytes() == b"precious"


def write_version_1(directory: Path, cursors: dict[str, tuple[int, Cursor]]) -> None:
    """Write slots as the first version did: suffix -> generation and cursor."""
    directory.mkdir(exist_ok=True)
    for suffix, (generation, cursor) in cursors.items():
        counts = (cursor.delivered, cursor.dead_lettered, cursor.skipped, cursor.lost)
        body = struct.pack("<7Q", generation, cursor.position, cursor.base, *counts)
        (directory / f"cursor-archive.{suffix}").write_bytes(b"EVC\x01" + struct.pack("<I", crc32(body)) + body)


OLD, OLDER = Cursor(20, 0, 10, 5, 4, 1), Cursor(10, 0, 10)


def test_slots_of_version_1_are_read_as_they_are(tmp_path):
    write_version_1(tmp_path, {"a": (8, OLD), "b": (7, OLDER)})
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert load_cursor(tmp_path, "archive") == OLD
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    newest = tmp_path / "cursor-archive.a"
    for bit in range(64 * 8):
        flipped = bytearray(before[newest])
        flipped[bit // 8] ^= 1 << bit % 8
        newest.write_bytes(flipped)
        assert load_cursor(tmp_path, "archive") == OLDER


def test_save_upgrades_the_slots_of_version_1_one_by_one(tmp_path):
    write_version_1(tmp_path, {"a": (8, OLD), "b": (7, OLDER)})
    newest = (tmp_path / "cursor-archive.a").read_bytes()
    file = CursorFile(tmp_path, "archive")
    assert not file.is_damaged
    assert file.load() == OLD
    file.save(cursor_at(30))
    assert (tmp_path / "cursor-archive.a").read_bytes()[:64] == newest
    assert load_cursor(tmp_path, "archive") == cursor_at(30)
    (tmp_path / "cursor-archive.b").write_bytes(bytes(SLOT_BYTES))  # torn: the old slot is still the best there is
    assert load_cursor(tmp_path, "archive") == OLD
    file = CursorFile(tmp_path, "archive")
    for position in (40, 50):
        file.save(cursor_at(position))
        assert load_cursor(tmp_path, "archive") == cursor_at(position)
    assert {path.read_bytes()[:4] for path in tmp_path.iterdir()} == {b"EVC\x02"}


def test_slot_of_a_newer_version_is_no_cursor_of_ours(tmp_path):
    file = CursorFile(tmp_path, "archive")
    file.save(cursor_at(10))
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes().replace(b"EVC\x02", b"EVC\x03"))
    assert load_cursor(tmp_path, "archive") is None
