"""The door: takes decoded events, judges each, stores the good ones, and keeps the books of what became of them.

It knows neither HTTP nor sinks. Every event that comes in leaves with exactly one `Outcome`; `unaccounted` is the
difference and must be 0 at all times.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

import orjson
import structlog

from edge.api import Context, Event
from edge.event import frame_meta, pack
from edge.outcomes import Outcome
from edge.pipeline import COMPONENT_FAILED, Pipeline, Verdict
from edge.spool.errors import (
    SpoolBackpressureError,
    SpoolClosedError,
    SpoolFailedError,
    SpoolFullError,
    SpoolUnknownError,
)
from edge.validation import Detail, EventValidator

log = structlog.get_logger(__name__)

SLICE_SECS = 0.005
"""A large batch gives the event loop back after so long: other senders wait a few milliseconds, not hundreds."""

REQUEST_DETAILS = 10_000
EVENT_DETAILS = 1_000
LEAST_DETAILS = 20
"""How many mistakes are listed: of one event, of a request, and of an event once its request has had its share. Without
a bound a small body would draw an answer of many megabytes; what is not listed is counted in the last detail."""

BUSY_CODES: tuple[tuple[type[Exception], str], ...] = (
    (SpoolBackpressureError, "busy.backpressure"),
    (SpoolFullError, "busy.full"),
    (SpoolFailedError, "busy.full"),
    (SpoolClosedError, "busy.draining"),
    (SpoolUnknownError, "busy.unknown"),
)


class Store(Protocol):
    """Where accepted events go: the spool, as far as the door knows it."""

    def append(self, payload: bytes, n_events: int = 1) -> asyncio.Future[int]:
        """Take a frame; the future resolves once it is durable."""


class BooksObserver(Protocol):
    """What the door tells about events, once for each request."""

    def received(self, key_id: str, n_events: int) -> None:
        """So many events arrived."""

    def settled(self, outcome: Outcome, reason: str, n_events: int) -> None:
        """So many events have this outcome, for this reason."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What events are judged by. One object, swapped whole by a reload; a request keeps the plan it began with."""

    validator: EventValidator
    pipeline: Pipeline
    event_bytes: int


@dataclass(slots=True)
class Candidate:
    """One event of a request on its way through the door."""

    value: object
    mistake: Detail | None = None
    """What the decoder found wrong with it (not JSON, nested too deep); the schema is then not asked."""
    size_bytes: int = 0
    """Length of its JSON as far as the decoder knows it; 0: to be measured."""


@dataclass(slots=True)
class Judged:
    """One event and what became of it."""

    outcome: Outcome
    reason: str = ""
    event: Event | None = None
    event_id: str | None = None
    details: Sequence[Detail] = ()


@dataclass(slots=True)
class Result:
    """What became of a request's events."""

    judged: list[Judged]
    busy: str = ""
    """A ``busy.*`` code when what could have been accepted was not stored (busy.unknown: may be stored)."""
    counts: Counter[Outcome] = field(default_factory=Counter)


