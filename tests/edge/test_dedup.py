"""What is remembered of stored events, against a model that keeps everything in a list."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edge.api import Context
from edge.dedup import WHOLE_BYTES, Dedup, Window
from edge.door import Door
from edge.event import frame_meta, pack, sent_ids, unpack
from edge.example import EXAMPLE_EVENT
from edge.judging import Candidates, Plan, Result
from edge.outcomes import Outcome
from edge.pipeline import Verdict
from edge.spool.errors import (
    SpoolBackpressureError,
    SpoolClosedError,
    SpoolError,
    SpoolFailedError,
    SpoolFullError,
    SpoolUnknownError,
)
from edge.validation import EventValidator

WINDOW_SECS = 10.0
WINDOW_EVENTS = 6
IDS = [f"evt_{number}" for number in range(8)]


class HandClock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.wall = 1_700_000_000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.wall

    async def sleep(self, secs: float) -> None:
        raise AssertionError("nothing here waits by the clock")


# The window.

key_number = st.integers(0, 9)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.sampled_from([0.0, 0.5, 3.0, 9.5, 10.0, 25.0])),
        st.tuples(st.just("add"), key_number),
        st.tuples(st.just("ask"), key_number),
    ),
    max_size=80,
)


@given(steps)
def test_window_remembers_exactly_what_a_list_does(taken: list[tuple[str, Any]]) -> None:
    window = Window(WINDOW_SECS, 4)
    now = 0.0
    stored: list[tuple[int, float]] = []  # the model: each id once, the newest last

    def known(number: int) -> bool:
        young = [(other, at) for other, at in stored if now - at < WINDOW_SECS]
        return number in [other for other, _ in young[-4:]]

    for what, value in taken:
        if what == "wait":
            now += value
        elif what == "ask":
            assert window.has(b"%d" % value, now) == known(value)
        elif not known(value):
            stored = [(other, at) for other, at in stored if other != value]
            stored.append((value, now))
            window.add(b"%d" % value, now)
            window.forget(now, 2)
        assert len(window) <= 4
    for number in range(10):
        assert window.has(b"%d" % number, now) == known(number)


def test_window_gives_the_room_of_old_ids_back_while_new_ones_come() -> None:
    window = Window(WINDOW_SECS, 1_000_000)
    for number in range(20_000):
        window.add(b"old-%d" % number, 0.0)
    assert len(window) == 20_000
    for number in range(10_000):
        window.add(b"new-%d" % number, WINDOW_SECS)
        window.forget(WINDOW_SECS, 2)
    assert len(window) == 10_000


def test_window_is_not_walked_through_by_the_garbage_collector() -> None:
    window = Window(WINDOW_SECS, 1_000_000)
    for number in range(100_000):
        window.add(b"key-%d" % number, float(number))
    gc.collect()
    tracked = [part for part in gc.get_objects() if isinstance(part, list | tuple | dict) and len(part) > 4096]
    assert not [part for part in tracked if b"key-4000" in part]


# Keys.


@given(st.text(min_size=1, max_size=200), st.text(min_size=1, max_size=200), st.sampled_from(["a", "b", "a:", ""]))
def test_different_ids_never_have_the_same_key(one: str, other: str, key_id: str) -> None:
    dedup = Dedup(WINDOW_SECS, WINDOW_EVENTS, HandClock())
    claim = dedup.claim(key_id)
    assert (claim.key(one) == claim.key(other)) == (one == other)
    assert dedup.claim(f"{key_id}x").key(one) != claim.key(one)


def test_long_id_takes_bounded_memory_and_is_told_from_what_it_is_shortened_to() -> None:
    claim = Dedup(WINDOW_SECS, WINDOW_EVENTS, HandClock()).claim("a")
    long = "x" * 30_000
    assert len(claim.key(long)) <= WHOLE_BYTES + 8
    assert claim.key(long) != claim.key(long[:-1])
    whole = claim.key("y" * WHOLE_BYTES)
    assert whole.endswith(b"y" * WHOLE_BYTES)
    assert whole != claim.key("y" * (WHOLE_BYTES + 1))


# How ids lie in a frame.


@pytest.mark.parametrize(
    "event_id", ["evt_1", 'with "quotes"', "back\\slash", "line\nbreak", "ünïcode \U0001f40c", "\x00", "a" * 300]
)
@pytest.mark.parametrize("fields", [("event_id", "extras"), ("extras", "event_id")])
def test_ids_are_read_from_a_frame_as_they_were_sent(event_id: str, fields: tuple[str, ...]) -> None:
    values = {"event_id": event_id, "extras": {"event_id": "inner"}}
    lines = [orjson.dumps({name: values[name] for name in fields}), orjson.dumps({"event_id": "renamed"})]
    meta, stored = unpack(pack(frame_meta(context("a"), "", {"1": "as sent"}), lines))
    assert sent_ids(meta, stored) == [event_id.encode(), b"as sent"]


# The door.


def context(key_id: str) -> Context:
    return Context(
        received_at=datetime.now(UTC), remote_ip="", key_id=key_id, headers={}, request_id="r", traceparent=""
    )


class Frame:
    """A frame the store was given and has not decided about."""

    def __init__(self, payload: bytes, future: asyncio.Future[int], decided: Callable[[bool], None] | None) -> None:
        meta, lines = unpack(payload)
        self.key_id: str = meta["key"]
        self.ids = [event_id.decode() for event_id in sent_ids(meta, lines)]
        self.future = future
        self.decided = decided

    def end(self, *, is_stored: bool, error: SpoolError | None) -> None:
        if not self.future.done():
            if error is None:
                self.future.set_result(0)
            else:
                self.future.set_exception(error)
        if self.decided is not None:
            self.decided(is_stored)


class HandStore:
    """A spool whose every answer the test gives."""

    def __init__(self) -> None:
        self.waiting: list[Frame] = []
        self.refusal: SpoolError | None = None
        self.look_at: Callable[[Frame], None] = lambda frame: None

    def append(
        self, payload: bytes, n_events: int = 1, *, decided: Callable[[bool], None] | None = None
    ) -> asyncio.Future[int]:
        if self.refusal is not None:
            raise self.refusal
        future = asyncio.get_running_loop().create_future()
        frame = Frame(payload, future, decided)
        assert len(frame.ids) == n_events
        self.look_at(frame)
        self.waiting.append(frame)
        return future


class SilentBooks:
    def received(self, key_id: str, n_events: int) -> None: ...
    def settled(self, outcome: Outcome, reason: str, n_events: int) -> None: ...


class HandPipeline:
    """Drops, renames, and counts what it is asked about."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.verdict: Callable[[dict[str, Any]], Verdict] = lambda event: Verdict(Outcome.ACCEPTED, "", event)

    def run(self, event: Any, context: Context) -> Verdict:
        self.seen.append(event["event_id"])
        return self.verdict(event)


