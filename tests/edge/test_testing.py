import asyncio
import gzip
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import pytest
from tornado.httpclient import HTTPRequest
from tornado.simple_httpclient import HTTPStreamClosedError, HTTPTimeoutError, SimpleAsyncHTTPClient
from voluptuous import All, Coerce, Optional, Range, Required

from edge import testing
from edge.api import REMOVE, Enricher, Filter, RetryableError, Sink, hookimpl
from edge.clock import Clock
from edge.testing import (
    Answer,
    ComponentMistakeError,
    ManualClock,
    OptionsError,
    RecordingTarget,
    build,
    deliver,
    make_batch,
    make_context,
    make_event,
    run_enricher,
    run_filter,
)

pytestmark = pytest.mark.usefixtures("io_loop")


class Tea(Sink):
    type = "tea"
    options: ClassVar = {
        Required("spout"): str,
        Optional("sugar", default=1): All(Coerce(int), Range(min=0, max=5)),
        Optional("cup", default=dict): {Optional("size_ml", default=200): int},
    }


def test_all_names_exist_and_have_docstrings():
    for name in testing.__all__:
        value = getattr(testing, name)
        if callable(value):
            assert value.__doc__, name
    assert sorted(testing.__all__) == sorted(set(testing.__all__))


def test_testing_does_not_need_pytest():
    source = Path(testing.__file__).read_text()
    assert "import pytest" not in source


def test_make_event_replaces_adds_and_leaves_out_fields():
    event = make_event(user_id="usr_1", extras={"a": 1}, page_name=REMOVE)
    assert (event["user_id"], event["extras"], event["event_type"]) == ("usr_1", {"a": 1}, "click")
    assert "page_name" not in event
    assert make_event() is not make_event()


def test_make_batch_takes_events_and_lines_with_metadata():
    received_at = datetime(2026, 11, 23, tzinfo=UTC)
    batch = make_batch([make_event(), b'{"a":1}'], "b-1", received_at=received_at, key_id="app")
    assert batch.id == "b-1"
    assert batch.events == [make_event(), {"a": 1}]
    assert [(each.received_at, each.key_id) for each in batch.metadata] == [(received_at, "app")] * 2


def test_build_fills_in_defaults_and_coerces():
    sink = build(Tea, spout="x", sugar="3")
    assert (sink.id, sink.options) == ("tea", {"spout": "x", "sugar": 3, "cup": {"size_ml": 200}})
    assert build(Tea, "mine", spout="x").id == build(Tea, id="mine", spout="x").id == "mine"


def test_build_names_every_mistake():
    with pytest.raises(OptionsError) as raised:
        build(Tea, sugar=9, cup={"size": 1}, milk=True)
    lines = str(raised.value).splitlines()
    assert len(lines) == 4
    assert {line.split(":")[0] for line in lines} == {"spout", "sugar", "cup.size", "milk"}


class Adds(Enricher):
    type = "adds"

    @hookimpl
    def edge_enrich(self, event, context):
        return self.options["returns"](event, context)


class Drops(Filter):
    type = "drops"
    reasons = ("too_hot",)

    @hookimpl
    def edge_filter(self, event):
        return self.options["returns"](event)


def enriching(function):
    return Adds("adds", {"returns": function})


def filtering(function):
    return Drops("drops", {"returns": function})


def test_run_enricher_sets_and_removes_fields_of_a_copy():
    event = make_event(referrer="x")
    enricher = enriching(lambda event, context: {"ip": context.remote_ip, "referrer": REMOVE, "absent": REMOVE})
    enriched = run_enricher(enricher, event, make_context(remote_ip="192.0.2.9"))
    assert enriched["ip"] == "192.0.2.9"
    assert "referrer" not in enriched
    assert "absent" not in enriched
    assert event == make_event(referrer="x")
    assert run_enricher(enriching(lambda event, context: None), event) == event


def test_run_enricher_tells_what_breaks_the_contract():
    with pytest.raises(ComponentMistakeError, match="changed the event"):
        run_enricher(enriching(lambda event, context: event.update(a=1)), make_event())
    with pytest.raises(ComponentMistakeError, match="changed the event"):
        run_enricher(enriching(lambda event, context: event["extras"].clear()), make_event(extras={"a": 1}))
    for wrong in ("field", 1, {1: 2}):
        with pytest.raises(ComponentMistakeError, match="must return a mapping"):
            run_enricher(enriching(lambda event, context, wrong=wrong: wrong), make_event())
    with pytest.raises(ComponentMistakeError, match="no edge_enrich marked with @hookimpl"):
        run_enricher(Enricher("x", {}), make_event())
    with pytest.raises(ZeroDivisionError):
        run_enricher(enriching(lambda event, context: 1 / 0), make_event())