class Door:
    """Judges and stores the events of requests."""

    def __init__(self, plan: Plan, store: Store, books: BooksObserver) -> None:
        self.plan = plan
        self._store = store
        self._books = books
        self._received = 0
        self._settled = 0
        self._in_flight = 0
        self.stored = 0
        """Events that were accepted: durable, and the sender was told."""

    @property
    def in_flight(self) -> int:
        """Events that were received and have no outcome yet."""
        return self._in_flight

    @property
    def unaccounted(self) -> int:
        """Events that were received and are neither settled nor in flight. Anything but 0 is a bug."""
        return self._received - self._settled - self._in_flight

    async def take(self, candidates: Sequence[Candidate], context: Context, sent_at: str = "") -> Result:
        """Judge every event of one request and store the accepted ones as one frame, durably before returning.

        One request is one frame: all its accepted events are stored, or none is. Never raises for what a sender sent
        or for what the disk answers.
        """
        n_events = len(candidates)
        self._received += n_events
        self._in_flight += n_events
        self._books.received(context.key_id, n_events)
        try:
            result = await self._judge_and_store(candidates, context, sent_at)
            self._settle(result.judged, result.counts)
            return result
        finally:
            self._in_flight -= n_events

    def take_now(
        self, candidates: Sequence[Candidate], context: Context, sent_at: str, done: Callable[[Result], None]
    ) -> None:
        """Do what `take` does with the events of a small body, without a task; `done` has the result.

        All are judged at once: the caller sees to it that there are few enough.
        """
        n_events = len(candidates)
        self._received += n_events
        self._in_flight += n_events
        self._books.received(context.key_id, n_events)
        try:
            plan = self.plan
            result = Result([_judge(plan, candidate, context, EVENT_DETAILS) for candidate in candidates])
            accepted, lines = _encode(result.judged)
            if not accepted:
                self._settle(result.judged, result.counts)
                self._in_flight -= n_events
                done(result)
                return
        except BaseException:
            self._in_flight -= n_events
            raise

        def stored(future: asyncio.Future[int] | None, error: BaseException | None = None) -> None:
            error = error if future is None else future.exception()
            if error is None:
                self.stored += len(accepted)
            else:
                result.busy = _busy_code(error)
                for item in accepted:
                    item.outcome, item.reason = Outcome.REJECTED, result.busy
            self._settle(result.judged, result.counts)
            self._in_flight -= n_events
            done(result)

        try:
            future = self._store.append(pack(frame_meta(context, sent_at), lines), len(lines))
        except Exception as error:  # noqa: BLE001 - whatever it is, the sender gets its answer
            stored(None, error)
        else:
            future.add_done_callback(stored)

    def refuse(self, n_events: int, context: Context, reason: str) -> None:
        """Count events that were received and refused unseen (the key's quota is used up)."""
        self._received += n_events
        self._books.received(context.key_id, n_events)
        self._settled += n_events
        self._books.settled(Outcome.REJECTED, reason, n_events)

    def invalid(self, context: Context, reason: str) -> None:
        """Count a body that could not be read as events: one event received, one invalid."""
        self._received += 1
        self._books.received(context.key_id, 1)
        self._settled += 1
        self._books.settled(Outcome.INVALID, reason, 1)

    async def _judge_and_store(self, candidates: Sequence[Candidate], context: Context, sent_at: str) -> Result:
        plan = self.plan
        judged: list[Judged] = []
        room = REQUEST_DETAILS
        slice_began = perf_counter()
        for candidate in candidates:
            if perf_counter() - slice_began > SLICE_SECS:
                await asyncio.sleep(0)
                slice_began = perf_counter()
            item = _judge(plan, candidate, context, max(LEAST_DETAILS, min(EVENT_DETAILS, room)))
            room -= len(item.details)
            judged.append(item)
        result = Result(judged)
        accepted, lines = _encode(judged)
        if accepted:
            result.busy = await self._commit(accepted, lines, context, sent_at)
            if result.busy:
                for item in accepted:
                    item.outcome, item.reason = Outcome.REJECTED, result.busy
        return result

    async def _commit(self, accepted: Sequence[Judged], lines: Sequence[bytes], context: Context, sent_at: str) -> str:
        """Store the events and wait until they are durable; return a ``busy.*`` code if they are not."""
        try:
            await self._store.append(pack(frame_meta(context, sent_at), lines), len(lines))
        except Exception as error:  # noqa: BLE001 - whatever it is, the sender gets its answer
            return _busy_code(error)
        self.stored += len(accepted)
        return ""

    def _settle(self, judged: Sequence[Judged], counts: Counter[Outcome]) -> None:
        tally = Counter((item.outcome, item.reason) for item in judged)
        for (outcome, reason), n_events in tally.items():
            counts[outcome] += n_events
            self._settled += n_events
            self._books.settled(outcome, reason, n_events)


def _busy_code(error: BaseException) -> str:
    """Return the ``busy.*`` code for what kept events from being stored."""
    for kind, code in BUSY_CODES:
        if isinstance(error, kind):
            return code
    # Nobody knows whether the frame reached the disk; the sender repeats it under the same event_id.
    log.error("storing events failed in a way the spool does not know", exc_info=error)
    return "busy.unknown"


def _encode(judged: Sequence[Judged]) -> tuple[list[Judged], list[bytes]]:
    """Return the accepted events and their lines. One that cannot be written as JSON is rejected by itself.

    The schema and the pipeline see to it that there is none; a component that changes nested values in place, which it
    must not, gets past them.
    """
    accepted, lines = [], []
    for item in judged:
        if item.outcome is not Outcome.ACCEPTED:
            continue
        try:
            lines.append(orjson.dumps(item.event))
        except orjson.JSONEncodeError as error:
            log.error("an event cannot be stored: a component put into it what is not JSON", error=str(error))
            item.outcome, item.reason = Outcome.REJECTED, COMPONENT_FAILED
        else:
            accepted.append(item)
    return accepted, lines


def _judge(plan: Plan, candidate: Candidate, context: Context, max_details: int) -> Judged:
    """Return what becomes of one event, storing aside: invalid, filtered, rejected by a component, or accepted."""
    value = candidate.value
    event_id = _event_id(value)
    mistake = candidate.mistake or too_large(candidate, plan.event_bytes)
    if mistake is not None:
        return Judged(Outcome.INVALID, mistake["code"], event_id=event_id, details=[mistake])
    event, details = plan.validator.validate(value, max_details)
    if event is None:
        return Judged(Outcome.INVALID, details[0]["code"], event_id=event_id, details=details)
    verdict: Verdict = plan.pipeline.run(event, context)
    return Judged(verdict.outcome, verdict.reason, verdict.event, event_id)


def too_large(candidate: Candidate, limit: int) -> Detail | None:
    """Return the mistake of an event that is longer than `limit` bytes as JSON, or None."""
    if candidate.size_bytes and candidate.size_bytes <= limit:
        return None
    if len(orjson.dumps(candidate.value)) <= limit:
        return None
    return Detail(field="event", message=f"must be at most {limit} bytes", code="limit.event")


def _event_id(value: object) -> str | None:
    """Return the id a sender can recognise its event by, if there is a usable one."""
    event_id = value.get("event_id") if isinstance(value, dict) else None
    return event_id[:256] if isinstance(event_id, str) else None
