"""Hands windows to one sink, again and again, until every event has its outcome."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto

from edge.api import EdgeError, PermanentError
from edge.clock import Clock
from edge.config.model import SinkConfig
from edge.delivery.attempt import (
    CANCELLED,
    Answer,
    Caller,
    DeliverySink,
    error_text,
    opens_circuit,
    per_event_errors,
    retry_after,
)
from edge.delivery.backoff import Backoff, sane_retry_after
from edge.delivery.circuit import CircuitBreaker, CircuitState
from edge.delivery.dead_letters import DeadLetterReason, DeadLetterStore, Letter, UnkeptError
from edge.delivery.observer import DeliveryObserver, GuardedObserver
from edge.delivery.poison import FlightRecorder
from edge.delivery.progress import CursorKeeper
from edge.delivery.reporter import Reporter
from edge.delivery.waiting import Waiter
from edge.delivery.window import DEAD, DELIVERED, Progress, Window
from edge.outcomes import AttemptResult, SinkOutcome


class Readiness(Enum):
    """What came of waiting for the next attempt."""

    READY = auto()
    GAVE_UP = auto()
    STOPPED = auto()


@dataclass(slots=True)
class Group:
    """Events of a window that are attempted together."""

    indices: Sequence[int]
    first_at: float | None = None
    """When they were first tried as this group, by the monotonic clock."""
    attempts: int = 0
    first_error: str = ""
    last_error: str = ""

    def failed(self, text: str) -> None:
        """Note an error."""
        self.first_error = self.first_error or text
        self.last_error = text

    def halves(self) -> list[Group]:
        """Return two groups in order, which give up on their own."""
        middle = len(self.indices) // 2
        parts = (self.indices[:middle], self.indices[middle:])
        return [Group(part, None, self.attempts, self.first_error, self.last_error) for part in parts]


class Delivery:
    """One sink's open, attempts, retries, circuit and dead letters. One window at a time."""

    def __init__(
        self,
        sink: DeliverySink,
        config: SinkConfig,
        shard: str,
        store: DeadLetterStore | None,
        keeper: CursorKeeper,
        observer: DeliveryObserver,
        clock: Clock,
        waiter: Waiter,
        rng: random.Random,
        recorder: FlightRecorder,
        caller: Caller | None = None,
    ) -> None:
        self._sink = sink
        self._config = config
        self._shard = shard
        self._store = store if config.dead_letter else None
        self._keeper = keeper
        self._observer = GuardedObserver(observer)
        self._clock = clock
        self._waiter = waiter
        self._backoff = Backoff(config.retry, rng)
        self._letters_backoff = Backoff(config.retry, rng)
        self._reporter = Reporter(sink.id, clock)
        self.breaker = CircuitBreaker(rng, config.retry)
        self.caller = caller or Caller()
        self.recorder = recorder
        self.reporter = self._reporter
        self.is_open = False
        """Whether `edge_open` succeeded and the connection is not known to be lost."""
        self._was_open = False
        self.last_error = ""
        """What went wrong last; empty after a success."""
        self._retry_at = 0.0
        self._refused: dict[int, Letter] = {}
        """Events of the window in hand that were given up on and are not dead letters yet."""

    @property
    def retry_in_secs(self) -> float:
        """Seconds until the next attempt may start; 0 when it may now."""
        return max(0.0, self._retry_at - self._clock.monotonic())

    async def open(self) -> None:
        """Open the sink for the first time, trying until it works or the worker stops.

        Later the attempt that needs it opens it. That it opens says little then: many sinks reach nobody by it, and a
        circuit that failed attempts have opened is closed by an attempt.
        """
        if not self._was_open and await self._ready(None) is Readiness.READY:
            self._was_open = True
            self._answered()

    async def deliver(self, window: Window) -> None:
        """Deliver a window. On return every event has its outcome and the cursor moved, unless the worker stops."""
        self._refused.clear()
        if not len(window):
            self._advance(window)
            return
        self._observer.batch(self._sink.id, len(window))
        groups = deque(map(Group, self.recorder.parts(window.seqs)))
        while groups:
            rest = await self._deliver_group(window, groups.popleft())
            if rest is None:
                return
            groups.extendleft(reversed(rest))
            buried = await self._bury(window)
            self._advance(window)
            if not buried:
                return
            if self.recorder.is_condemning:
                # Were the cursor behind it after the next death, it would have to be found once more.
                await self._keeper.saved()

    async def _deliver_group(self, window: Window, group: Group) -> list[Group] | None:
        """Make one attempt; return what is left to be delivered, or None when the worker stops."""
        if self.recorder.condemns(window.seqs[group.indices[0]]):
            return self._condemned(window, group)
        readiness = await self._ready(group)
        if readiness is Readiness.STOPPED:
            return None
        if readiness is Readiness.GAVE_UP:
            return self._refuse(window, group, group.indices, DeadLetterReason.GAVE_UP)
        await self._keeper.bounded()
        answer, secs = await self._attempt(window, group.indices)
        if answer.result is None:
            self.breaker.abandon()
            return None
        group.attempts += 1
        errors = per_event_errors(answer.value, len(group.indices)) if answer.result is AttemptResult.OK else {}
        result = _result(answer, errors)
        self._observer.attempt(self._sink.id, result, secs)
        if errors is None:
            return self._misunderstood(window, group, answer)
        if errors:
            return self._partly_taken(window, group, errors)
        if result is AttemptResult.OK:
            self._answered()
            window.settle(group.indices, DELIVERED)
            return []
        group.failed(answer.text)
        if result is not AttemptResult.PERMANENT:
            self._failed(answer.error, answer.text)
            return [group]
        self._answered(answer.text)
        if isinstance(answer.error, PermanentError) and answer.error.divide and len(group.indices) > 1:
            return group.halves()
        return self._refuse(window, group, group.indices, DeadLetterReason.PERMANENT)

    async def _attempt(self, window: Window, indices: Sequence[int]) -> tuple[Answer, float]:
        """Hand events to the sink, with a note of what is in flight; return its answer and how many seconds it took."""
        answer, secs = CANCELLED, 0.0
        try:
            await self.recorder.begin(range(window.seqs[indices[0]], window.seqs[indices[-1]] + 1))
            if not self._waiter.stopping:
                batch = window.batch(self._shard, indices)
                self.breaker.begin()
                started = self._clock.monotonic()
                answer = await self.caller.call(lambda: self._sink.deliver(batch), self._config.timeout_secs)
                secs = self._clock.monotonic() - started - self.caller.waited_secs
        finally:
            self.recorder.end(survived=answer.result is not None)
        return answer, secs

    def _condemned(self, window: Window, group: Group) -> list[Group]:
        """Give up on the event that is taken for the cause of the deaths, without another attempt."""
        group.attempts = self.recorder.deaths
        group.failed(f"the process died while it was being delivered, {group.attempts} times")
        return self._refuse(window, group, group.indices, DeadLetterReason.POISON)

    def _misunderstood(self, window: Window, group: Group, answer: Answer) -> list[Group]:
        """Give up on a batch of which nobody knows what the target took: the sink's answer makes no sense.

        Trying again would hand the target the same events for ever, since the defect is in the sink.
        """
        text = f"edge_deliver returned a {type(answer.value).__name__} that is not a mapping of index to error"
        group.failed(text)
        self._answered(text)
        return self._refuse(window, group, group.indices, DeadLetterReason.INVALID_RESULT)

    def _partly_taken(self, window: Window, group: Group, errors: Mapping[int, BaseException]) -> list[Group]:
        """Settle what the target judged of single events; return those that are to be retried."""
        again = [index for index, error in errors.items() if not isinstance(error, PermanentError)]
        again.sort()
        refused = sorted(errors.keys() - set(again))
        window.settle([group.indices[i] for i in range(len(group.indices)) if i not in errors], DELIVERED)
        rest = []
        if again:
            left = Group([group.indices[i] for i in again], group.first_at, group.attempts, group.first_error)
            worst = max((errors[i] for i in again), key=lambda error: sane_retry_after(retry_after(error)))
            left.failed(error_text(worst))
            rest.append(left)
            if len(again) == len(group.indices) or any(opens_circuit(errors[i]) for i in again):
                opening = next((errors[i] for i in again if opens_circuit(errors[i])), worst)
                self._failed(opening, left.last_error, asked=retry_after(worst))
            else:
                self._answered(left.last_error)
                self._retry_at = self._clock.monotonic() + self._backoff.next_secs(retry_after(worst))
        else:
            self._answered(error_text(errors[refused[0]]))
        if refused:
            texts = {group.indices[i]: error_text(errors[i]) for i in refused}
            self._refuse(window, group, list(texts), DeadLetterReason.PERMANENT, texts)
        return rest

    async def _ready(self, group: Group | None) -> Readiness:
        """Wait until an attempt may start, and see to it that the sink is open."""
        give_up_secs = self._config.retry.give_up_secs
        while not self._waiter.stopping:
            now = self._clock.monotonic()
            wait = max(0.0, self._retry_at - now)
            if group is not None and group.first_at is not None and give_up_secs is not None:
                left = group.first_at + give_up_secs - now
                if left <= 0:
                    return Readiness.GAVE_UP
                wait = min(wait, left)
            if wait > 0:
                await self._waiter.wait(wait)
                continue
            if group is not None and group.first_at is None:
                group.first_at = now
            if self.is_open or await self._open(group):
                return Readiness.READY
        return Readiness.STOPPED

    async def _open(self, group: Group | None) -> bool:
        """Call `edge_open` once; return whether it succeeded."""
        self.breaker.begin()
        answer = await self.caller.call(self._sink.open, self._config.timeout_secs)
        if answer.result is AttemptResult.OK:
            self.is_open = True
        elif answer.result is None:
            self.breaker.abandon()
        else:
            text = f"edge_open: {answer.text}"
            if group is not None:
                group.failed(text)
            self._failed(answer.error, text)
        return self.is_open

    def _answered(self, error: str = "") -> None:
        """Note that the target is there, whatever it thinks of the events."""
        self._backoff.reset()
        self._retry_at = 0.0
        self.last_error = error
        self._reporter.recovered(closed=self.breaker.succeed())

    def _failed(self, error: BaseException | None, text: str, *, asked: object = None) -> None:
        """Note a failed attempt and decide when the next one may start."""
        now = self._clock.monotonic()
        asked = asked if asked is not None else retry_after(error)
        wait = self._backoff.next_secs(asked)
        opened = self.breaker.fail(now, wait, open_circuit=opens_circuit(error))
        is_open = self.breaker.state is CircuitState.OPEN
        if is_open:
            wait = self.breaker.wait_secs(now)
            # The connection may be what is broken: open it again before the probe.
            self.is_open = False
        self._retry_at = now + wait
        self.last_error = text
        self._reporter.failed(text, opened=opened, is_open=is_open, wait_secs=wait)

    def _refuse(
        self,
        window: Window,
        group: Group,
        indices: Sequence[int],
        reason: DeadLetterReason,
        texts: Mapping[int, str] | None = None,
    ) -> list[Group]:
        """Give up on some events; `texts` has an error for each where the group's own does not fit. Nothing is left."""
        texts = texts or {}
        died_at = datetime.fromtimestamp(self._clock.time(), UTC)
        for index in indices:
            meta, line = window.stored(index)
            self._refused[index] = Letter(
                line=line,
                meta=meta,
                reason=reason,
                attempts=group.attempts,
                first_error=group.first_error or texts.get(index, ""),
                last_error=texts.get(index, group.last_error),
                died_at=died_at,
            )
        return []

    async def _bury(self, window: Window) -> bool:
        """Make dead letters of the refused events that the cursor is about to pass; False: the worker stopped before.

        Not earlier: were the worker to stop while an event before them is pending, they would be delivered once more
        and be dead letters as well.
        """
        indices = []
        index = window.first_pending()
        while index is not None and index in self._refused:
            indices.append(index)
            index = window.first_pending(index + 1)
        if not indices:
            return True
        letters = [self._refused[index] for index in indices]
        if self._store is not None and not await self._keep(self._store, letters):
            return False
        window.settle(indices, DEAD)
        last = letters[-1]
        self._reporter.dead_lettered(len(letters), str(last.reason), last.last_error, kept=self._store is not None)
        return True

    async def _keep(self, store: DeadLetterStore, letters: Sequence[Letter]) -> bool:
        """Write dead letters, trying until it works; False when the worker stops before."""
        while True:
            failure: BaseException
            try:
                await store.add(letters)
            except UnkeptError as error:
                letters, failure = error.letters, error.cause
            except (EdgeError, OSError) as error:
                failure = error
            else:
                self._letters_backoff.reset()
                return True
            self._reporter.letters_failed(error_text(failure))
            if self._waiter.stopping:
                return False
            await self._waiter.wait(self._letters_backoff.next_secs())

    def drop(self, window: Window, position: int) -> None:
        """Give up the events of a window that lie before a position and have no outcome: there is no room for them."""
        window.drop(position)
        self._advance(window)

    def drop_unread(self, position: int) -> None:
        """Give up what lies between the cursor and a position, whatever it is."""
        n_events = position - self._keeper.cursor.position
        if n_events > 0:
            self._settle(Progress(position, 0, 0, 0, 0, 0, n_events))

    def _advance(self, window: Window) -> None:
        """Move the cursor over what is settled, and say so."""
        progress = window.advance()
        if progress is not None:
            self._settle(progress)

    def _settle(self, progress: Progress) -> None:
        """Move the cursor and count.

        Frames that are another sink's have no outcome here: what was accepted is to equal the sum of the outcomes.
        """
        self._keeper.advance(progress)
        for outcome, n_events in (
            (SinkOutcome.DELIVERED, progress.delivered),
            (SinkOutcome.DEAD_LETTERED, progress.dead_lettered),
            (SinkOutcome.SKIPPED, progress.skipped),
            (SinkOutcome.DROPPED, progress.dropped),
        ):
            if n_events:
                self._observer.sink_settled(self._sink.id, outcome, n_events)
        if progress.lost:
            self._reporter.lost(progress.lost)


def _result(answer: Answer, errors: Mapping[int, BaseException] | None) -> AttemptResult:
    """Return how an attempt counts."""
    if answer.result is None or answer.result is not AttemptResult.OK:
        return answer.result or AttemptResult.RETRYABLE
    if errors is None:
        return AttemptResult.PERMANENT
    if not errors:
        return AttemptResult.OK
    permanent = all(isinstance(error, PermanentError) for error in errors.values())
    return AttemptResult.PERMANENT if permanent else AttemptResult.RETRYABLE