def test_run_filter_returns_a_declared_reason():
    assert run_filter(filtering(lambda event: "too_hot"), make_event()) == "too_hot"
    assert run_filter(filtering(lambda event: None), make_event()) is None
    with pytest.raises(ComponentMistakeError, match="'too_cold', which is not among"):
        run_filter(filtering(lambda event: "too_cold"), make_event())
    with pytest.raises(ComponentMistakeError, match="changed the event"):
        run_filter(filtering(lambda event: event.pop("user_id")), make_event())


class Logbook(Sink):
    type = "logbook"

    def __init__(self, id, options):
        super().__init__(id, options)
        self.calls = []

    @hookimpl
    async def edge_open(self):
        self.calls.append("open")

    @hookimpl
    async def edge_deliver(self, batch):
        self.calls.append(len(batch))
        if batch.events[0].get("fail"):
            raise RetryableError("no")
        return {index: RetryableError() for index, event in enumerate(batch.events) if event.get("index")} or None

    @hookimpl
    async def edge_close(self):
        self.calls.append("close")


async def test_deliver_opens_delivers_and_closes():
    sink = Logbook("l", {})
    assert await deliver(sink, [make_event(), make_event()]) == {}
    assert sink.calls == ["open", 2, "close"]
    assert list(await deliver(sink, make_batch([{}, {"index": 1}]))) == [1]


async def test_deliver_closes_the_sink_when_it_raises():
    sink = Logbook("l", {})
    with pytest.raises(RetryableError):
        await deliver(sink, [make_event(fail=True)])
    assert sink.calls == ["open", 1, "close"]


async def test_manual_clock_wakes_sleepers_whose_time_has_come(eventually):
    clock: Clock = ManualClock(time=100.0)
    woken = []

    async def sleeper(secs):
        await clock.sleep(secs)
        woken.append(secs)

    tasks = [asyncio.create_task(sleeper(secs)) for secs in (3, 1, 2)]
    await clock.wait_for_sleepers(3)
    start = clock.monotonic()
    clock.advance(2)
    await eventually(lambda: len(woken) == 2)
    assert woken == [1, 2]
    assert (clock.sleepers, clock.monotonic() - start, clock.time()) == (1, 2, 102.0)
    clock.set_time(0.0)
    clock.advance(1)
    await asyncio.gather(*tasks)
    assert (woken, clock.time(), clock.monotonic() - start) == ([1, 2, 3], 1.0, 3)


async def test_manual_clock_forgets_a_cancelled_sleeper():
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(5))
    await clock.wait_for_sleepers()
    task.cancel()
    await asyncio.wait([task])
    assert clock.sleepers == 0
    clock.advance(10)
    await clock.sleep(0)


async def fetch(url, body=b"", timeout_secs=5.0, **options):
    client = SimpleAsyncHTTPClient(force_instance=True)
    try:
        request = HTTPRequest(url, method="POST", body=body, request_timeout=timeout_secs, **options)
        return await client.fetch(request, raise_error=False)
    finally:
        client.close()


async def test_recording_target_records_and_answers_from_its_script():
    script = [Answer(503, {"Retry-After": "2"}, b"later"), Answer(204)]
    async with RecordingTarget(*script, then=Answer(201, body=b"made")) as target:
        answers = [await fetch(f"{target.url}/a?b={n}", b'{"n": %d}' % n) for n in range(4)]
        await target.wait_for_requests(4)
    assert [(answer.code, answer.body) for answer in answers] == [
        (503, b"later"),
        (204, b""),
        (201, b"made"),
        (201, b"made"),
    ]
    assert answers[0].headers["Retry-After"] == "2"
    assert [(request.method, request.path) for request in target.requests] == [("POST", f"/a?b={n}") for n in range(4)]
    assert target.events == [{"n": n} for n in range(4)]


async def test_recording_target_reads_events_of_every_body():
    async with RecordingTarget() as target:
        await fetch(target.url, b'[{"n":1},{"n":2}]')
        await fetch(target.url, b'{"n":3}\n{"n":4}\n')
        await fetch(target.url, gzip.compress(b'{"n":5}\n'), headers={"Content-Encoding": "gzip"})
    assert target.events == [{"n": n} for n in range(1, 6)]


async def test_recording_target_answers_late():
    async with RecordingTarget(Answer(delay_secs=60)) as target:
        with pytest.raises(HTTPTimeoutError):
            await fetch(target.url, timeout_secs=0.05)
        waiting = asyncio.ensure_future(fetch(target.url))
        await target.wait_for_requests(2)
        assert (await waiting).code == 200


async def test_recording_target_does_not_answer_when_it_is_stopped():
    async with RecordingTarget(Answer(delay_secs=60)) as target:
        waiting = asyncio.ensure_future(fetch(target.url))
        await target.wait_for_requests()
    with pytest.raises(HTTPStreamClosedError):
        await waiting
