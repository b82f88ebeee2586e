from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from edge.config.model import BatchOptions, Condition
from edge.delivery.batcher import FRAMES_AT_ONCE, Batcher
from edge.delivery.window import Window
from edge.spool.format import EVENTS, MARK, REPLAY, Frame
from edge.spool.reader import ReadResult


def never() -> bool:
    return False


@pytest.fixture
def batcher(spool: Any) -> Callable[..., Batcher]:
    def build(
        position: int | None = None,
        when: Condition | None = None,
        max_events: int = 100,
        max_bytes: int = 1 << 20,
    ) -> Batcher:
        start = spool.log.first_seq if position is None else position
        return Batcher("crm", spool.log, start, BatchOptions(max_events, max_bytes, 1.0), when)

    return build


def numbers(window: Window) -> list[int]:
    return [orjson.loads(line)["n"] for line in lines(window)]


def lines(window: Window) -> list[bytes]:
    return [window.stored(index)[1] for index in range(len(window))]


def cut_all(batcher: Batcher) -> list[Window]:
    windows = []
    while True:
        batcher.fill(0.0, never)
        if not batcher.behind:
            return windows
        windows.append(batcher.cut())


def check(windows: list[Window], start: int, end: int) -> dict[str, int]:
    """Check that windows join without a hole and return the sum of what they pass."""
    totals = {"events": 0, "skipped": 0, "foreign": 0, "lost": 0}
    for window in windows:
        assert window.start == start
        start = window.end
        window.settle(range(len(window)), 1)
        progress = window.advance()
        assert progress is not None
        totals["events"] += progress.delivered
        totals["skipped"] += progress.skipped
        totals["foreign"] += progress.foreign
        totals["lost"] += progress.lost
    assert start == end
    assert sum(totals.values()) == end - windows[0].start
    return {name: total for name, total in totals.items() if total}


async def test_batcher_cuts_by_count_across_frames(spool: Any, batcher: Any) -> None:
    start = await spool.put(7)
    for _ in range(6):
        await spool.put(3)
    windows = cut_all(batcher(start, max_events=10))
    assert [len(window) for window in windows] == [10, 10, 5]
    assert [n for window in windows for n in numbers(window)] == list(range(25))
    check(windows, start, spool.log.durable_seq)


async def test_batcher_cuts_a_large_frame_into_several_batches(spool: Any, batcher: Any) -> None:
    start = await spool.put(250)
    windows = cut_all(batcher(start, max_events=100))
    assert [len(window) for window in windows] == [100, 100, 50]
    ids = [window.batch("s", range(len(window))).id for window in windows]
    assert [one.rpartition("-")[0] for one in ids] == [
        f"s-{start + a}-{start + b}" for a, b in [(0, 99), (100, 199), (200, 249)]
    ]


async def test_batcher_cuts_by_bytes(spool: Any, batcher: Any) -> None:
    start = await spool.put(10, size=1000)
    windows = cut_all(batcher(start, max_bytes=3500))
    assert [len(window) for window in windows] == [3, 3, 3, 1]
    assert all(sum(map(len, lines(window))) <= 3500 for window in windows)


async def test_batcher_sends_an_oversized_event_alone(spool: Any, batcher: Any) -> None:
    start = await spool.put(2)
    await spool.put(1, size=5000)
    await spool.put(2)
    windows = cut_all(batcher(start, max_bytes=1000))
    assert [numbers(window) for window in windows] == [[0, 1], [2], [3, 4]]


async def test_batcher_begins_in_the_middle_of_a_frame(spool: Any, batcher: Any) -> None:
    start = await spool.put(10)
    windows = cut_all(batcher(start + 4))
    assert numbers(windows[0]) == [4, 5, 6, 7, 8, 9]
    assert windows[0].start == start + 4


async def test_batcher_skips_what_when_does_not_match(spool: Any, batcher: Any) -> None:
    start = await spool.put(30)
    windows = cut_all(batcher(start, when=lambda event: event["n"] % 3 == 0, max_events=4))
    assert [n for window in windows for n in numbers(window)] == list(range(0, 30, 3))
    assert check(windows, start, spool.log.durable_seq) == {"events": 10, "skipped": 20}


