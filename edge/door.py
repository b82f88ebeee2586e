"""The door: takes decoded events, judges each, stores the good ones, and keeps the books of what became of them.

It knows neither HTTP nor sinks. Every event that comes in leaves with exactly one `Outcome`; `unaccounted` is the
difference and must be 0 at all times.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Protocol

import structlog

from edge.api import Context
from edge.dedup import Claim, Dedup
from edge.event import frame_meta, pack
from edge.judging import (
    REQUEST_DETAILS,
    Candidates,
    Judged,
    Plan,
    Result,
    encode,
    joined,
    judge,
    judge_at_once,
    judge_plainly,
    refuse_all,
    share_of,
    written,
)
from edge.outcomes import Outcome
from edge.spool.errors import (
    SpoolBackpressureError,
    SpoolClosedError,
    SpoolFailedError,
    SpoolFullError,
    SpoolUnknownError,
)
from edge.spool.queue import OnOutcome

log = structlog.get_logger(__name__)

SLICE_EVENTS = 100
"""So many events of a large batch are judged together, with less than half a millisecond of work."""
SLICE_SECS = 0.005
"""A large batch gives the event loop back after so long: other senders wait a few milliseconds, not hundreds."""

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

    def submit(self, payload: bytes, n_events: int, waiter: OnOutcome) -> None:
        """Do the same without a future: `waiter` is called with the outcome, after this has returned."""


class BooksObserver(Protocol):
    """What the door tells about events, once for each request."""

    def received(self, key_id: str, n_events: int) -> None:
        """So many events arrived."""

    def settled(self, outcome: Outcome, reason: str, n_events: int) -> None:
        """So many events have this outcome, for this reason."""


class Door:
    """Judges and stores the events of requests."""

    def __init__(self, plan: Plan, store: Store, books: BooksObserver, dedup: Dedup | None = None) -> None:
        self.plan = plan
        self._store = store
        self._books = books
        self._dedup = dedup
        self.waits_for_nobody = dedup is None
        """Whether an event never has to wait for another one: without dedup."""
        self._received = 0
        self._settled = 0
        self._in_flight = 0
        self._tasks: set[asyncio.Task[Result]] = set()
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

    async def take(self, candidates: Candidates, context: Context) -> Result:
        """Judge every event of one request and store the accepted ones as one frame, durably before returning.

        One request is one frame: all its accepted events are stored, or none is. Never raises for what a sender sent
        or for what the disk answers.
        """
        n_events = len(candidates)
        self._received += n_events
        self._in_flight += n_events
        self._books.received(context.key_id, n_events)
        try:
            result = await self._judge_and_store(candidates, context)
            self._settle(result)
            return result
        finally:
            self._in_flight -= n_events

    def take_now(self, candidates: Candidates, context: Context, done: Callable[[Result], None]) -> None:
        """Do what `take` does with the events of a small body, without a task; `done` has the result.

        Usual events are judged at once, however many the small body holds; many of which some are not get a task after
        all. The caller sees to it that `waits_for_nobody`.
        """
        n_events = len(candidates)
        self._received += n_events
        self._in_flight += n_events
        self._books.received(context.key_id, n_events)
        try:
            result = judge_at_once(self.plan, candidates, context)
            payload = result.frame(frame_meta(context, candidates.sent_at)) if result is not None else b""
        except BaseException:
            self._in_flight -= n_events
            raise
        if result is None:
            task = asyncio.get_running_loop().create_task(self._judge_and_store(candidates, context))
            self._tasks.add(task)
            task.add_done_callback(partial(self._judged_later, candidates, done))
            return
        if not payload:
            self._end_now(result, done)
            return
        try:
            self._store.submit(payload, result.n_accepted, partial(self._stored_now, result, done))
        except Exception as error:  # noqa: BLE001 - whatever it is, the sender gets its answer
            self._stored_now(result, done, 0, error)

    def _judged_later(self, candidates: Candidates, done: Callable[[Result], None], task: asyncio.Task[Result]) -> None:
        """Go on with a request whose events took a task of their own to judge."""
        self._tasks.discard(task)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        self._end_now(task.result() if error is None else refuse_all(candidates, _busy_code(error)), done)

    def _stored_now(
        self, result: Result, done: Callable[[Result], None], seq: int, error: BaseException | None
    ) -> None:
        """Go on with a request whose frame is durable, or is not."""
        if error is None:
            self.stored += result.n_accepted
        else:
            result.refuse_accepted(_busy_code(error))
        self._end_now(result, done)

    def _end_now(self, result: Result, done: Callable[[Result], None]) -> None:
        self._settle(result)
        self._in_flight -= result.n_events
        done(result)

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

    async def _judge_and_store(self, candidates: Candidates, context: Context) -> Result:
        if self._dedup is not None and not self._dedup.is_ready and not await self._dedup.ready():
            return refuse_all(candidates, "busy.backpressure")
        if self._dedup is not None:
            return await self._store_what_is_new(self._dedup.claim(context.key_id), candidates, context)
        result = await _judge_in_slices(self.plan, candidates, context)
        if payload := result.frame(frame_meta(context, candidates.sent_at)):
            result.refuse_accepted(await self._commit(payload, result.n_accepted))
        return result

    async def _store_what_is_new(self, claim: Claim, candidates: Candidates, context: Context) -> Result:
        """Judge and store events whose ids may have come before."""
        judged = await _judge_each(self.plan, candidates, context, claim)
        result = Result(judged)
        if not claim.is_all_new():
            result.busy = await _drop_repeats(claim, judged)
        result.accepted, lines = encode(judged)
        if result.accepted:
            busy = result.busy or await self._commit_new(claim, result.accepted, lines, context, candidates.sent_at)
            result.refuse_accepted(busy)
        if claim.has_repeats:
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
        except Exception as error:  # noqa: BLE001 - whatever it is, the sender gets its answer
            if stored is None and decided is not None:
                decided(False)  # noqa: FBT003 - the spool did not take the frame and says no more of it
            return _busy_code(error)
        self.stored += n_events
        return ""

    def _settle(self, result: Result) -> None:
        if not result.judged:  # all the same
            n_events = len(result.ids)
            self._settled += n_events
            self._books.settled(Outcome.REJECTED if result.busy else Outcome.ACCEPTED, result.busy, n_events)
            return
        for (outcome, reason), n_events in Counter((item.outcome, item.reason) for item in result.judged).items():
            self._settled += n_events
            self._books.settled(outcome, reason, n_events)


async def _judge_in_slices(plan: Plan, candidates: Candidates, context: Context) -> Result:
    """Judge events, and let others have the event loop in between."""
    parts: list[Result] = []
    room = REQUEST_DETAILS
    for part in candidates.slices(SLICE_EVENTS):
        if parts:
            await asyncio.sleep(0)
        result = judge_plainly(plan, part, context)
        if result is None:
            result = written(await _judge_each(plan, part, context, room=room))
            room -= sum(len(item.details) for item in result.judged)
        parts.append(result)
    return joined(parts)


async def _judge_each(
    plan: Plan,
    candidates: Candidates,
    context: Context,
    claim: Claim | None = None,
    room: int = REQUEST_DETAILS,
) -> list[Judged]:
    """Judge events one by one; `room` is for how many details there is room in the answer."""
    judged: list[Judged] = []
    slice_began = perf_counter()
    for candidate in candidates:
        if perf_counter() - slice_began > SLICE_SECS:
            await asyncio.sleep(0)
            slice_began = perf_counter()
        item = judge(plan, candidate, context, share_of(room), claim)
        room -= len(item.details)
        judged.append(item)
    return judged


def _busy_code(error: BaseException) -> str:
    """Return the ``busy.*`` code for what kept events from being stored."""
    for kind, code in BUSY_CODES:
        if isinstance(error, kind):
            return code
    # Nobody knows whether the frame reached the disk; the sender repeats it under the same event_id.
    log.error("storing events failed in a way the spool does not know", exc_info=error)
    return "busy.unknown"


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
