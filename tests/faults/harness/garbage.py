"""Things that somebody or something may leave in a spool's directory; each function leaves one.

They are given the directory of a spool that was ended in order and holds two frames, `one` and `two`, in one segment. A
directory `outside` beside it is nobody's business.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

from edge.spool.format import FRAME_MAGIC, SegmentHeader, segment_name

Make = Callable[[Path], None]


def unsealed(path: Path, data: bytes, room: int = 64 * 1024) -> None:
    """Leave a segment as a process does that was killed."""
    path.write_bytes(data.ljust(room, b"\0"))


def empty_file(path: Path) -> None:
    (path / segment_name(1)).write_bytes(b"")


def random_bytes(path: Path) -> None:
    (path / segment_name(1)).write_bytes(random.Random(1).randbytes(100_000))


def zeros(path: Path) -> None:
    (path / segment_name(9)).write_bytes(bytes(100_000))


def a_terabyte_of_nothing(path: Path) -> None:
    (path / segment_name(9)).touch()
    os.truncate(path / segment_name(9), 1 << 40)


def a_terabyte_behind_a_segment(path: Path) -> None:
    os.truncate(path / segment_name(0), 1 << 40)


def only_a_header(path: Path) -> None:
    (path / segment_name(9)).write_bytes(SegmentHeader.new(9, 65536, "x").pack())


def half_a_header(path: Path) -> None:
    (path / segment_name(9)).write_bytes(SegmentHeader.new(9, 65536, "x").pack()[:100])


def a_link_outside(path: Path) -> None:
    (path / segment_name(9)).symlink_to(path.parent / "outside")


def a_dangling_link(path: Path) -> None:
    (path / segment_name(2)).symlink_to(path / "nowhere")


def a_link_loop(path: Path) -> None:
    (path / segment_name(9)).symlink_to(path / segment_name(9))


def a_fifo(path: Path) -> None:
    os.mkfifo(path / segment_name(2))


def a_fifo_as_meta(path: Path) -> None:
    (path / "META.json").unlink()
    os.mkfifo(path / "META.json")


def a_directory(path: Path) -> None:
    (path / segment_name(2)).mkdir()


def directories_for_temporary_names(path: Path) -> None:
    (path / "META.json").unlink()
    (path / "seg-0123456789abcdef.tmp").mkdir()


def foreign_files(path: Path) -> None:
    (path / "notes.txt").write_text("hello")
    (path / "seg-7.log").write_bytes(b"x")
    (path / (segment_name(7) + ".bak")).write_bytes(b"x")
    (path / ".hidden").mkdir()


def an_absurd_number(path: Path) -> None:
    (path / "seg-99999999999999999999.log").write_bytes(b"x")
    (path / segment_name(1 << 63)).write_bytes(SegmentHeader.new(1 << 63, 65536, "x").pack())


def a_left_over_temporary_file(path: Path) -> None:
    (path / "seg-0123456789abcdef.tmp").write_bytes(bytes(65536))
    (path / "META.json.tmp").write_bytes(b"{")


def a_broken_meta(path: Path) -> None:
    (path / "META.json").write_bytes(b'{"format": ')


def a_meta_of_another_shape(path: Path) -> None:
    (path / "META.json").write_bytes(b"[" * 60_000 + b"]" * 60_000)


def no_meta(path: Path) -> None:
    (path / "META.json").unlink()


def a_copy(path: Path) -> None:
    shutil.copy(path / segment_name(0), path / segment_name(1))


def broken_cursors(path: Path) -> None:
    (path / "cursor-archive.a").write_bytes(b"x" * 64)
    (path / "cursor-archive.b").write_bytes(b"")
    os.mkfifo(path / "cursor-fifo.a")
    (path / "cursor-directory.a").mkdir()


def a_quarantine_that_is_a_link(path: Path) -> None:
    (path / "quarantine").symlink_to(path.parent / "outside")
    (path / segment_name(9)).write_bytes(b"garbage")


def a_quarantine_that_is_a_file(path: Path) -> None:
    (path / "quarantine").write_bytes(b"")
    (path / segment_name(9)).write_bytes(b"garbage")


def magic_everywhere(path: Path) -> None:
    data = (path / segment_name(0)).read_bytes()
    tag = SegmentHeader.unpack(data).key.tag
    unsealed(path / segment_name(0), data + (FRAME_MAGIC + b"\x01" + tag) * 4000)


def newer_meta(path: Path) -> None:
    (path / "META.json").write_text(json.dumps({"format": 2, "shard": "x", "more": []}))


def newer_segment(path: Path) -> None:
    header = bytearray(SegmentHeader.new(9, 65536, "x").pack())
    for start in (0, 512):
        struct.pack_into("<H", header, start + 8, 2)
        struct.pack_into("<I", header, start + 108, crc32(header[start : start + 108]))
    (path / segment_name(9)).write_bytes(header)


HARMLESS: list[Make] = [
    empty_file,
    random_bytes,
    zeros,
    a_terabyte_of_nothing,
    a_terabyte_behind_a_segment,
    only_a_header,
    half_a_header,
    a_link_outside,
    a_dangling_link,
    a_link_loop,
    a_fifo,
    a_fifo_as_meta,
    a_directory,
    directories_for_temporary_names,
    foreign_files,
    an_absurd_number,
    a_left_over_temporary_file,
    a_broken_meta,
    a_meta_of_another_shape,
    no_meta,
    a_copy,
    broken_cursors,
    a_quarantine_that_is_a_link,
    a_quarantine_that_is_a_file,
    magic_everywhere,
]
"""A spool opens with these, and its two frames are delivered."""


def a_segment_of_another_spool(path: Path) -> None:
    header = SegmentHeader.new(7, 65536, "another")
    (path / segment_name(7)).write_bytes(header.pack().ljust(65536, b"\0"))


def names_of_every_kind(path: Path) -> None:
    for name in (
        "seg-.log",
        "seg-00000000000000000001.LOG",
        "cursor-.a",
        "cursor-x.c",
        "\udcff\udcfe",
        "a" * 255,
        "-rf",
        " ",
    ):
        (path / name).write_bytes(b"x")


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        # The name of a socket may be no longer than about a hundred bytes.
        directory = os.open(path, os.O_RDONLY)
        try:
            made.bind(f"/proc/self/fd/{directory}/{segment_name(5)}")
        finally:
            os.close(directory)


def a_cursor_that_is_a_link(path: Path) -> None:
    (path / "cursor-archive.a").symlink_to(path.parent / "outside" / "precious")
    (path / "cursor-archive.b").symlink_to(path.parent / "outside" / "precious")


def temporary_names_that_are_links(path: Path) -> None:
    (path / "META.json").unlink()
    (path / "META.json.tmp").symlink_to(path.parent / "outside" / "precious")
    (path / "seg-0123456789abcdef.tmp").symlink_to(path.parent / "outside" / "precious")


def a_meta_of_an_older_version(path: Path) -> None:
    (path / "META.json").write_bytes(b'{"format": 0, "shard": "shard-000", "written_by": "an ancestor"}')


def a_meta_of_random_bytes(path: Path) -> None:
    (path / "META.json").write_bytes(random.Random(3).randbytes(100_000))


HARMLESS += [
    a_segment_of_another_spool,
    names_of_every_kind,
    a_socket,
    a_cursor_that_is_a_link,
    temporary_names_that_are_links,
    a_meta_of_an_older_version,
    a_meta_of_random_bytes,
]


def a_lock_that_is_a_link(path: Path) -> None:
    (path / "LOCK").unlink(missing_ok=True)
    (path / "LOCK").symlink_to(path.parent / "outside" / "precious")


def a_lock_that_is_a_directory(path: Path) -> None:
    (path / "LOCK").unlink(missing_ok=True)
    (path / "LOCK").mkdir()


def a_lock_that_is_a_fifo(path: Path) -> None:
    (path / "LOCK").unlink(missing_ok=True)
    os.mkfifo(path / "LOCK")


def a_file_in_place_of_the_directory(path: Path) -> None:
    shutil.rmtree(path)
    path.write_bytes(b"no directory")


def a_link_to_itself_in_place_of_the_directory(path: Path) -> None:
    shutil.rmtree(path)
    path.symlink_to(path)


def a_segment_nobody_may_read(path: Path) -> None:
    (path / segment_name(0)).chmod(0)


REFUSED: dict[Make, str] = {
    a_segment_nobody_may_read: "may not be read",
    newer_meta: "format version",
    newer_segment: "format version",
    a_lock_that_is_a_link: "symbolic links",
    a_lock_that_is_a_directory: "directory",
    a_lock_that_is_a_fifo: "LOCK is not a regular file",
    a_file_in_place_of_the_directory: "Not a directory",
    a_link_to_itself_in_place_of_the_directory: "symbolic links",
}
"""A spool does not open with these, and says so with these words."""


def a_segment_that_is_missing(path: Path) -> None:
    (path / segment_name(0)).unlink()


def nothing_but_a_header(path: Path) -> None:
    os.truncate(path / segment_name(0), 1024)


def a_segment_of_zeros(path: Path) -> None:
    (path / segment_name(0)).write_bytes(bytes(65536))


def a_segment_under_another_name(path: Path) -> None:
    (path / segment_name(0)).rename(path / segment_name(4))


HARMFUL: dict[Make, list[bytes]] = {
    a_segment_that_is_missing: [],
    nothing_but_a_header: [],
    a_segment_of_zeros: [],
    a_segment_under_another_name: [b"one", b"two"],
}
"""A spool opens with these, and delivers only so much of what it held."""