def event(event_id: str) -> dict[str, Any]:
    return {**EXAMPLE_EVENT, "event_id": event_id}


class Bench:
    """A door between a store, a pipeline and a clock that the test holds in its hands."""

    def __init__(self) -> None:
        self.clock = HandClock()
        self.store = HandStore()
        self.pipeline = HandPipeline()
        self.dedup = Dedup(WINDOW_SECS, WINDOW_EVENTS, self.clock)
        self.dedup._ready.set()
        plan = Plan(EventValidator("reject", ()), self.pipeline, 1 << 16)  # type: ignore[arg-type]
        self.door = Door(plan, self.store, SilentBooks(), self.dedup)
        self.spool: list[tuple[str, str, float]] = []

    def send(self, key_id: str, ids: Sequence[str]) -> asyncio.Task[Result]:
        return asyncio.ensure_future(self.door.take(Candidates([event(name) for name in ids]), context(key_id)))

    def end(self, frame: Frame, error: SpoolError | None = None, *, is_stored: bool | None = None) -> None:
        is_stored = error is None if is_stored is None else is_stored
        if frame in self.store.waiting:
            self.store.waiting.remove(frame)
        if is_stored:
            self.spool += [(frame.key_id, name, self.clock.now) for name in frame.ids]
        frame.end(is_stored=is_stored, error=error)

    def tell_unknown(self, frame: Frame) -> None:
        self.store.waiting.remove(frame)
        frame.future.set_exception(SpoolUnknownError("slow"))


