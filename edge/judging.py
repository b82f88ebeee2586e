"""Judges the events of one request: what the decoder found, the schema, the pipeline, and how they are written down.

Nothing here knows HTTP, the event loop or the spool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import orjson
import structlog

from edge.api import Context, Event
from edge.dedup import Claim
from edge.event import FrameMeta, pack
from edge.outcomes import Outcome
from edge.pipeline import COMPONENT_FAILED, Pipeline
from edge.validation import Detail, EventValidator

log = structlog.get_logger(__name__)

REQUEST_DETAILS = 10_000
EVENT_DETAILS = 1_000
LEAST_DETAILS = 20
"""How many mistakes are listed: of one event, of a request, and of an event once its request has had its share. Without
a bound a small body would draw an answer of many megabytes; what is not listed is counted in the last detail."""

FEW_EVENTS = 20
"""So many events, whatever they are, are judged before anybody else has the event loop."""
_ID = itemgetter("event_id")
ECHOED_CHARS = 256
"""So much of an event's id is sent back."""


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


class Candidates:
    """The events of one request as the decoder leaves them; an object for each is made only where one is needed."""

    __slots__ = ("_look_deeper", "_mistakes", "_sizes", "_whole_bytes", "sent_at", "values")

    def __init__(
        self,
        values: list[Any],
        whole_bytes: int = 0,
        mistakes: Sequence[Detail | None] | None = None,
        sizes: Sequence[int] | None = None,
        look_deeper: Callable[[], Sequence[Detail | None] | None] | None = None,
        sent_at: str = "",
    ) -> None:
        self.values = values
        self.sent_at = sent_at
        """When they were sent, as their sender wrote it; or empty."""
        self._whole_bytes = whole_bytes
        """No event is longer as JSON than this; 0: nobody knows."""
        self._mistakes = mistakes
        """What the decoder found wrong, for each event; None: with none of them, as far as it has looked."""
        self._sizes = sizes
        """Where known for each event by itself."""
        self._look_deeper = look_deeper
        """Looks for mistakes that flat events cannot have; called before the events are looked at one by one."""

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Candidate]:
        if self._look_deeper is not None:
            self._mistakes, self._look_deeper = self._look_deeper(), None
        for index, value in enumerate(self.values):
            mistake = None if self._mistakes is None else self._mistakes[index]
            yield Candidate(value, mistake, self._whole_bytes if self._sizes is None else self._sizes[index])

    def slices(self, n_events: int) -> Iterator[Candidates]:
        """Yield the events so many at a time, with what is known of them."""
        if len(self) <= n_events:
            yield self
            return
        if self._look_deeper is not None:
            self._mistakes, self._look_deeper = self._look_deeper(), None
        for start in range(0, len(self), n_events):
            part = slice(start, start + n_events)
            mistakes = None if self._mistakes is None else self._mistakes[part]
            sizes = None if self._sizes is None else self._sizes[part]
            yield Candidates(self.values[part], 0, mistakes if mistakes and any(mistakes) else None, sizes)

    def are_plain(self, limit: int) -> bool:
        """Say whether the decoder has nothing against any of them, and none can be longer than `limit` bytes.

        Of events that are not flat it may not have looked at everything yet.
        """
        if self._mistakes is not None:
            return False
        if not self._whole_bytes and self._sizes is None:
            self._whole_bytes = len(orjson.dumps(self.values))
        return 0 < (self._whole_bytes or max(self._sizes or (0,))) <= limit


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
    """One for each event; empty when all of them are accepted, which is the usual case and has `ids` instead."""
    ids: Sequence[str] = ()
    """Of accepted events without a `Judged`: their ids as they were sent."""
    accepted: Sequence[Judged] = ()
    """Those of `judged` that are to be stored."""
    lines: Sequence[bytes] = ()
    """What is to be stored: the JSON of each accepted event. Empty again once it is in a frame."""
    n_accepted: int = 0
    """How many lines that are, or were."""
    busy: str = ""
    """A ``busy.*`` code when what could have been accepted was not stored (busy.unknown: may be stored)."""

    @property
    def n_events(self) -> int:
        """How many events there are."""
        return len(self.judged) or len(self.ids)

    def frame(self, meta: FrameMeta) -> bytes:
        """Return the payload of the frame of what is to be stored; empty when nothing is. The lines are let go of."""
        lines, self.lines = self.lines, ()
        return pack(meta, lines) if lines else b""

    def refuse_accepted(self, busy: str) -> None:
        """Note that what is to be stored was not, for this reason; nothing for none."""
        self.busy = busy
        for item in self.accepted if busy else ():
            item.outcome, item.reason = Outcome.REJECTED, busy

    def spell_out(self) -> list[Judged]:
        """Return one `Judged` for each event, also where there was none."""
        if self.judged:
            return self.judged
        outcome = Outcome.REJECTED if self.busy else Outcome.ACCEPTED
        return [Judged(outcome, self.busy, event_id=event_id[:ECHOED_CHARS]) for event_id in self.ids]


