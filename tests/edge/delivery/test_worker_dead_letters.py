from __future__ import annotations

from typing import Any

from edge.api import PermanentError, RetryableError
from edge.delivery.circuit import CircuitState
from edge.outcomes import AttemptResult, SinkOutcome
from edge.spool.errors import SpoolFullError
from edge.spool.format import EVENTS
from edge.spool.log import Log

DELIVERED, DEAD = SinkOutcome.DELIVERED, SinkOutcome.DEAD_LETTERED


async def test_worker_makes_dead_letters_of_what_is_refused_for_good(
    spool: Any, station: Any, clock: Any, until: Any, expect_log: list[str]
) -> None:
    expect_log.append("dead letters")
    st = station(clock=clock, max_events=3)
    st.sink.script = [RetryableError("busy"), PermanentError("400: no such table"), None]
    worker = st.start()
    start = await spool.put(6, request_id="req-7")
    await until(lambda: st.settled)
    assert st.sink.numbers() == [3, 4, 5]
    letters = await st.letters()
    assert [letter.line for letter in letters] == list(st.sink.attempts[0].lines)
    letter = letters[0]
    assert (letter.sink, letter.reason, letter.attempts) == ("crm", "permanent", 2)
    assert (letter.first_error, letter.last_error) == ("busy", "400: no such table")
    assert letter.metadata.request_id == "req-7"
    assert letter.event_id == "evt_0"
    assert abs(letter.died_at.timestamp() - clock.time()) < 0.001
    assert worker.snapshot().cursor.position == start + 6
    assert worker.snapshot().dead_letters == 3
    assert st.observer.outcomes == {("crm", DELIVERED): 3, ("crm", DEAD): 3}
    st.assert_balanced()


async def test_worker_counts_dead_letters_it_is_told_not_to_keep(
    spool: Any, station: Any, eventually: Any, expect_log: list[str]
) -> None:
    expect_log.append("not kept")
    st = station(dead_letter=False)
    st.sink.answer = lambda _: PermanentError("no")
    worker = st.start()
    await spool.put(4)
    await eventually(lambda: st.settled)
    assert worker.snapshot().cursor.dead_lettered == 4
    assert not st.store.path.exists()


async def test_worker_divides_a_batch_to_find_the_bad_event(
    spool: Any, station: Any, eventually: Any, expect_log: list[str]
) -> None:
    expect_log.append("dead letters")
    st = station(max_events=64)

    def judge(batch: Any) -> None:
        if any(event["n"] == 37 for event in batch.events):
            raise PermanentError("bad row", divide=True)

    st.sink.answer = judge
    st.start()
    await spool.put(64)
    await eventually(lambda: st.settled)
    assert st.sink.numbers() == [n for n in range(64) if n != 37]
    assert [letter.event_id for letter in await st.letters()] == ["evt_37"]
    assert len(st.sink.attempts) == 2 * 6 + 1
    ids = [batch.id for batch in st.sink.attempts]
    assert len(set(ids)) == len(ids)
    st.assert_balanced()


async def test_worker_retries_only_the_events_the_target_did_not_take(
    spool: Any, station: Any, clock: Any, until: Any, expect_log: list[str]
) -> None:
    expect_log.append("dead letters")
    st = station(clock=clock, max_events=10)
    st.sink.script = [
        {2: RetryableError("429"), 5: PermanentError("too old"), 7: ValueError("a bug")},
        {1: RetryableError("429", retry_after=7)},
        None,
    ]
    worker = st.start()
    await spool.put(10)
    await until(lambda: st.settled)
    assert [[event["n"] for event in batch.events] for batch in st.sink.attempts] == [list(range(10)), [2, 7], [7]]
    assert len({batch.id for batch in st.sink.attempts}) == 3
    [letter] = await st.letters()
    assert (letter.event_id, letter.reason, letter.last_error) == ("evt_5", "permanent", "too old")
    assert worker.snapshot().cursor.delivered == 9
    assert worker.snapshot().circuit == CircuitState.CLOSED
    assert clock.now >= 1007
    assert st.observer.results == {AttemptResult.RETRYABLE: 2, AttemptResult.OK: 1}
    st.assert_balanced()


async def test_worker_takes_nonsense_as_an_answer_for_a_refusal(
    spool: Any, station: Any, eventually: Any, expect_log: list[str]
) -> None:
    expect_log.append("dead letters")
    st = station(max_events=1)
    st.sink.script = ["done", {9: RetryableError()}, {0: "no"}, {"0": PermanentError()}, [0], {}]
    st.start()
    await spool.put(6)
    await eventually(lambda: st.settled)
    letters = await st.letters()
    assert [letter.reason for letter in letters] == ["invalid_result"] * 5
    assert "returned a str" in letters[0].last_error
    st.assert_balanced()


