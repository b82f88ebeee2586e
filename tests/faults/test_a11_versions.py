"""A11: what an earlier release wrote is read in full; what a later one wrote is refused and left as it is."""

from __future__ import annotations

import shutil
import struct
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from zlib import crc32

import orjson
import pytest
from harness import garbage
from harness.spoolbytes import Opener

from edge.delivery.letters import live_seqs, read_letters
from edge.delivery.selection import EVERYTHING
from edge.spool import CursorFile, Log, SpoolFormatError
from edge.spool.cursor import load_cursor
from edge.spool.inspect import dump, stats, verify

V1 = Path(__file__).parent / "data" / "spool-v1"
V1_EVENTS = [b'{"key":"web"}\n{"event":%d,"pad":"%s"}\n{"event":%d}' % (n, b"x" * 50 * n, n + 100) for n in range(12)]
V1_TORN_BYTES = 30


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    shutil.copytree(V1, tmp_path / "copy")
    return tmp_path / "copy"


def hashes(path: Path) -> dict[str, str]:
    return {
        str(file.relative_to(path)): sha256(file.read_bytes()).hexdigest() if file.is_file() else "directory"
        for file in sorted(path.rglob("*"))
    }


def test_spool_of_the_first_release_is_read_in_full(copied, row, expect_log):
    expect_log += ["damaged"]
    with row("A11", what="spool, cursors and dead letters of format version 1", unit="frames") as result:
        result.bound = "0 lost"
        path = copied / "spool" / "shard-000"
        assert verify(path).is_intact
        with closing(Opener()) as opener:
            for again in range(2):
                with opener.open(path, segment_bytes=4096) as opened:
                    frames, lost = opened.read(0)
                    assert lost == 0
                    assert opened.log.recovery.torn_bytes == (0 if again else V1_TORN_BYTES)
                    assert [frame.payload for frame in frames][:12] == V1_EVENTS
                    assert [(frame.seq, frame.n_events) for frame in frames][:12] == [(2 * n, 2) for n in range(12)]
                    assert opener.append(opened.log, b"of today") == 24 + again
        result.tried = len(V1_EVENTS)


def test_cursors_of_the_first_release_are_where_they_were(copied, row):
    with row("A11", what="cursors of 64 bytes", unit="cursors") as result:
        result.bound = "same position and counts"
        path = copied / "spool" / "shard-000"
        cursor = CursorFile(path, "archive").load()
        assert cursor is not None
        found = (cursor.position, cursor.base, cursor.delivered, cursor.dead_lettered, cursor.skipped, cursor.lost)
        assert found == (10, 0, 7, 2, 1, 0)
        assert load_cursor(path, "archive") == cursor
        fresh = CursorFile(path, "fresh")
        assert fresh.load() is None
        assert not fresh.is_damaged
        result.tried = 2


def test_dead_letters_of_the_first_release_are_all_there(copied, row):
    with row("A11", what="dead letters of format version 1", unit="letters") as result:
        result.bound = "0 lost"
        path = copied / "dead-letters" / "archive"
        letters = list(read_letters(path, EVERYTHING, live_seqs(path)))
        assert [(letter.id, orjson.loads(letter.line)["event"], letter.reason) for letter in letters] == [
            (0, 3, "permanent"),
            (2, 5, "permanent"),
        ]
        result.tried = len(letters)


def newest_segment(path: Path) -> None:
    """Have the last segment, which recovery would cut, written by a later version."""
    last = max(path.glob("seg-*.log"))
    data = bytearray(last.read_bytes())
    for start in (0, 512):
        struct.pack_into("<H", data, start + 8, 9)
        struct.pack_into("<I", data, start + 108, crc32(data[start : start + 108]))
    last.write_bytes(data)


@pytest.mark.parametrize(
    "make", [garbage.newer_meta, garbage.newer_segment, newest_segment], ids=lambda make: make.__name__
)
@pytest.mark.parametrize("function", [Log.open, verify, stats, lambda path: list(dump(path))])
def test_newer_version_is_refused_and_not_one_byte_changes(copied, row, make, function):
    with row("A11", what=f"a newer version: {make.__name__}", unit="attempts") as result:
        result.bound = "refused, 0 bytes changed"
        path = copied / "spool" / "shard-000"
        (path / "seg-0123456789abcdef.tmp").write_bytes(bytes(4096))
        make(path)
        before = hashes(copied)
        with pytest.raises(SpoolFormatError, match=r"version \d"):
            function(path)
        assert hashes(copied) == before
        result.tried = 1


def test_cursor_of_a_newer_version_costs_repetition_and_no_event(copied, row):
    """Refusing would need to tell a newer cursor from one with a flipped bit, and the magic has no checksum.

    A release that changes cursors so that older ones must not run has to say so in META.json, which is refused.
    """
    with row("A11", what="cursors of an unknown version", unit="cursors") as result:
        result.bound = "0 lost"
        path = copied / "spool" / "shard-000"
        for suffix in "ab":
            file = path / f"cursor-archive.{suffix}"
            file.write_bytes(b"EVC\x63" + file.read_bytes()[4:])
        cursor = CursorFile(path, "archive")
        assert cursor.load() is None
        assert cursor.is_damaged  # so the sink gets all that is in the spool, with a warning
        result.tried = 1
