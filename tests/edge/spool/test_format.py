from __future__ import annotations

import struct
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.spool import EVENTS, MARK, REPLAY, Frame, SpoolFormatError
from edge.spool.format import (
    FRAME_EVENTS,
    FRAME_HEADER_BYTES,
    FRAME_MAGIC,
    SEGMENT_HEADER_BYTES,
    FrameKey,
    SegmentHeader,
    frame_header,
    is_temporary_name,
    parse_segment_name,
    segment_name,
    temporary_name,
)
from edge.spool.scan import Damage, find_tail, scan

FRAMES = st.lists(
    st.tuples(st.sampled_from([EVENTS, REPLAY, MARK]), st.integers(1, 1000), st.binary(max_size=300)), max_size=20
)


def key_of(seed: int) -> FrameKey:
    return FrameKey(seed, seed.to_bytes(4, "little")[:3])


def build(seed: int, items: list[tuple[int, int, bytes]], first_seq: int = 0) -> tuple[bytes, list[Frame]]:
    """Return the bytes of frames and the frames."""
    data, frames, seq = b"", [], first_seq
    for kind, n_events, payload in items:
        frames.append(Frame(kind, seq, n_events, payload, "segment", len(data)))
        data += frame_header(key_of(seed), kind, seq, n_events, payload) + payload
        seq += n_events
    return data, frames


def read_from(data: bytes):
    return lambda offset, size: data[offset : offset + size]


def frames_of(data: bytes, seed: int, chunk_bytes: int = 1 << 16) -> list[Frame]:
    found = scan(read_from(data), key_of(seed), "segment", 0, len(data), 0, chunk_bytes)
    return [item for item in found if isinstance(item, Frame)]


def test_segment_header_survives_a_round_trip():
    header = SegmentHeader.new(2**40, 65536, "shard-000")
    assert len(header.pack()) == SEGMENT_HEADER_BYTES
    assert SegmentHeader.unpack(header.pack()) == header


def test_segment_header_has_a_fresh_epoch_each_time():
    assert SegmentHeader.new(0, 4096, "a").epoch != SegmentHeader.new(0, 4096, "a").epoch