def judge_at_once(plan: Plan, candidates: Candidates, context: Context) -> Result | None:
    """Judge the events of a small body; None, and nothing done, for many of which some need a closer look."""
    result = judge_plainly(plan, candidates, context)
    if result is not None or len(candidates) > FEW_EVENTS:
        return result
    judged: list[Judged] = []
    room = REQUEST_DETAILS
    for candidate in candidates:
        item = judge(plan, candidate, context, share_of(room))
        room -= len(item.details)
        judged.append(item)
    return written(judged)


def judge_plainly(plan: Plan, candidates: Candidates, context: Context) -> Result | None:
    """Judge events that are surely valid, all of them together; None, and nothing done, when there is another one."""
    accepts = plan.validator.accepts_flat
    values = candidates.values
    if accepts is None or not candidates.are_plain(plan.event_bytes) or not accepts(values):
        return None
    ids = list(map(_ID, values))
    ended = plan.pipeline.run_all(values, context)
    if not ended:
        try:
            return Result([], ids, lines=list(map(orjson.dumps, values)), n_accepted=len(ids))
        except orjson.JSONEncodeError:
            pass  # found again below, and then it is known which one it was
    judged = [
        Judged(verdict.outcome, verdict.reason, verdict.event, event_id[:ECHOED_CHARS])
        if (verdict := ended.get(index)) is not None
        else Judged(Outcome.ACCEPTED, "", event, event_id[:ECHOED_CHARS])
        for index, (event, event_id) in enumerate(zip(values, ids, strict=True))
    ]
    return written(judged)


def joined(parts: Sequence[Result]) -> Result:
    """Return the result of a request whose events were judged in parts."""
    if len(parts) == 1:
        return parts[0]
    lines = [line for part in parts for line in part.lines]
    if not any(part.judged for part in parts):
        ids = [event_id for part in parts for event_id in part.ids]
        return Result([], ids, lines=lines, n_accepted=len(lines))
    judged = [item for part in parts for item in part.spell_out()]
    accepted = [item for item in judged if item.outcome is Outcome.ACCEPTED]
    return Result(judged, accepted=accepted, lines=lines, n_accepted=len(lines))


def written(judged: list[Judged]) -> Result:
    """Return the result of events that were judged one by one."""
    accepted, lines = encode(judged)
    return Result(judged, accepted=accepted, lines=lines, n_accepted=len(lines))


def encode(judged: Sequence[Judged]) -> tuple[list[Judged], list[bytes]]:
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


def share_of(room: int) -> int:
    """Return how many details the next event may have, so many being left for the request."""
    return max(LEAST_DETAILS, min(EVENT_DETAILS, room))


def refuse_all(candidates: Candidates, code: str) -> Result:
    """Return the result of events that nobody looks at."""
    judged = [Judged(Outcome.REJECTED, code, event_id=_event_id(candidate.value)) for candidate in candidates]
    return Result(judged, busy=code)


def judge(plan: Plan, candidate: Candidate, context: Context, max_details: int, claim: Claim | None = None) -> Judged:
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
        verdict = plan.pipeline.run(event, context)
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
    return event_id[:ECHOED_CHARS] if isinstance(event_id, str) else None
