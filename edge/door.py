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
from edge.dedup import Claim, Dedup
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

    def append(
        self, payload: bytes, n_events: int = 1, *, decided: Callable[[bool], None] | None = None
    ) -> asyncio.Future[int]:
        """Take a frame; the future resolves once it is durable.

        `decided` is called once it is certain whether the frame is stored, even if the future could not say.
        """


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
    key: bytes = b""
    """What its id is remembered by; empty without dedup, or when it never came to that."""
    first: Claim | None = None
    """Of a duplicate: the claim under which its id came first. If that one was not stored, this is no duplicate."""


@dataclass(slots=True)
class Result:
    """What became of a request's events."""

    judged: list[Judged]
    busy: str = ""
    """A ``busy.*`` code when what could have been accepted was not stored (busy.unknown: may be stored)."""
    counts: Counter[Outcome] = field(default_factory=Counter)


class Door:
    """Judges and stores the events of requests."""

    def __init__(self, plan: Plan, store: Store, books: BooksObserver, dedup: Dedup | None = None) -> None:
        self.plan = plan
        self._store = store
        self._books = books
        self._dedup = dedup
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
        if self._dedup is not None and not self._dedup.is_ready and not await self._dedup.ready():
            return _refuse_all(candidates, "busy.backpressure")
        plan = self.plan
        claim = None if self._dedup is None else self._dedup.claim(context.key_id)
        judged: list[Judged] = []
        room = REQUEST_DETAILS
        slice_began = perf_counter()
        for candidate in candidates:
            if perf_counter() - slice_began > SLICE_SECS:
                await asyncio.sleep(0)
                slice_began = perf_counter()
            item = _judge(plan, candidate, context, max(LEAST_DETAILS, min(EVENT_DETAILS, room)), claim)
            room -= len(item.details)
            judged.append(item)
        result = Result(judged)
        if claim is not None and not claim.is_all_new():
            result.busy = await _drop_repeats(claim, judged)
        accepted, lines = _encode(judged)
        if not accepted or result.busy:
            pass
        elif claim is None:
            result.busy = await self._commit(pack(frame_meta(context, sent_at), lines), len(lines))
        else:
            result.busy = await self._commit_new(claim, accepted, lines, context, sent_at)
        if result.busy:
            for item in accepted:
                item.outcome, item.reason = Outcome.REJECTED, result.busy
        if claim is not None and claim.has_repeats:
            _follow_firsts(claim, judged)
        return result

    async def _commit_new(
        self, claim: Claim, accepted: Sequence[Judged], lines: Sequence[bytes], context: Context, sent_at: str
    ) -> str:
        """Commit events whose ids are new, and see to it that they are known from then on, or free again."""
        if len(claim.ids) != len(accepted):  # one could not be written as JSON
            claim.keep(item.key for item in accepted)
        payload = pack(frame_meta(context, sent_at, _renamed(accepted, claim)), lines)
        decided = claim.hold()
        code = "busy.unknown"  # what others are told if this request is cancelled
        try:
            code = await self._commit(payload, len(lines), decided)
        finally:
            claim.tell(code)
        return code

    async def _commit(self, payload: bytes, n_events: int, decided: Callable[[bool], None] | None = None) -> str:
        """Store a frame and wait until it is durable; return a ``busy.*`` code if it is not."""
        stored: asyncio.Future[int] | None = None
        try:
            stored = self._store.append(payload, n_events, decided=decided)
            await stored
        except Exception as error:
            if stored is None and decided is not None:
                decided(False)  # noqa: FBT003 - the spool did not take the frame and says no more of it
            for kind, code in BUSY_CODES:
                if isinstance(error, kind):
                    return code
            # Nobody knows whether the frame reached the disk; the sender repeats it under the same event_id.
            log.exception("storing events failed in a way the spool does not know")
            return "busy.unknown"
        self.stored += n_events
        return ""

    def _settle(self, judged: Sequence[Judged], counts: Counter[Outcome]) -> None:
        tally = Counter((item.outcome, item.reason) for item in judged)
        for (outcome, reason), n_events in tally.items():
            counts[outcome] += n_events
            self._settled += n_events
            self._books.settled(outcome, reason, n_events)


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


async def _drop_repeats(claim: Claim, judged: Sequence[Judged]) -> str:
    """Wait for what became of ids that others brought first; what is accepted after this is new.

    Returns a ``busy.*`` code when one of those firsts was not stored. Then nothing of this request is to be stored,
    since its sender is told to send all of it again.
    """
    codes, repeats = await claim.others()
    for item in judged if repeats else ():
        if item.outcome is Outcome.ACCEPTED and item.key in repeats:
            item.outcome, item.first = Outcome.DUPLICATE, repeats[item.key]
    # Of several, the one that promises the least: the others say that nothing was stored.
    return "busy.unknown" if "busy.unknown" in codes else min(codes, default="")


def _follow_firsts(claim: Claim, judged: Sequence[Judged]) -> None:
    """Give the repeats whose first was not stored the same outcome: they are no duplicates of anything."""
    own: dict[bytes, Judged] = {}
    for item in judged:
        if item.first is claim:
            if own[item.key].outcome is Outcome.REJECTED:
                item.outcome, item.reason = Outcome.REJECTED, own[item.key].reason
        elif item.key:
            own[item.key] = item
            if item.first is not None and item.first.code:
                item.outcome, item.reason = Outcome.REJECTED, item.first.code


def _renamed(accepted: Sequence[Judged], claim: Claim) -> dict[str, str]:
    """Return the ids as they were sent, by index, of events that the pipeline gave another one."""
    renamed = {}
    for index, (item, sent) in enumerate(zip(accepted, claim.ids.values(), strict=True)):
        if item.event is not None and item.event.get("event_id") != sent:
            renamed[str(index)] = sent
    return renamed


def _refuse_all(candidates: Sequence[Candidate], code: str) -> Result:
    judged = [Judged(Outcome.REJECTED, code, event_id=_event_id(candidate.value)) for candidate in candidates]
    return Result(judged, code)


def _judge(plan: Plan, candidate: Candidate, context: Context, max_details: int, claim: Claim | None = None) -> Judged:
    """Return what becomes of one event, storing aside: invalid, filtered, rejected by a component, or accepted.

    With a `claim` also: duplicate. An id that was met before ends the way of the event here: the pipeline has done its
    work for it, and what a filter would say this time changes nothing about what is stored.
    """
    value = candidate.value
    event_id = _event_id(value)
    mistake = candidate.mistake or too_large(candidate, plan.event_bytes)
    if mistake is not None:
        return Judged(Outcome.INVALID, mistake["code"], event_id=event_id, details=[mistake])
    event, details = plan.validator.validate(value, max_details)
    if event is None:
        return Judged(Outcome.INVALID, details[0]["code"], event_id=event_id, details=details)
    if claim is None:
        verdict: Verdict = plan.pipeline.run(event, context)
        return Judged(verdict.outcome, verdict.reason, verdict.event, event_id)
    key = claim.key(event["event_id"])
    first = claim.first_of(key)
    if first is not None:
        return Judged(Outcome.DUPLICATE, event_id=event_id, key=key, first=first)
    verdict = plan.pipeline.run(event, context)
    if verdict.outcome is Outcome.ACCEPTED:
        claim.ids[key] = event["event_id"]
    return Judged(verdict.outcome, verdict.reason, verdict.event, event_id, key=key)


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
