"""What a plugin author's tests import: events, batches, components built as the gateway builds them, a clock, a target.

Nothing in here needs pytest. A synchronous test drives a sink with ``asyncio.run(deliver(sink, [make_event()]))``.
"""

from __future__ import annotations

import asyncio
import copy
import gzip
import heapq
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import orjson
from tornado.httpserver import HTTPServer
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.iostream import StreamClosedError
from tornado.netutil import bind_sockets
from voluptuous import MultipleInvalid

from edge.api import (
    REMOVE,
    Batch,
    Block,
    Component,
    Context,
    EdgeError,
    Enricher,
    Event,
    EventMetadata,
    Filter,
    PermanentError,
    RetryableError,
    Sink,
)
from edge.config.checks import Options
from edge.config.components import own_options
from edge.example import EXAMPLE_EVENT

__all__ = [
    "EXAMPLE_EVENT",
    "RECEIVED_AT",
    "Answer",
    "ComponentMistakeError",
    "ManualClock",
    "OptionsError",
    "RecordedRequest",
    "RecordingTarget",
    "build",
    "deliver",
    "make_batch",
    "make_context",
    "make_event",
    "run_enricher",
    "run_filter",
]

RECEIVED_AT: Final = datetime(2025, 9, 17, 10, 0, 1, 234_000, tzinfo=UTC)
"""When the events of `make_context` and `make_batch` were received, unless said otherwise."""

ComponentType = TypeVar("ComponentType", bound=Component)


class OptionsError(EdgeError):
    """Options that the gateway would refuse; the message has a line for each mistake, as ``edge check`` prints them."""


class ComponentMistakeError(AssertionError):
    """A component broke the contract of its hook; the gateway would count an error and ignore what it returned."""


def make_event(**over: Any) -> Event:
    """Return a valid event: the contract's example with fields replaced, added, or left out (`REMOVE`)."""
    event = {**EXAMPLE_EVENT, **over}
    return {name: value for name, value in event.items() if value is not REMOVE}


def make_context(**over: Any) -> Context:
    """Return the context of a request: a client at 192.0.2.7 with the key ``web``, parts of it replaced."""
    parts: dict[str, Any] = {
        "received_at": RECEIVED_AT,
        "remote_ip": "192.0.2.7",
        "key_id": "web",
        "headers": {},
        "request_id": "req_1",
    }
    return Context(**{**parts, **over})


def make_batch(events: Iterable[Event | bytes], id: str = "shard-000:0-1", **metadata: Any) -> Batch:
    """Return a batch of events, or of lines as they are stored. `metadata` replaces parts of every event's metadata."""
    lines = [event if isinstance(event, bytes) else orjson.dumps(event) for event in events]
    parts: dict[str, Any] = {"key_id": "web", "received_at": RECEIVED_AT, "request_id": "req_1", **metadata}
    return Batch(id, [Block(EventMetadata(**parts), 1, line) for line in lines])


def build(component_class: type[ComponentType], /, id: str = "", **options: Any) -> ComponentType:
    """Return a component with its options checked and its defaults filled in, as the gateway does it.

    `id` is the type when it is left out. `OptionsError` says what the gateway would say to an operator.
    """
    try:
        checked = Options(own_options(component_class))(options)
    except MultipleInvalid as error:
        lines = [
            f"{'.'.join(map(str, each.path)) or component_class.type}: {each.error_message}" for each in error.errors
        ]
        raise OptionsError("\n".join(lines)) from None
    return component_class(id or component_class.type, checked)


def run_enricher(component: Enricher, event: Event, context: Context | None = None) -> Event:
    """Return the event as the enricher makes it; the event passed in is left alone.

    What the enricher raises is raised. `ComponentMistakeError` when it changes the event itself or returns something
    other than a mapping of field names, or None.
    """
    result = _call(component, "edge_enrich", event, context)
    if result is None:
        return dict(event)
    if not isinstance(result, Mapping) or not all(isinstance(name, str) for name in result):
        raise ComponentMistakeError(f"edge_enrich must return a mapping of field names, or None, not {result!r}")
    enriched = {**event, **result}
    return {name: value for name, value in enriched.items() if value is not REMOVE}