async def quiet() -> None:
    """Let everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


def outcomes(task: asyncio.Task[Result]) -> list[str]:
    return [item.reason or str(item.outcome) for item in task.result().judged]


async def test_repeat_of_a_stored_event_is_a_duplicate_under_its_own_key_only() -> None:
    bench = Bench()
    first = bench.send("a", ["evt_1"])
    await quiet()
    bench.end(bench.store.waiting[0])
    await quiet()
    repeat, elsewhere = bench.send("a", ["evt_1"]), bench.send("b", ["evt_1"])
    await quiet()
    bench.end(bench.store.waiting[0])
    await quiet()
    assert (outcomes(first), outcomes(repeat), outcomes(elsewhere)) == (["accepted"], ["duplicate"], ["accepted"])
    assert bench.pipeline.seen == ["evt_1", "evt_1"]


async def test_twin_waits_for_the_first_and_is_answered_with_it() -> None:
    bench = Bench()
    tasks = [bench.send("a", ["evt_1"]) for _ in range(5)]
    await quiet()
    assert len(bench.store.waiting) == 1
    assert not any(task.done() for task in tasks)
    bench.end(bench.store.waiting[0])
    await quiet()
    assert [outcomes(task) for task in tasks] == [["accepted"], *[["duplicate"]] * 4]
    assert bench.door.stored == 1
    assert bench.door.unaccounted == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SpoolBackpressureError("x"), "busy.backpressure"),
        (SpoolFullError("x"), "busy.full"),
        (SpoolFailedError("x"), "busy.full"),
        (SpoolClosedError("x"), "busy.draining"),
        (SpoolUnknownError("x"), "busy.unknown"),
    ],
)
async def test_twin_of_an_event_that_was_not_stored_is_told_the_same_and_the_retry_is_stored(
    error: SpoolError, code: str
) -> None:
    bench = Bench()
    tasks = [bench.send("a", ["evt_1"]), bench.send("a", ["evt_1"]), bench.send("a", ["evt_1", "evt_2", "evt_1"])]
    await quiet()
    bench.end(bench.store.waiting[0], error)
    await quiet()
    assert [outcomes(task) for task in tasks] == [[code], [code], [code] * 3]
    assert [task.result().busy for task in tasks] == [code] * 3
    assert not bench.store.waiting, "a batch whose sender is told that nothing was stored was stored in part"
    retry = bench.send("a", ["evt_1"])
    await quiet()
    bench.end(bench.store.waiting[0])
    await quiet()
    assert outcomes(retry) == ["accepted"]
    assert bench.door.unaccounted == 0


async def test_refusal_at_once_leaves_no_trace() -> None:
    bench = Bench()
    bench.store.refusal = SpoolFullError("full")
    refused = bench.send("a", ["evt_1", "evt_1"])
    await quiet()
    assert outcomes(refused) == ["busy.full", "busy.full"]
    bench.store.refusal = None
    retry = bench.send("a", ["evt_1"])
    await quiet()
    bench.end(bench.store.waiting[0])
    await quiet()
    assert outcomes(retry) == ["accepted"]


@pytest.mark.parametrize("is_stored", [True, False])
async def test_late_frame_decides_about_the_retry_of_a_sender_that_was_told_unknown(is_stored: bool) -> None:
    bench = Bench()
    first, twin = bench.send("a", ["evt_1"]), bench.send("a", ["evt_1"])
    await quiet()
    frame = bench.store.waiting[0]
    bench.tell_unknown(frame)
    await quiet()
    early = bench.send("a", ["evt_1"])
    await quiet()
    assert [outcomes(task) for task in (first, twin, early)] == [["busy.unknown"]] * 3
    bench.end(frame, SpoolFailedError("no"), is_stored=is_stored)
    retry = bench.send("a", ["evt_1"])
    await quiet()
    if not is_stored:
        bench.end(bench.store.waiting[0])
        await quiet()
    assert outcomes(retry) == ["duplicate" if is_stored else "accepted"]
    assert [name for _, name, _ in bench.spool] == ["evt_1"]


async def test_twins_inside_a_batch_are_stored_once() -> None:
    bench = Bench()
    task = bench.send("a", ["evt_1", "evt_2", "evt_1", "evt_1"])
    await quiet()
    assert bench.store.waiting[0].ids == ["evt_1", "evt_2"]
    bench.end(bench.store.waiting[0])
    await quiet()
    assert outcomes(task) == ["accepted", "accepted", "duplicate", "duplicate"]


async def test_batches_with_each_others_ids_do_not_wait_for_each_other_for_ever() -> None:
    bench = Bench()
    slow = EventValidator("reject", ())

    class Slow:
        def validate(self, value: Any, max_details: int) -> Any:
            deadline = bench_loop.time() + 0.006  # longer than a slice: every event gives the loop back
            while bench_loop.time() < deadline:
                pass
            return slow.validate(value, max_details)

    bench_loop = asyncio.get_running_loop()
    bench.door.plan = Plan(Slow(), bench.pipeline, 1 << 16)  # type: ignore[arg-type]
    tasks = [bench.send("a", ["evt_1", "evt_2", "evt_3"]), bench.send("a", ["evt_3", "evt_2", "evt_1"])]
    async with asyncio.timeout(5):
        while not all(task.done() for task in tasks):
            await quiet()
            for frame in tuple(bench.store.waiting):
                bench.end(frame)
    assert sorted(outcomes(tasks[0]) + outcomes(tasks[1])) == ["accepted"] * 3 + ["duplicate"] * 3
    assert sorted(name for _, name, _ in bench.spool) == ["evt_1", "evt_2", "evt_3"]


async def test_filtered_event_was_not_stored_and_makes_no_duplicate() -> None:
    bench = Bench()
    bench.pipeline.verdict = lambda event: Verdict(Outcome.FILTERED, "drop.matched", event)
    filtered = bench.send("a", ["evt_1", "evt_1"])
    await quiet()
    assert outcomes(filtered) == ["drop.matched", "drop.matched"]
    bench.pipeline.verdict = lambda event: Verdict(Outcome.ACCEPTED, "", event)
    task = bench.send("a", ["evt_1"])
    await quiet()
    bench.end(bench.store.waiting[0])
    await quiet()
    assert outcomes(task) == ["accepted"]
    bench.pipeline.verdict = lambda event: Verdict(Outcome.FILTERED, "drop.matched", event)
    repeat = bench.send("a", ["evt_1"])
    await quiet()
    assert outcomes(repeat) == ["duplicate"]


async def test_id_is_the_one_that_was_sent_whatever_the_pipeline_makes_of_it() -> None:
    bench = Bench()
    bench.pipeline.verdict = lambda event: Verdict(Outcome.ACCEPTED, "", {**event, "event_id": "the same for all"})
    task = bench.send("a", ["evt_1", "evt_2", "evt_1"])
    await quiet()
    assert bench.store.waiting[0].ids == ["evt_1", "evt_2"]
    bench.end(bench.store.waiting[0])
    await quiet()
    assert outcomes(task) == ["accepted", "accepted", "duplicate"]


async def test_event_that_cannot_be_written_takes_its_twin_along_and_nobody_else(expect_log: list[str]) -> None:
    expect_log.append("an event cannot be stored")
    bench = Bench()

    def spoil(event: dict[str, Any]) -> Verdict:
        return Verdict(
            Outcome.ACCEPTED, "", {**event, "extras": {"bad": object()}} if event["event_id"] == "bad" else event
        )

    bench.pipeline.verdict = spoil
    task = bench.send("a", ["bad", "evt_1", "bad"])
    await quiet()
    bench.end(bench.store.waiting[0])
    await quiet()
    assert outcomes(task) == ["component", "accepted", "component"]
    bench.pipeline.verdict = lambda event: Verdict(Outcome.ACCEPTED, "", event)
    retry = bench.send("a", ["bad"])
    await quiet()
    bench.end(bench.store.waiting[0])
    await quiet()
    assert outcomes(retry) == ["accepted"]


async def test_cancelled_request_leaves_its_ids_to_the_spools_word() -> None:
    bench = Bench()
    first, twin = bench.send("a", ["evt_1"]), bench.send("a", ["evt_1"])
    await quiet()
    frame = bench.store.waiting[0]
    first.cancel()
    await quiet()
    assert outcomes(twin) == ["busy.unknown"]
    bench.end(frame)
    repeat = bench.send("a", ["evt_1"])
    await quiet()
    assert outcomes(repeat) == ["duplicate"]


async def test_events_wait_until_the_tail_is_known_and_are_refused_after_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edge.dedup.READY_SECS", 0.05)
    bench = Bench()
    bench.dedup._ready.clear()
    waiting = bench.send("a", ["evt_1", "evt_2"])
    async with asyncio.timeout(5):
        result = await waiting
    assert outcomes(waiting) == ["busy.backpressure"] * 2
    assert result.busy == "busy.backpressure"
    assert not bench.store.waiting
    assert bench.door.unaccounted == 0
    waiting = bench.send("a", ["evt_1"])
    await quiet()
    bench.dedup._ready.set()
    await quiet()
    bench.end(bench.store.waiting[0])
    await quiet()
    assert outcomes(waiting) == ["accepted"]


ERRORS = st.sampled_from([SpoolBackpressureError, SpoolFullError, SpoolFailedError, SpoolUnknownError])


class Senders(RuleBasedStateMachine):
    """Senders that repeat themselves, in front of a disk that does whatever it likes."""

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.bench = Bench()
        self.bench.store.look_at = self.look_at
        self.tasks: list[tuple[asyncio.Task[Result], str, list[str], float]] = []
        self.late: list[Frame] = []
        self.stored_again: list[tuple[str, str]] = []

    def run(self, action: Callable[[], Any]) -> None:
        async def act() -> None:
            action()
            await quiet()

        self.loop.run_until_complete(act())
        assert not self.stored_again
        for task, key_id, ids, sent_at in [entry for entry in self.tasks if entry[0].done()]:
            self.check(task.result(), key_id, ids, sent_at)
        self.tasks = [entry for entry in self.tasks if not entry[0].done()]

    def is_known(self, key_id: str, name: str) -> bool:
        """The model: the newest ids of the spool, of all keys, that are young enough."""
        now = self.bench.clock.now
        young = [(key, other) for key, other, at in self.bench.spool if now - at < WINDOW_SECS]
        return (key_id, name) in young[-WINDOW_EVENTS:]

    def look_at(self, frame: Frame) -> None:
        """Take note of ids that the store is given although it has them, or may have them any moment."""
        undecided = [(other.key_id, name) for other in (*self.bench.store.waiting, *self.late) for name in other.ids]
        for name in frame.ids:
            if self.is_known(frame.key_id, name) or (frame.key_id, name) in undecided:
                self.stored_again.append((frame.key_id, name))

    def check(self, result: Result, key_id: str, ids: list[str], sent_at: float) -> None:
        spool = [(name, at) for key, name, at in self.bench.spool if key == key_id]
        for name, item in zip(ids, result.judged, strict=True):
            if item.outcome is Outcome.ACCEPTED:
                assert name in [other for other, _ in spool]
            elif item.outcome is Outcome.DUPLICATE:
                assert [1 for other, at in spool if other == name and sent_at - at < WINDOW_SECS], "nothing like it"
            else:
                assert item.outcome is Outcome.REJECTED
                assert item.reason.startswith("busy.")
                assert result.busy == "busy.unknown" or item.reason != "busy.unknown"
                assert result.busy

    @rule(key_id=st.sampled_from("ab"), ids=st.lists(st.sampled_from(IDS), min_size=1, max_size=4))
    def send(self, key_id: str, ids: list[str]) -> None:
        known = [self.is_known(key_id, name) for name in ids]
        task: list[asyncio.Task[Result]] = []

        def action() -> None:
            task.append(self.bench.send(key_id, ids))
            self.tasks.append((task[0], key_id, ids, self.bench.clock.now))

        self.run(action)
        if task[0].done():
            assert [item.outcome is Outcome.DUPLICATE for item in task[0].result().judged] == known

    @rule()
    def commit(self) -> None:
        if self.bench.store.waiting:
            self.run(lambda: self.bench.end(self.bench.store.waiting[0]))

    @rule(error=ERRORS)
    def fail(self, error: type[SpoolError]) -> None:
        if self.bench.store.waiting:
            self.run(lambda: self.bench.end(self.bench.store.waiting[0], error("no")))

    @rule()
    def stall(self) -> None:
        if self.bench.store.waiting:
            self.late.append(self.bench.store.waiting[0])
            self.run(lambda: self.bench.tell_unknown(self.bench.store.waiting[0]))

    @rule(is_stored=st.booleans())
    def decide_late(self, is_stored: bool) -> None:
        if self.late:
            self.run(lambda: self.bench.end(self.late.pop(0), SpoolFailedError("no"), is_stored=is_stored))

    @rule(secs=st.sampled_from([1.0, 4.0, 10.0]))
    def wait(self, secs: float) -> None:
        self.bench.clock.now += secs

    @rule()
    def refuse_or_not(self) -> None:
        self.bench.store.refusal = SpoolFullError("full") if self.bench.store.refusal is None else None

    @invariant()
    def books_balance(self) -> None:
        if hasattr(self, "bench"):
            assert self.bench.door.unaccounted == 0

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        try:
            while self.bench.store.waiting or self.late:
                self.decide_late(is_stored=True)
                self.commit()
            assert not self.tasks, "a request waits although nothing is open any more"
            assert not self.bench.dedup._claims, "ids are held that nobody will ever decide about"
        finally:
            self.loop.run_until_complete(self.end())
            self.loop.close()

    async def end(self) -> None:
        for task, *_ in self.tasks:
            task.cancel()
        await quiet()


TestSenders = Senders.TestCase
TestSenders.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
