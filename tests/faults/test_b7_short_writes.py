"""B7: the system takes only a few bytes of every write: nothing is lost, nothing is torn."""

from __future__ import annotations

from contextlib import closing

import pytest
from harness.crashcheck import Checker, Known
from harness.fastdir import fast_directory, quiet
from harness.scripted import SEGMENT_BYTES, SHARD, SINKS, Script, recorded
from harness.simfs import Disk, materialise


@pytest.mark.parametrize("largest", [1, 13, 32, 511, 4097])
def test_short_writes_lose_nothing_and_tear_nothing(scale, row, largest):
    with (
        row("B7", what=f"every pwritev takes at most {largest} bytes", unit="writes") as result,
        fast_directory() as path,
        quiet(),
    ):
        result.bound = "0 lost, 0 corrupt"
        (path / "run").mkdir()
        script = Script(path / "run", scale(12, 100), largest_writes=(largest,))
        with recorded(script):
            trace = script.run()
        sizes = [len(op.data) for op in trace if op.kind == "write"]
        result.tried = len(sizes)
        assert max(sizes) <= largest
        disk, known = Disk(), Known()
        for op in trace:
            disk.apply(op)
            if op.kind == "note":
                known.learn(op.note)
        assert len(known.acked) >= scale(12, 100)
        with closing(Checker(known, segment_bytes=SEGMENT_BYTES)) as checker:
            for words, kept in (("after the end", disk.optional()), ("after a power cut", ())):
                root = path / words
                root.mkdir()
                materialise(disk.image(kept), root)
                found = checker.check(root, f"spool/{SHARD}", "dead-letters", SINKS)
                result.losses += found.lost
                result.corrupt += found.corrupt
                assert not found.problems, f"{words}: {found.problems[:5]}"