def test_segment_header_is_found_whatever_single_bit_flips():
    header = SegmentHeader.new(7, 65536, "shard-000")
    packed = header.pack()
    for bit in range(len(packed) * 8):
        flipped = bytearray(packed)
        flipped[bit // 8] ^= 1 << bit % 8
        assert SegmentHeader.unpack(bytes(flipped)) == header


@given(st.binary(max_size=2048))
def test_segment_header_is_none_for_other_bytes(data: bytes):
    assert SegmentHeader.unpack(data) is None


def test_segment_header_refuses_a_newer_version():
    packed = bytearray(SegmentHeader.new(0, 65536, "a").pack()[:512])
    struct.pack_into("<H", packed, 8, 2)
    struct.pack_into("<I", packed, 108, crc32(packed[:108]))
    with pytest.raises(SpoolFormatError, match="version 2"):
        SegmentHeader.unpack(bytes(packed))


def test_segment_names_sort_and_parse():
    assert segment_name(12) == "seg-00000000000000000012.log"
    assert parse_segment_name(segment_name(12)) == 12
    assert parse_segment_name("seg-12.log") is None
    assert parse_segment_name(segment_name(12) + "x") is None
    assert is_temporary_name(temporary_name())
    assert not is_temporary_name("notes.tmp")


def test_frame_magic_is_not_part_of_any_text():
    with pytest.raises(UnicodeDecodeError):
        FRAME_MAGIC.decode()


@given(FRAMES, st.integers(0, 2**32 - 1), st.sampled_from([40, 1000, 1 << 16]))
def test_frames_survive_a_round_trip(items, seed, chunk_bytes):
    data, frames = build(seed, items)
    assert list(scan(read_from(data), key_of(seed), "segment", 0, len(data), 0, chunk_bytes)) == frames


@given(FRAMES, st.integers(1, 2**32 - 1))
def test_frames_of_another_epoch_are_not_frames(items, seed):
    data, _ = build(seed, items)
    assert frames_of(data, seed - 1) == []


@given(FRAMES, st.data())
def test_scan_loses_one_frame_to_a_flipped_bit(items, data):
    content, frames = build(99, items)
    if not content:
        return
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    hit = max(index for index, frame in enumerate(frames) if frame.offset <= bit // 8)
    found = list(scan(read_from(bytes(flipped)), key_of(99), "segment", 0, len(flipped)))
    assert [item for item in found if isinstance(item, Frame)] == frames[:hit] + frames[hit + 1 :]
    damage = [item for item in found if isinstance(item, Damage)]
    assert [item.offset for item in damage] == [frames[hit].offset]
    assert damage[0].length <= FRAME_HEADER_BYTES + len(frames[hit].payload)


@given(FRAMES, st.binary(min_size=1, max_size=200), FRAMES)
def test_scan_finds_the_frames_behind_garbage(before, garbage, after):
    first, first_frames = build(5, before)
    second, second_frames = build(5, after)
    data = first + garbage + second
    assert [frame.payload for frame in frames_of(data, 5, 64)] == [
        frame.payload for frame in first_frames + second_frames
    ]


@given(st.binary(max_size=3000), st.sampled_from([64, 1 << 16]))
def test_scan_takes_any_bytes(data, chunk_bytes):
    assert frames_of(data, 1, chunk_bytes) == []
    assert find_tail(read_from(data), key_of(1), 0, len(data), 0).end_seq is None


def test_scan_says_nothing_of_room_never_written():
    data, frames = build(1, [(EVENTS, 1, b"one")])
    assert list(scan(read_from(data + bytes(600_000)), key_of(1), "segment", 0, len(data) + 600_000)) == frames


def test_scan_crosses_garbage_larger_than_a_chunk():
    data, frames = build(1, [(EVENTS, 1, b"one")])
    garbage = FRAME_MAGIC + b"\x01" + key_of(1).tag + b"\xff" * 700_000
    assert [frame.payload for frame in frames_of(garbage + data, 1)] == [frame.payload for frame in frames]


def test_scan_steps_over_frames_below_a_position():
    data, frames = build(1, [(EVENTS, 3, b"a" * 50), (EVENTS, 2, b"b" * 50), (EVENTS, 1, b"c")])
    assert list(scan(read_from(data), key_of(1), "segment", 0, len(data), 4)) == frames[1:]
    assert list(scan(read_from(data), key_of(1), "segment", 0, len(data), 5, 40)) == frames[2:]


@given(FRAMES, st.binary(max_size=100), st.integers(0, 1000))
def test_find_tail_agrees_with_a_scan(items, garbage, zeros):
    data, frames = build(3, items)
    torn = data + garbage + bytes(zeros)
    tail = find_tail(read_from(torn), key_of(3), 0, len(torn), 0)
    assert tail.end == len(data)
    assert tail.end_seq == (frames[-1].end if frames else None)
    assert tail.data_end == len(data) + len(garbage.rstrip(b"\0"))


def test_find_tail_finds_a_frame_larger_than_its_window():
    data, frames = build(3, [(EVENTS, 1, b"small"), (EVENTS, 4, b"\xff" * 900_000)])
    tail = find_tail(read_from(data + bytes(300_000)), key_of(3), 0, len(data) + 300_000, 0)
    assert (tail.end, tail.end_seq) == (len(data), frames[-1].end)


def test_find_tail_tells_what_a_damaged_last_frame_claims():
    data, _ = build(3, [(EVENTS, 2, b"one"), (EVENTS, 5, b"two")])
    tail = find_tail(read_from(data[:-1] + b"\0"), key_of(3), 0, len(data), 0)
    assert (tail.end_seq, tail.claimed_seq) == (2, 7)


@given(FRAMES.filter(bool), st.integers(0, 2**62 - 2**24), st.data())
def test_pattern_matches_every_header_of_ours(items, first_seq, data):
    kind = data.draw(st.sampled_from([EVENTS, REPLAY, MARK]))
    last = (kind, data.draw(st.sampled_from([1, FRAME_EVENTS])), b"x" * data.draw(st.integers(0, 300)))
    content, frames = build(7, [*items, last], min(first_seq, 2**62 - 2**26))
    found = [match.start() for match in key_of(7).pattern(len(content)).finditer(content)]
    assert found == [frame.offset for frame in frames]


def test_pattern_matches_a_header_behind_one_that_hides_it():
    key = key_of(7)
    header = frame_header(key, EVENTS, 5, 1, b"")
    for n_bytes, places in ((4, [4]), (8, [8]), (16, [0, 16]), (24, [0, 24])):
        assert [match.start() for match in key.pattern(1 << 20).finditer(header[:n_bytes] + header)] == places


class Patience:
    """A clock that moves one second with each look, from some look on."""

    def __init__(self, looks: int) -> None:
        self.looks = looks
        self.now = 0.0

    def monotonic(self) -> float:
        self.looks -= 1
        if self.looks < 0:
            self.now += 1.0
        return self.now


@pytest.mark.parametrize("looks", range(9))
def test_find_tail_that_runs_out_of_patience_cuts_nothing_and_gives_no_number_twice(monkeypatch, looks):
    frames = [(EVENTS, 3, b"a" * 600_000), *[(EVENTS, 2, b"b" * 40)] * 4]
    data, stored = build(3, frames, 1000)
    damaged = bytearray(data)
    for frame in stored[1:]:
        damaged[frame.offset + FRAME_HEADER_BYTES] ^= 1
    monkeypatch.setattr("edge.spool.scan.time", Patience(looks))
    end = len(damaged) + 5000
    tail = find_tail(read_from(bytes(damaged) + bytes(5000)), key_of(3), 0, end, 1000, patience_secs=1.5)
    if tail.is_certain:
        assert (tail.end, tail.end_seq) == (len(data) - 4 * (FRAME_HEADER_BYTES + 40), 1003)
    else:
        assert tail.end == tail.data_end == len(data)
        assert tail.end_seq is not None
        assert tail.end_seq >= stored[-1].end
    assert tail.is_certain == (looks > 7)
