"""A5: every state that a power cut can leave of a scripted run, one after the other."""

from __future__ import annotations

import shutil
from contextlib import ExitStack, closing
from pathlib import Path

from harness.crashcheck import Checker, Known
from harness.fastdir import fast_directory, quiet
from harness.scripted import SEGMENT_BYTES, SHARD, SINKS, Script, recorded
from harness.simfs import Disk, Op, materialise


def record(root: Path, steps: int) -> list[Op]:
    root.mkdir()
    script = Script(root, steps)
    with recorded(script):
        return script.run()


def check_script(trace: list[Op]) -> None:
    """See that the run has in it what the row is about; without that it would prove nothing."""
    segments = [op.other for op in trace if op.kind == "rename" and op.other.endswith(".log")]
    released = [op.path for op in trace if op.kind == "unlink" and op.path.endswith(".log")]
    notes = [op.note[0] for op in trace if op.kind == "note"]
    assert sum(name.startswith("spool/") for name in segments) > 3
    assert sum(name.startswith("dead-letters/") for name in segments) >= 1
    assert sum(name.startswith("spool/") for name in released) >= 2
    assert notes.count("taken") >= 1
    assert notes.count("acked") >= notes.count("sent") > 50


def test_no_state_after_a_power_cut_breaks_a_promise(scale, row):
    with (
        row("A5", what="states after a power cut at any call of a scripted run", unit="states") as result,
        fast_directory() as path,
        quiet(),
        ExitStack() as resources,
    ):
        result.bound = "0 violations"
        trace = record(path / "run", scale(60, 200))
        check_script(trace)
        every = scale(41, 11)
        disk, known = Disk(), Known()
        checker = resources.enter_context(closing(Checker(known, segment_bytes=SEGMENT_BYTES)))
        seen: set[int] = set()
        offered = 0
        for at, op in enumerate(trace):
            disk.apply(op)
            if op.kind == "note":
                known.learn(op.note)
            for words, image_of in disk.images():
                offered += 1
                if offered % every:
                    continue
                image = image_of()
                seen.add(hash(frozenset(image.items())))
                root = path / "state"
                root.mkdir()
                materialise(image, root)
                found = checker.check(root, f"spool/{SHARD}", "dead-letters", SINKS)
                result.tried = len(seen)
                result.losses += found.lost
                result.corrupt += found.corrupt
                assert not found.problems, f"{words}, after operation {at} of {len(trace)}: {found.problems[:5]}"
                shutil.rmtree(root)
        result.note(f"{offered} states of {len(trace)} operations, every {every}th opened, all different ones counted")
        result.note(f"slowest start {checker.slowest_secs:.2f} s")
        assert len(seen) >= scale(200, 2000)