def run_filter(component: Filter, event: Event, context: Context | None = None) -> str | None:
    """Return the drop reason of the filter, or None when it keeps the event. Its `when:` is the gateway's to judge.

    What the filter raises is raised. `ComponentMistakeError` when it changes the event or returns a reason that is not
    among its `reasons`.
    """
    reason = _call(component, "edge_filter", event, context)
    if reason is None:
        return None
    if not isinstance(reason, str) or reason not in component.reasons:
        raise ComponentMistakeError(
            f"edge_filter returned {reason!r}, which is not among reasons {component.reasons!r}"
        )
    return reason


async def deliver(sink: Sink, events: Batch | Iterable[Event | bytes]) -> Mapping[int, RetryableError | PermanentError]:
    """Open the sink, deliver one batch, close the sink. Return the errors of single events by index, empty for none.

    What the sink raises is raised, after it was closed.
    """
    batch = events if isinstance(events, Batch) else make_batch(events)
    try:
        await _hook(sink, "edge_open", _nothing)()
        errors: Mapping[int, RetryableError | PermanentError] | None = await _hook(sink, "edge_deliver")(batch)
    finally:
        await _hook(sink, "edge_close", _nothing)()
    for index in errors or {}:
        if not 0 <= index < len(batch):
            raise ComponentMistakeError(f"edge_deliver returned an error for event {index} of {len(batch)}")
    return errors or {}


def _call(component: Component, hook: str, event: Event, context: Context | None) -> Any:
    before = copy.deepcopy(event)
    function = _hook(component, hook)
    # A hook may leave out arguments it has no use for.
    names = inspect.signature(function).parameters
    given = {"event": event, "context": context or make_context()}
    result = function(**{name: given[name] for name in names})
    if event != before:
        raise ComponentMistakeError(f"{hook} changed the event; return the fields to set instead")
    return result


def _hook(component: Component, name: str, missing: Callable[[], Awaitable[None]] | None = None) -> Any:
    """Return a hook of a component. One that is not marked is one that the gateway does not see."""
    function = getattr(component, name, None)
    if function is None and missing is not None:
        return missing
    if function is None or not hasattr(function, "edge_impl"):
        raise ComponentMistakeError(f"{type(component).__name__} has no {name} marked with @hookimpl")
    return function


async def _nothing() -> None:
    """The hook of a component that does not implement it."""


