from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from edge.api import Block, EventMetadata
from edge.delivery.window import DEAD, DELIVERED, DROPPED, Passed, Window
from edge.event import event_metadata

METADATA: EventMetadata = event_metadata({})


def window(start: int, end: int, seqs: list[int], passed: list[Passed] | None = None) -> Window:
    n = len(seqs)
    return Window(start, end, seqs, [Block(METADATA, 1, b"{}")] * n, [{}] * n, passed or [])


@given(st.sets(st.integers(0, 40), min_size=1), st.sets(st.integers(0, 40), min_size=1))
def test_batch_id_is_the_same_only_for_the_same_events(one: set[int], other: set[int]) -> None:
    first, second = (window(0, 50, sorted(seqs)) for seqs in (one, other))
    same = first.batch("s", range(len(one))).id == second.batch("s", range(len(other))).id
    assert same == (one == other)


def test_batch_id_names_shard_and_positions() -> None:
    batch = window(7, 12, [7, 8, 9, 10, 11]).batch("shard-003", [1, 2, 3])
    assert batch.id.startswith("shard-003-8-10-")


def test_batch_id_differs_for_the_same_positions_of_another_spool() -> None:
    one, other = window(0, 2, [0, 1]), window(0, 2, [0, 1])
    other.metas[0] = {"received_at": "2025-10-09T08:53:20+00:00"}
    assert one.batch("s", [0, 1]).id != other.batch("s", [0, 1]).id


def test_window_stops_at_the_first_pending_event() -> None:
    part = window(10, 15, [10, 11, 12, 13, 14])
    part.settle([0, 1, 3], DELIVERED)
    progress = part.advance()
    assert progress is not None
    assert (progress.position, progress.delivered) == (12, 2)
    assert part.advance() is None
    part.settle([2], DEAD)
    progress = part.advance()
    assert progress is not None
    assert (progress.position, progress.delivered, progress.dead_lettered) == (14, 1, 1)
    assert part.first_pending() == 4


def test_window_without_events_passes_what_was_skipped_and_lost() -> None:
    progress = window(10, 30, [], [Passed(15, lost=5), Passed(30, skipped=12, foreign=3)]).advance()
    assert progress is not None
    assert (progress.position, progress.skipped, progress.foreign, progress.lost) == (30, 12, 3, 5)


def test_window_shows_what_was_counted_wrongly() -> None:
    progress = window(10, 30, [], [Passed(30, skipped=19)]).advance()
    assert progress is not None
    assert (progress.position, progress.skipped) == (30, 19)


@given(st.integers(0, 2**32), st.integers(1, 30))
def test_window_balances_whatever_order_events_settle_in(seed: int, n: int) -> None:
    rng = random.Random(seed)
    position, seqs, passed = 100, [], []

    def pass_some() -> None:
        nonlocal position
        for name in ("lost", "skipped", "foreign"):
            if n_events := rng.choice([0, 0, 0, 5]):
                position += n_events
                passed.append(Passed(position, **{name: n_events}))

    for _ in range(n):
        pass_some()
        seqs.append(position)
        position += 1
    pass_some()
    end = position
    part = window(100, end, seqs, passed)
    order = list(range(n))
    rng.shuffle(order)
    totals = [0, 0, 0, 0, 0]
    for index in order:
        part.settle([index], rng.choice([DELIVERED, DEAD]))
        progress = part.advance()
        if progress is not None:
            counts = (
                progress.delivered,
                progress.dead_lettered,
                progress.skipped,
                progress.foreign,
                progress.lost,
            )
            assert min(counts) >= 0
            totals = [total + count for total, count in zip(totals, counts, strict=True)]
            assert progress.position == 100 + sum(totals)
    assert 100 + sum(totals) == end
    assert totals[0] + totals[1] == n
    assert totals[4] == sum(item.lost for item in passed)


def test_drop_leaves_the_outcomes_that_are_there_and_what_lies_behind() -> None:
    part = window(10, 20, [10, 12, 13, 15, 19], [Passed(12, skipped=1), Passed(15, foreign=1), Passed(19, lost=3)])
    part.settle([1], DELIVERED)
    part.drop(15)
    assert list(part.outcomes) == [DROPPED, DELIVERED, DROPPED, 0, 0]
    progress = part.advance()
    assert progress is not None
    assert (progress.position, progress.dropped, progress.delivered) == (15, 2, 1)
    assert (progress.skipped, progress.foreign, progress.lost) == (1, 1, 0)
    part.drop(15)
    assert part.advance() is None
    part.drop(100)
    progress = part.advance()
    assert progress is not None
    assert (progress.position, progress.dropped, progress.lost) == (20, 2, 3)
