"""A8: one bit of a segment is not what was written. The frame it hit is lost and counted, and nothing else is."""

from __future__ import annotations

import random
import shutil
from bisect import bisect_right
from contextlib import closing
from pathlib import Path
from typing import Any

from harness.fastdir import fast_directory, quiet
from harness.spoolbytes import Opener, payload_of, write_spool

from edge.spool.format import FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES, parse_segment_name
from edge.spool.inspect import verify

REGION_BYTES = 4096
START_SECS = 2.0


class Damaged:
    """A spool on disk, the bytes it should have, and where its frames lie."""

    def __init__(self, path: Path, payloads: list[bytes], segment_bytes: int) -> None:
        self.path = path
        self.payloads = payloads
        self.segment_bytes = segment_bytes
        self.files = sorted(path.glob("seg-*.log"))
        self.content = [file.read_bytes() for file in self.files]
        self.firsts = [parse_segment_name(file.name) or 0 for file in self.files]
        self.starts: list[list[int]] = []
        for at, first in enumerate(self.firsts):
            offset, starts = SEGMENT_HEADER_BYTES, []
            for payload in self.payloads[first : self.end_of(at)]:
                starts.append(offset)
                offset += FRAME_HEADER_BYTES + len(payload)
            assert offset == len(self.content[at])
            self.starts.append(starts)

    def end_of(self, at: int) -> int:
        """Return the number behind the last frame of a segment."""
        return self.firsts[at + 1] if at + 1 < len(self.firsts) else len(self.payloads)

    def frame_at(self, at: int, offset: int) -> int | None:
        """Return the number of the frame a byte belongs to; None for the header of the segment."""
        index = bisect_right(self.starts[at], offset) - 1
        return self.firsts[at] + index if index >= 0 else None

    def flip(self, at: int, offset: int, bit: int) -> None:
        with self.files[at].open("r+b") as file:
            file.seek(offset)
            file.write(bytes([self.content[at][offset] ^ 1 << bit]))

    def mend(self, at: int, offset: int) -> None:
        """Put everything back as it was."""
        if self.files[at].stat().st_size != len(self.content[at]):  # the last one was cut
            self.files[at].write_bytes(self.content[at])
        with self.files[at].open("r+b") as file:
            file.seek(offset)
            file.write(self.content[at][offset : offset + 1])
        for entry in self.path.iterdir():
            if entry.name.startswith("seg-") and entry not in self.files:
                entry.unlink()
        shutil.rmtree(self.path / "quarantine", ignore_errors=True)


def check_flip(spool: Damaged, opener: Opener, at: int, offset: int, bit: int, result: Any) -> float:
    """Flip a bit, open, read the segment, put the bit back; return how long the start took."""
    where = f"bit {bit} of byte {offset} of segment {at}"
    touched = spool.frame_at(at, offset)
    spool.flip(at, offset, bit)
    try:
        report = verify(spool.path) if len(spool.files) < 4 else None
        with opener.open(spool.path, segment_bytes=spool.segment_bytes) as opened:
            first, end = spool.firsts[at], spool.end_of(at)
            frames, lost = opened.read(first, end)
            found = {frame.seq: frame.payload for frame in frames if first <= frame.seq < end}
            counted = opened.log.stats()
            secs = opened.secs
            observed = opened.observer
    finally:
        spool.mend(at, offset)
    missing = set(range(first, end)) - found.keys()
    result.tried += 1
    result.corrupt += sum(payload != spool.payloads[seq] for seq, payload in found.items())
    result.losses += len(missing - {touched})
    assert all(payload == spool.payloads[seq] for seq, payload in found.items()), (
        f"{where}: a corrupt frame was delivered"
    )
    assert missing <= {touched}, f"{where}: frames are lost that it did not touch: {missing}, it touched {touched}"
    assert touched is None or missing, f"{where}: the frame it touched was delivered"
    # That a last frame ever was there, only its header knows; one that hits that header cannot be counted.
    is_unknown = touched == len(spool.payloads) - 1 and offset < spool.starts[at][-1] + FRAME_HEADER_BYTES
    if not is_unknown:
        assert lost == counted.lost_events == observed.lost_frames == len(missing), where
    size = FRAME_HEADER_BYTES + len(spool.payloads[touched]) if touched is not None else 0
    assert counted.corrupt_bytes == observed.corrupt_bytes == size, where
    if report is not None and not is_unknown:
        assert sum(gap.n_events for gap in report.gaps) == lost, where
        assert sum(item.length for item in report.corrupt) == size, where
    return secs


def test_any_bit_of_a_region_costs_at_most_the_frame_it_is_in(scale, row):
    step = scale(67, 1)
    with (
        row("A8", what=f"every {step}. bit of the first 4 KiB of a segment flipped", unit="flips") as result,
        fast_directory() as path,
        quiet(),
        closing(Opener()) as opener,
    ):
        result.bound = "0 corrupt, lost only what was touched, start <= 2 s"
        payloads = [payload_of(number, 20 + number * 37 % 300) for number in range(40)]
        write_spool(path / "spool", payloads, segment_bytes=8192)
        spool = Damaged(path / "spool", payloads, 8192)
        assert len(spool.files) == 2
        slowest = max(
            check_flip(spool, opener, at, bit // 8, bit % 8, result)
            for at in (0, 1)
            for bit in range(at, min(REGION_BYTES, len(spool.content[at])) * 8, step)
        )
        result.note(f"slowest start {slowest:.3f} s")
        assert slowest <= START_SECS


def test_random_bits_of_a_large_spool_cost_at_most_the_frame_they_are_in(scale, row):
    megabytes, flips = scale(4, 64), scale(150, 2000)
    with (
        row("A8", what=f"random bits of a spool of {megabytes} MiB flipped, one at a time", unit="flips") as result,
        fast_directory() as path,
        quiet(),
        closing(Opener()) as opener,
    ):
        result.bound = "0 corrupt, lost only what was touched, start <= 2 s"
        dice = random.Random(8)
        payloads = [payload_of(number, dice.choice([30, 300, 1000, 3000])) for number in range(megabytes * 920)]
        write_spool(path / "spool", payloads, segment_bytes=1 << 20)
        spool = Damaged(path / "spool", payloads, 1 << 20)
        result.note(f"{len(payloads)} frames in {len(spool.files)} segments")
        slowest = 0.0
        for _ in range(flips):
            at = dice.randrange(len(spool.files))
            offset, bit = dice.randrange(len(spool.content[at])), dice.randrange(8)
            slowest = max(slowest, check_flip(spool, opener, at, offset, bit, result))
        result.note(f"slowest start {slowest:.3f} s")
        assert slowest <= START_SECS