class ManualClock:
    """A clock that stands still until `advance` is called. Satisfies `edge.clock.Clock`."""

    def __init__(self, time: float = 1_758_103_201.234) -> None:
        self._monotonic = 1000.0
        self._time = time
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = count()
        self._slept = asyncio.Event()

    def monotonic(self) -> float:
        """Return the seconds of the monotonic clock."""
        return self._monotonic

    def time(self) -> float:
        """Return the seconds since the epoch."""
        return self._time

    async def sleep(self, secs: float) -> None:
        """Wait until the clock was advanced by so much."""
        if secs <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic + secs, next(self._order), future))
        self._slept.set()
        await future

    def advance(self, secs: float) -> None:
        """Move both clocks on and wake the sleepers whose time has come; they run when the caller next awaits."""
        self._monotonic += secs
        self._time += secs
        while self._sleepers and self._sleepers[0][0] <= self._monotonic:
            _, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)

    def set_time(self, time: float) -> None:
        """Let the wall clock jump, as clocks do when somebody sets them; the monotonic clock stays."""
        self._time = time

    @property
    def sleepers(self) -> int:
        """How many coroutines are asleep."""
        return sum(not future.done() for _, _, future in self._sleepers)

    async def wait_for_sleepers(self, n_sleepers: int = 1) -> None:
        """Wait, in real time, until so many coroutines are asleep."""
        while self.sleepers < n_sleepers:
            self._slept.clear()
            await self._slept.wait()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a `RecordingTarget` answers to one request."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    delay_secs: float = 0.0
    """Real seconds before the answer is sent."""


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One request as a `RecordingTarget` got it."""

    method: str
    path: str
    """With the query."""
    headers: HTTPHeaders
    body: bytes
    """As it came, compressed if it was."""

    @property
    def content(self) -> bytes:
        """The body, decompressed if it came as gzip."""
        return gzip.decompress(self.body) if self.headers.get("Content-Encoding") == "gzip" else self.body

    @property
    def events(self) -> list[Event]:
        """The events of a body that is a JSON array or one JSON object a line."""
        if self.content.startswith(b"["):
            events: list[Event] = orjson.loads(self.content)
            return events
        return [orjson.loads(line) for line in self.content.splitlines()]


class RecordingTarget:
    """An HTTP server on loopback that writes down every request and answers from a script.

    The answers are used up in order; `then` answers whatever comes after them. Use it with ``async with``:

        async with RecordingTarget(Answer(503, {"Retry-After": "2"})) as target:
            sink = build(HttpSink, url=target.url)
    """

    def __init__(self, *script: Answer, then: Answer | None = None) -> None:
        self.requests: list[RecordedRequest] = []
        """What came, in order of arrival."""
        self.url = ""
        """``http://127.0.0.1:<port>``, once started."""
        self._script = list(script)
        self._then = then or Answer()
        self._arrived = asyncio.Event()
        self._answering: set[asyncio.Task[None]] = set()
        self._server = HTTPServer(_Door(self._take), max_body_size=1 << 30)

    async def start(self) -> Self:
        """Listen on a free port of loopback."""
        sockets = bind_sockets(0, "127.0.0.1")
        self._server.add_sockets(sockets)
        self.url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
        return self

    async def stop(self) -> None:
        """Stop listening and close every connection; answers that wait are not sent."""
        self._server.stop()
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)
        await self._server.close_all_connections()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def events(self) -> list[Event]:
        """The events of all requests, in order of arrival."""
        return [event for request in self.requests for event in request.events]

    async def wait_for_requests(self, n_requests: int = 1) -> None:
        """Wait until so many requests have arrived."""
        while len(self.requests) < n_requests:
            self._arrived.clear()
            await self._arrived.wait()

    def _take(self, request: RecordedRequest, connection: HTTPConnection) -> None:
        self.requests.append(request)
        self._arrived.set()
        answer = self._script.pop(0) if self._script else self._then
        task = asyncio.get_running_loop().create_task(_answer(connection, answer))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)


_Take = Callable[[RecordedRequest, HTTPConnection], None]


class _Door(HTTPServerConnectionDelegate):
    """Hands whole requests on as they came: Tornado's own request object would try to parse the body."""

    def __init__(self, take: _Take) -> None:
        self._take = take

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        return _Reader(self._take, request_conn)


class _Reader(HTTPMessageDelegate):
    """Collects one request."""

    def __init__(self, take: _Take, connection: HTTPConnection) -> None:
        self._take = take
        self._connection = connection
        self._line = RequestStartLine("", "", "")
        self._headers = HTTPHeaders()
        self._body = bytearray()

    def headers_received(self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders) -> None:
        if isinstance(start_line, RequestStartLine):
            self._line, self._headers = start_line, headers

    def data_received(self, chunk: bytes) -> None:
        self._body += chunk

    def finish(self) -> None:
        request = RecordedRequest(self._line.method, self._line.path, self._headers, bytes(self._body))
        self._take(request, self._connection)


async def _answer(connection: HTTPConnection, answer: Answer) -> None:
    await asyncio.sleep(answer.delay_secs)
    headers = HTTPHeaders({"Content-Length": str(len(answer.body)), **answer.headers})
    try:
        await connection.write_headers(ResponseStartLine("HTTP/1.1", answer.status, ""), headers, answer.body)
        connection.finish()
    except StreamClosedError:
        return  # the client did not wait