async def test_batcher_returns_a_window_without_events_when_all_are_skipped(spool: Any, batcher: Any) -> None:
    start = await spool.put(500)
    made = batcher(start, when=lambda _: False)
    windows = cut_all(made)
    assert check(windows, start, spool.log.durable_seq) == {"skipped": 500}
    assert made.empty
    assert made.wanted_events() == 100


async def test_batcher_delivers_events_whose_condition_raises(spool: Any, batcher: Any) -> None:
    start = await spool.put_lines([b'{"n": 0}', b"not json", b'{"n": 2}'])
    made = batcher(start, when=lambda event: event["n"] > 1)
    windows = cut_all(made)
    assert lines(windows[0]) == [b"not json", b'{"n": 2}']
    assert made.unparsed_events == 1


async def test_batcher_takes_replayed_events_of_its_own_sink_only(spool: Any, batcher: Any) -> None:
    start = await spool.put(1)
    await spool.put(2, kind=REPLAY, sink="crm")
    await spool.put(2, kind=REPLAY, sink="archive")
    await spool.put(1)
    windows = cut_all(batcher(start))
    assert [n for window in windows for n in numbers(window)] == [0, 1, 2, 5]
    assert check(windows, start, spool.log.durable_seq) == {"events": 4, "foreign": 2}


async def test_batcher_passes_frames_that_hold_no_events(spool: Any, batcher: Any) -> None:
    start = await spool.put(1)
    await spool.log.append(b'{"action":"x"}', 1, MARK)
    await spool.log.append(b"\xff\xfe not ours", 3)
    await spool.log.append(b"[1,2]\n{}", 1)
    await spool.log.append(b'{"key":"web"}\n{}', 2)
    await spool.put(1)
    made = batcher(start)
    windows = cut_all(made)
    assert [n for window in windows for n in numbers(window)] == [0, 1]
    assert check(windows, start, spool.log.durable_seq) == {"events": 2, "foreign": 1, "lost": 6}
    assert made.unreadable_events == 6


def test_batcher_passes_a_frame_of_events_that_says_it_has_none() -> None:
    """Nothing of ours writes one; a spool may come from anywhere."""

    class ThreeFrames:
        durable_seq = 2

        def read(self, position: int, max_bytes: int) -> ReadResult:
            payload = b'{}\n{"n":%d}'
            frames = [Frame(EVENTS, seq, n, payload % seq, "segment", 0) for seq, n in [(0, 1), (1, 0), (1, 1)]]
            return ReadResult(frames, position=2)

    batcher = Batcher("crm", ThreeFrames(), 0, BatchOptions(100, 1 << 20, 1.0), None)
    window, *more = cut_all(batcher)
    assert not more
    assert list(window.seqs) == numbers(window) == [0, 1]
    assert check([window], 0, 2)["events"] == 2


async def test_batcher_keeps_the_metadata_of_each_events_frame(spool: Any, batcher: Any) -> None:
    start = await spool.put(2, key="web", request_id="a")
    await spool.put(1, key="app", request_id="b", traceparent="00-1")
    [window] = cut_all(batcher(start))
    assert [window.metadata(index).key_id for index in range(3)] == ["web", "web", "app"]
    assert [window.stored(index)[0]["request_id"] for index in range(3)] == ["a", "a", "b"]
    assert window.metadata(2).traceparent == "00-1"


async def test_batcher_wants_more_events_as_long_as_bytes_allow(spool: Any, batcher: Any) -> None:
    start = await spool.put(1, size=900)
    made = batcher(start, max_events=1000, max_bytes=10_000)
    assert made.wanted_events() == 1
    made.fill(0.0, never)
    assert 1 < made.wanted_events() <= 10
    assert not made.full
    await spool.put(10, size=900)
    made.fill(0.0, never)
    assert made.full


async def test_batcher_wants_as_many_as_some_frames_hold_however_few_of_them_it_keeps(spool: Any, batcher: Any) -> None:
    start = spool.log.durable_seq
    for _ in range(40):
        await spool.put(1)
    one_in_ten = batcher(start, max_events=5000, when=lambda event: event["n"] % 10 == 0)
    one_in_ten.fill(0.0, never)
    assert one_in_ten.wanted_events() == FRAMES_AT_ONCE
    all_of_them = batcher(start, max_events=5000)
    all_of_them.fill(0.0, never)
    assert all_of_them.wanted_events() == FRAMES_AT_ONCE
    for _ in range(5):
        await spool.put(30, kind=REPLAY, sink="archive")
    all_of_them.fill(0.0, never)
    assert all_of_them.wanted_events() == min(5000 - 40, 30 * FRAMES_AT_ONCE)
    await spool.put(1)  # what frames held long ago says nothing
    all_of_them.fill(0.0, never)
    assert all_of_them.wanted_events() == FRAMES_AT_ONCE


