"""Whatever happens at the sinks, the books balance: every accepted event has exactly one outcome or is pending."""

from __future__ import annotations

import random
from typing import Any

import pytest

from edge.api import PermanentError, RetryableError
from edge.delivery.batcher import Batcher
from edge.outcomes import SinkOutcome
from edge.spool.format import REPLAY


def mixture(rng: random.Random) -> Any:
    """Return a target that does everything a target can do, by chance."""

    def answer(batch: Any) -> Any:
        roll = rng.random()
        if roll < 0.15:
            return RetryableError("busy", retry_after=rng.choice([None, 0.5]))
        if roll < 0.2:
            return rng.choice([RuntimeError("a bug"), SystemExit(1), TimeoutError()])
        if roll < 0.3:
            return PermanentError("no", divide=rng.random() < 0.7)
        if roll < 0.45:
            errors = [RetryableError("429"), PermanentError("400"), KeyError("x")]
            return {i: rng.choice(errors) for i in range(len(batch)) if rng.random() < 0.3}
        if roll < 0.47:
            return "nonsense"
        return None

    return answer


@pytest.mark.parametrize("seed", range(6))
async def test_books_balance_after_a_random_mixture(
    spool: Any, station: Any, new_sink: Any, until: Any, clock: Any, expect_log: list[str], seed: int
) -> None:
    expect_log += ["dead letters", "circuit opened", "still failing"]
    rng = random.Random(seed)
    when = (lambda event: event["n"] % 5 != 0) if seed % 2 else None
    st = station(new_sink(when=when), clock=clock, max_events=rng.choice([3, 20, 200]), max_secs=1.0)
    st.sink.answer = mixture(rng)
    st.start()
    base, foreign = spool.log.durable_seq, 0
    for round_number in range(4):
        for _ in range(rng.randrange(1, 12)):
            await spool.put(rng.randrange(1, 30))
            if rng.random() < 0.1:
                foreign += 1
                await spool.put(1, kind=REPLAY, sink="archive")
        if round_number in (1, 2):
            await st.worker.stop(1)
            st.assert_balanced()
            await spool.restart()
            st.start()
            st.assert_balanced()
    st.sink.answer = None
    await until(lambda: st.settled)
    st.assert_balanced()
    cursor = st.worker.snapshot().cursor
    accepted = spool.log.durable_seq - base
    assert accepted == cursor.delivered + cursor.dead_lettered + cursor.skipped
    counted = st.observer.outcomes
    assert cursor.delivered == counted["crm", SinkOutcome.DELIVERED]
    assert cursor.dead_lettered == counted["crm", SinkOutcome.DEAD_LETTERED]
    assert cursor.skipped == counted["crm", SinkOutcome.SKIPPED] + foreign
    assert sum(counted.values()) == accepted - foreign
    assert cursor.lost == 0
    letters = await st.letters()
    assert len(letters) == cursor.dead_lettered == st.store.count()
    somewhere = {*st.sink.taken, *(letter.line for letter in letters)}
    assert cursor.delivered + cursor.dead_lettered == len(somewhere)


@pytest.mark.parametrize("name", ["skipped", "foreign", "lost"])
async def test_books_notice_an_event_that_is_counted_twice(
    spool: Any, station: Any, new_sink: Any, eventually: Any, monkeypatch: Any, expect_log: list[str], name: str
) -> None:
    expect_log.append("the spool has lost events")
    real, wrong = Batcher.cut, 0

    def cut(self: Batcher) -> Any:
        nonlocal wrong
        window = real(self)
        for item in window.passed[:1]:
            setattr(item, name, getattr(item, name) + wrong)
        return window

    monkeypatch.setattr(Batcher, "cut", cut)
    st = station(new_sink(when=lambda event: event["n"] % 2 == 0))
    st.start()
    await spool.put(10)
    await eventually(lambda: st.settled)
    st.assert_balanced()
    wrong = 1
    await spool.put(10)
    await eventually(lambda: st.settled)
    with pytest.raises(AssertionError):
        st.assert_balanced()


async def test_books_notice_skipped_events_that_nobody_counts(
    spool: Any, station: Any, new_sink: Any, eventually: Any, monkeypatch: Any
) -> None:
    real = Batcher._matching

    def forgetful(self: Batcher, when: Any, seqs: Any, lines: Any, passed: Any) -> Any:
        kept = real(self, when, seqs, lines, passed)
        passed[0].skipped -= 1
        return kept

    monkeypatch.setattr(Batcher, "_matching", forgetful)
    st = station(new_sink(when=lambda event: event["n"] > 3))
    st.start()
    await spool.put(10)
    await eventually(lambda: st.settled)
    cursor = st.worker.snapshot().cursor
    assert cursor.position == cursor.base + cursor.delivered + cursor.skipped + 1
    with pytest.raises(AssertionError):
        st.assert_balanced()


async def test_books_of_a_sink_leave_out_what_is_replayed_for_another(
    spool: Any, station: Any, eventually: Any
) -> None:
    st = station()
    st.start()
    await spool.put(4)
    await spool.put(3, kind=REPLAY, sink="archive")
    await eventually(lambda: st.settled)
    assert st.observer.outcomes == {("crm", SinkOutcome.DELIVERED): 4}
    assert st.worker.snapshot().cursor.skipped == 3
    st.assert_balanced()
