"""B3: a limit on the size of files, just above one segment and just below, at start and in the middle of a segment."""

from __future__ import annotations

from typing import Any

import orjson
from harness import disks, filling, needs, oracle
from harness.load import EVENT

SEGMENT_BYTES = 256 * 1024
JUST_ABOVE, JUST_BELOW = SEGMENT_BYTES + 4096, SEGMENT_BYTES - 4096


def test_b3_a_limit_on_file_sizes_is_a_full_disk(rig: Any, row: Any, scale: Any) -> None:
    what = "RLIMIT_FSIZE just above and just below a segment, at start and while running"
    with row("B3", what=what, unit="limits", bound="0 lost, no death, resumes within 2 s") as found:
        needs.tool(found, "prlimit")
        target = rig.target()
        rig.configure({"crm": rig.http_sink(target)}, spool={"segment_bytes": SEGMENT_BYTES})
        gateway = rig.start(wrap=["prlimit", f"--fsize={JUST_ABOVE}:unlimited", "--"])
        assert rig.probe(gateway).status == 200
        _a_frame_larger_than_the_limit(gateway)
        assert rig.probe(gateway).status == 200, "one frame that is too large is nobody else's problem"
        found.tried += 1

        loads, slowest = [], 0.0
        for number in range(scale(8, 28)):
            load = rig.load(f"r{number}", least_bytes=filling.LEAST_BYTES)
            loads.append(load)
            filling.wait_for_acks(load, 10)
            _limit(gateway, JUST_BELOW)
            filling.wait_until_quiet(load)
            told = rig.probe(gateway, **filling.LARGER_THAN_LEFT)
            assert (told.status, told.code) == (503, "busy.full")
            assert not gateway.is_ready()
            oracle.wait_for(lambda: not gateway.pending("crm"), 10, "all delivered while files may not grow")
            _limit(gateway, JUST_ABOVE)
            slowest = max(slowest, filling.wait_for_acks(load))
            filling.expect_answers(load.stop(), "busy.full")
            found.tried += 1
            written = _refused_half_way(gateway)
            if written and number + 1 >= scale(1, 20):  # whether a write is under way at the limit is chance
                break
        assert written, "no write was ever refused half-way"
        rig.settle(gateway, ["crm"])
        assert gateway.stop()[0] == 0

        gateway = rig.start(wrap=["prlimit", f"--fsize={JUST_BELOW}:unlimited", "--"])
        told = rig.probe(gateway)
        assert (told.status, told.code) == (503, "busy.full")
        assert not gateway.is_ready()
        _limit(gateway, JUST_ABOVE)
        slowest = max(slowest, oracle.wait_for(lambda: rig.probe(gateway).status == 200, 2.0, "it takes events"))
        found.tried += 1
        found.note(f"ingest resumed within {slowest:.2f} s of a higher limit; {len(written)} writes refused half-way")
        rig.settle(gateway, ["crm"])
        rig.is_alive(gateway, target)
        rig.check(found, loads, target.delivered(), duplicates=0)
        assert gateway.stop()[0] == 0


def _refused_half_way(gateway: Any) -> list[dict[str, Any]]:
    lines = (line for line in gateway.log_lines() if line["event"] == "the spool could not be written")
    return [line for line in lines if "File too large" in line["error"]]


def _a_frame_larger_than_the_limit(gateway: Any) -> None:
    events = [{**EVENT, "event_id": f"large-{at}", "extras": {"pad": "x" * 50_000}} for at in range(8)]
    status, answer = gateway.request("POST", "/ingest/batch", orjson.dumps(events))
    assert (status, b"busy.full" in answer) == (503, True)


def _limit(gateway: Any, n_bytes: int) -> None:
    disks.run("prlimit", f"--pid={gateway.pid}", f"--fsize={n_bytes}:unlimited")