@pytest.mark.parametrize("size", [1, 1 << 20])
async def test_batcher_passes_metadata_that_nothing_of_ours_wrote(spool: Any, batcher: Any, size: int) -> None:
    """A time that is no text is an unknown time; what could not be written again, in a dead letter, is unreadable."""
    start = spool.log.durable_seq
    deep = b'{"key":' + b"[" * 300 + b"]" * 300 + b"}"
    for head in (b'{"received_at":5}', b'{"received_at":null}', deep, b'{"key":"%b"}' % (b"[" * 600)):
        await spool.log.append(head + b'\n{"n":1}', 1)
    made = batcher(start, max_bytes=size)
    windows = cut_all(made)
    assert check(windows, start, spool.log.durable_seq) == {"events": 3, "lost": 1}
    assert made.unreadable_events == 1
    for window in windows:
        assert len(window) == 0 or window.batch("shard", range(len(window))).lines


async def test_batcher_stops_reading_when_told(spool: Any, batcher: Any) -> None:
    start = await spool.put(1000, size=200)
    for _ in range(4):
        await spool.put(1000, size=200)
    made = batcher(start, max_events=100_000, max_bytes=1 << 30)
    made.fill(0.0, lambda: True)
    assert start < made.read_position < spool.log.durable_seq


async def test_batcher_counts_a_hole_in_the_spool_as_lost(spool: Any, batcher: Any, expect_log: list[str]) -> None:
    expect_log += ["of the spool are lost", "the spool was opened"]
    start = await spool.put(5)
    hole = 40
    await spool.log.close()
    spool.log = spool._open(spool.log.durable_seq + hole)
    await spool.put(5)
    windows = cut_all(batcher(start))
    assert [n for window in windows for n in numbers(window)] == list(range(10))
    assert check(windows, start, spool.log.durable_seq) == {"events": 10, "lost": hole}


@pytest.mark.parametrize("seed", range(20))
async def test_batcher_counts_every_event_once_however_frames_are_cut(
    spool: Any, batcher: Any, expect_log: list[str], seed: int
) -> None:
    expect_log += ["of the spool are lost", "the spool was opened"]
    rng = random.Random(seed)
    start, expected = spool.log.durable_seq, Counter[str]()
    for _ in range(rng.randrange(5, 25)):
        n = rng.randrange(1, 12)
        kind = rng.choice(["ours", "ours", "ours", "replay", "foreign", "mark", "unreadable", "hole"])
        match kind:
            case "ours" | "replay":
                expected["skipped"] += sum((spool.n + i) % 3 != 0 for i in range(n))
                expected["events"] += sum((spool.n + i) % 3 == 0 for i in range(n))
                await spool.put(n, **({"kind": REPLAY, "sink": "crm"} if kind == "replay" else {}))
            case "foreign":
                expected["foreign"] += n
                await spool.put(n, kind=REPLAY, sink="archive")
            case "mark":
                expected["foreign"] += n
                await spool.log.append(b'{"action":"x"}', n, MARK)
            case "unreadable":
                expected["lost"] += n
                await spool.log.append(b"\xff\xfe not ours", n)
            case "hole":
                expected["lost"] += n
                await spool.log.close()
                spool.log = spool._open(spool.log.durable_seq + n)
    made = batcher(start, when=lambda event: event["n"] % 3 == 0, max_events=rng.choice([1, 2, 7, 100]))
    windows = []
    while spool.log.durable_seq > made.read_position or made.behind:
        made.fill(0.0, lambda: rng.random() < 0.5)
        windows.append(made.cut())
    # A hole at the end shows only once a frame follows it.
    assert Counter(check(windows, start, windows[-1].end)) == expected - Counter(
        lost=spool.log.durable_seq - windows[-1].end
    )