async def test_worker_gives_up_after_the_time_allowed(
    spool: Any, station: Any, clock: Any, until: Any, expect_log: list[str]
) -> None:
    expect_log += ["dead letters", "circuit opened", "still failing"]
    st = station(clock=clock, give_up_secs=90)
    st.sink.answer = lambda batch: RetryableError("down") if batch.events[0]["n"] == 0 else None
    st.start()
    await spool.put(2)
    started = clock.now
    await until(lambda: st.settled)
    assert 90 <= clock.now - started < 91
    letters = await st.letters()
    assert [letter.reason for letter in letters] == ["gave_up"] * 2
    assert letters[0].attempts == len(st.sink.attempts)
    await spool.put(1)
    await until(lambda: st.settled)
    assert st.sink.numbers() == [2]


async def test_worker_gives_up_although_the_sink_does_not_open(
    spool: Any, station: Any, clock: Any, until: Any, expect_log: list[str]
) -> None:
    expect_log += ["dead letters", "circuit opened"]
    st = station(clock=clock, give_up_secs=20)
    st.sink.script = [RetryableError("gone", open_circuit=True)]
    st.sink.open_script = [None, *[OSError("no route")] * 3, *[None]]
    st.start()
    await spool.put(1)
    await until(lambda: st.settled)
    [letter] = await st.letters()
    assert (letter.reason, letter.attempts, letter.first_error) == ("gave_up", 1, "gone")
    assert letter.last_error == "edge_open: OSError: no route"


async def test_worker_does_not_pass_dead_letters_it_could_not_write(
    spool: Any, station: Any, clock: Any, until: Any, eventually: Any, expect_log: list[str]
) -> None:
    expect_log += ["dead letters"]
    st = station(clock=clock)
    st.sink.script = [PermanentError("no")]
    worker = st.start()
    st.store.path.parent.mkdir(parents=True, exist_ok=True)
    st.store.path.write_text("a file where the directory should be")
    start = await spool.put(1)
    await eventually(lambda: clock.sleeping)
    await until(lambda: clock.now > 1010)
    assert worker.snapshot().cursor.position == start
    st.store.path.unlink()
    await until(lambda: st.settled)
    assert len(await st.letters()) == 1
    assert worker.snapshot().cursor.dead_lettered == 1


async def test_worker_adds_only_the_dead_letters_again_that_were_not_kept(
    spool: Any, station: Any, clock: Any, until: Any, monkeypatch: Any, expect_log: list[str]
) -> None:
    expect_log += ["dead letters"]
    st = station(clock=clock)
    st.sink.script = [PermanentError("no")]
    st.start()
    real, calls = Log.append, 0

    def append(self: Log, payload: bytes, n_events: int = 1, kind: int = EVENTS) -> Any:
        nonlocal calls
        if self is not spool.log:
            calls += 1
            if calls % 3 == 2 and calls < 9:
                raise SpoolFullError("no room")
        return real(self, payload, n_events, kind)

    monkeypatch.setattr(Log, "append", append)
    await spool.put(10)
    await until(lambda: st.settled)
    assert sorted(letter.event_id for letter in await st.letters()) == sorted(f"evt_{n}" for n in range(10))
    assert st.worker.snapshot().dead_letters == 10
    assert calls == 10 + 3


async def test_worker_tells_how_many_dead_letters_the_cap_pushed_out(
    spool: Any, station: Any, eventually: Any, caplog: Any, expect_log: list[str]
) -> None:
    expect_log += ["dead letters"]
    st = station(max_events=1)
    st.sink.answer = lambda _: PermanentError("no")
    worker = st.start()
    st.store._max_bytes, st.store._segment_bytes = 50_000, 8192
    for _ in range(30):
        await spool.put(1, size=4000)
    await eventually(lambda: st.settled)
    snapshot = worker.snapshot()
    assert snapshot.dead_letters_evicted > 0
    assert snapshot.dead_letters_evicted + snapshot.dead_letters == 30
    [levels] = [{record.levelname for record in caplog.records if "letters are full" in str(record.msg)}]
    assert levels == {"ERROR"}


async def test_every_dead_letter_is_said_in_the_end(
    spool: Any, station: Any, clock: Any, until: Any, expect_log: list[str], caplog: Any
) -> None:
    expect_log.append("dead letters")
    st = station(clock=clock, max_events=1)
    st.sink.script = [PermanentError("no")] * 7
    worker = st.start()
    await spool.put(7)
    await until(lambda: st.settled)

    def told() -> list[int]:
        return [record.msg["events"] for record in caplog.records if "dead letters" in record.msg.get("event", "")]

    assert told() == [1]
    worker.remind()
    assert told() == [1]  # too soon
    clock.advance(61)
    worker.remind()
    assert told() == [1, 6]
    worker.remind()
    assert told() == [1, 6]
