"""The worker of one sink: takes events off the spool, has them delivered, and keeps the sink's cursor."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import structlog

from edge.api import EdgeError
from edge.clock import Clock
from edge.config.model import BatchOptions, SinkConfig
from edge.delivery.attempt import Caller, DeliverySink
from edge.delivery.batcher import Batcher, Readable
from edge.delivery.beginning import first_cursor
from edge.delivery.dead_letters import DeadLetterStore
from edge.delivery.deliver import Delivery
from edge.delivery.dropping import AT_ONCE, Dropper
from edge.delivery.observer import DeliveryObserver
from edge.delivery.poison import FlightRecorder
from edge.delivery.progress import CursorKeeper, Saveable
from edge.delivery.waiting import Waiter
from edge.delivery.window import Window
from edge.spool.cursor import Cursor

log = structlog.get_logger(__name__)

READ_SLICE_SECS = 0.05
"""How long one look into the spool may take before the worker thread hands over what it has."""
START_OVER_SECS = 1.0
ABORT_SECS = 0.25
CLOSE_SECS = 0.5
"""What `edge_close` may take when the time for stopping is used up."""
EPOCH_YEAR = 1970


class Source(Readable, Protocol):
    """A shard of the spool as its sinks' workers see it: a log, or what follows the log of another process."""

    @property
    def first_seq(self) -> int:
        """Number of the first event that may still be there."""

    def subscribe(self, callback: Callable[[int], None]) -> Callable[[], None]:
        """Have `callback` called on the loop with `durable_seq` after commits; returns what ends that."""


@dataclass(frozen=True, slots=True)
class SinkSnapshot:
    """The state of a sink at one moment."""

    id: str
    required: bool
    open: bool
    circuit: int
    """0 closed, 1 half-open, 2 open."""
    pending_events: int
    oldest_pending_age_secs: float
    """0 when nothing is pending, and as long as the worker has not looked at it."""
    cursor: Cursor
    durable_position: int
    last_error: str
    retry_in_secs: float
    dead_letters: int
    dead_letters_evicted: int
    """Dead letters that were lost to the cap since the sink was started."""


class SinkWorker:
    """One task per sink: reads the spool from the cursor, one batch in flight, retries, dead letters, cursor.

    `start` and `stop` are called once each, on the event loop. Nothing that a sink does reaches beyond its worker.
    `shard` names the spool in the ids of batches. Without a `recorder` no event is found to kill the process.
    """

    def __init__(
        self,
        sink: DeliverySink,
        config: SinkConfig,
        log: Source,
        cursor_file: Saveable,
        dead_letters: DeadLetterStore | None,
        observer: DeliveryObserver,
        clock: Clock,
        *,
        shard: str = "shard-000",
        rng: random.Random | None = None,
        recorder: FlightRecorder | None = None,
        caller: Caller | None = None,
    ) -> None:
        self.id = sink.id
        self.dead_letters = dead_letters
        """Owned by the worker: counted at start, closed at stop."""
        self._sink = sink
        self._config = config
        self._log = log
        self._file = cursor_file
        self._observer = observer
        self._clock = clock
        self._shard = shard
        self._rng = rng or random.Random()  # noqa: S311 - jitter, no secret
        self._waiter = Waiter(clock)
        self._executor = ThreadPoolExecutor(2, thread_name_prefix=f"edge-sink-{sink.id}")
        self._recorder = recorder or FlightRecorder(sink.id)
        self._caller = caller
        self._noticed_at: float | None = None
        self._finish_at = 0
        """How far the spool reached when the worker was told to deliver what is pending."""
        self._window: Window | None = None
        self._keeper: CursorKeeper
        self._delivery: Delivery
        self._dropper: Dropper
        self._batcher: Batcher
        self._tasks: list[asyncio.Task[None]] = []
        self._unsubscribe: Callable[[], None] | None = None
        self._stopped: asyncio.Task[None] | None = None

    @property
    def required(self) -> bool:
        """Whether the gateway refuses events rather than let this sink lose some."""
        return self._config.required

    @property
    def position(self) -> int:
        """How far the sink is, in memory."""
        return self._keeper.cursor.position

    @property
    def durable_position(self) -> int:
        """The position in the cursor on disk: what lies below it, this sink needs no more."""
        return self._keeper.durable_position

    def start(self) -> None:
        """Load the cursor and begin. A sink that is seen for the first time gets what is accepted from now on.

        Blocks for the read of the cursor and of what was in flight, and for the first save of a new cursor: an event
        that is accepted after that is this sink's even if the process dies the next moment.
        """
        cursor, durable = first_cursor(self.id, self._log, self._file)
        self._keeper = CursorKeeper(self._log, self.id, self._file, cursor, self._executor, durable=durable)
        if not durable:
            self._keeper.touch()
        self._recorder.load(cursor.position, self._log.durable_seq)
        self._batcher = self._new_batcher()
        self._delivery = Delivery(
            self._sink,
            self._config,
            self._shard,
            self.dead_letters,
            self._keeper,
            self._observer,
            self._clock,
            self._waiter,
            self._rng,
            self._recorder,
            self._caller,
        )
        self._dropper = Dropper(self._waiter, self._delivery, self._keeper, self._clock)
        self._unsubscribe = self._log.subscribe(self._committed)
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._run())]
        if self.dead_letters is not None:
            self._tasks.append(loop.create_task(self._count_letters(self.dead_letters)))

    async def stop(self, timeout_secs: float, *, deliver_pending: bool = True) -> None:
        """Deliver what is pending within `timeout_secs`, then save the cursor and close the sink.

        Without `deliver_pending` only the attempt in hand may finish, and no other one starts. A sink that fails, or
        waits after a failure, stops at once: drain never waits for a dead target. Takes at most about a second longer
        than that, whatever the sink does. What is not delivered stays in the spool.
        """
        if self._stopped is None:
            self._stopped = asyncio.get_running_loop().create_task(self._stop(timeout_secs, deliver_pending))
        await asyncio.shield(self._stopped)

    def remind(self) -> None:
        """Say what happened to events since the last line about it; called every second or so."""
        self._delivery.reporter.remind()

    async def save_past(self, position: int) -> bool:
        """Make the cursor durable now if it is past a position; return whether it is durably past it."""
        return await self._keeper.save_past(position)

    async def drop_before(self, position: int) -> bool:
        """Give up the events before a position and go on from there; return whether the cursor is durably past it.

        An attempt in hand gets a moment to end, then it is cancelled. A worker that is stopped gives nothing up.
        """
        if self.position < position and self._stopped is None:
            await self._dropper.ask(position, self._tasks[0])
        return await self.save_past(position)

    def snapshot(self) -> SinkSnapshot:
        """Return the sink's state now. Cheap: reads memory."""
        cursor = self._keeper.cursor
        return SinkSnapshot(
            id=self.id,
            required=self._config.required,
            open=self._delivery.is_open,
            circuit=int(self._delivery.breaker.state),
            pending_events=max(0, self._log.durable_seq - cursor.position),
            oldest_pending_age_secs=self._oldest_pending_age_secs(),
            cursor=cursor,
            durable_position=self._keeper.durable_position,
            last_error=self._delivery.last_error,
            retry_in_secs=self._delivery.retry_in_secs,
            dead_letters=self.dead_letters.count() if self.dead_letters is not None else 0,
            dead_letters_evicted=self.dead_letters.evicted if self.dead_letters is not None else 0,
        )

    def _new_batcher(self, options: BatchOptions | None = None) -> Batcher:
        return Batcher(self.id, self._log, self.position, options or self._config.batch, self._sink.when)

    def _committed(self, durable_seq: int) -> None:
        """Called after every group commit."""
        if self._noticed_at is None:
            self._noticed_at = self._clock.monotonic()
        self._waiter.committed(durable_seq)

    async def _count_letters(self, store: DeadLetterStore) -> None:
        try:
            await store.start()
        except (OSError, EdgeError) as error:
            log.error("dead letters cannot be counted", sink=self.id, error=str(error))

    async def _run(self) -> None:
        while not self._waiter.stopped:
            try:
                if self._waiter.interrupted:
                    await self._dropper.drop(self._new_batcher(AT_ONCE), self._executor)
                    self._batcher = self._new_batcher()
                await self._work()
                if self._waiter.finishing and not self._waiter.interrupted:
                    return
            except Exception as error:  # noqa: BLE001 - a worker that ends would be a sink that is silently dead
                self._delivery.reporter.unreadable(error)
                self._batcher = self._new_batcher()
                await self._waiter.wait(START_OVER_SECS)

    async def _work(self) -> None:
        if self._log.durable_seq > self._batcher.read_position:
            # Before the sink is open: the age of what waits for it is to be known even if it never opens.
            await self._fill(None)
        await self._delivery.open()
        while (window := await self._next_window()) is not None:
            self._window = window
            try:
                await self._delivery.deliver(window)
                if self._waiter.interrupted:
                    self._delivery.drop(window, self._dropper.position)
            finally:
                self._window = None

    async def _next_window(self) -> Window | None:
        """Wait until a batch is full or old enough and return it; None when the worker stops.

        A window without events is returned as soon as skipped events were read and no other is buffered.
        """
        batcher = self._batcher
        while not self._waiter.stopping:
            if batcher.full or (batcher.behind and batcher.empty):
                # Nothing but skipped events needs no company: a sink that is through is not to look behind.
                return batcher.cut()
            now = self._clock.monotonic()
            unread = self._log.durable_seq - batcher.read_position
            if self._waiter.finishing and batcher.read_position >= self._finish_at and not batcher.behind:
                return None
            due_at = now if self._waiter.finishing else self._due_at(now, unread)
            due = due_at is not None and now >= due_at
            if unread > 0 and (due or unread >= batcher.wanted_events()):
                before = batcher.read_position
                await self._fill(due_at)
                if batcher.read_position == before:
                    # The spool has more and does not give it: asking again at once would only burn the processor.
                    await self._waiter.wait(START_OVER_SECS)
            elif not due:
                if due_at is None:
                    # The first event only starts the clock of its batch.
                    await self._waiter.wait(None, batcher.read_position + 1)
                else:
                    await self._waiter.wait(due_at - now, batcher.read_position + batcher.wanted_events())
                continue
            if batcher.behind and (batcher.empty or due):
                return batcher.cut()
        return None

    def _due_at(self, now: float, unread: int) -> float | None:
        """Return when the oldest pending event has waited long enough; None when nothing is pending."""
        oldest = self._batcher.oldest_seen_at()
        if oldest is None and unread > 0:
            if self._noticed_at is None:
                self._noticed_at = now
            oldest = self._noticed_at
        return None if oldest is None else oldest + self._config.batch.max_age_secs

    async def _fill(self, due_at: float | None) -> None:
        """Read on in a worker thread."""
        batcher, clock = self._batcher, self._clock
        now = clock.monotonic()
        noticed_at = now if self._noticed_at is None else self._noticed_at
        enough_at = now + READ_SLICE_SECS if due_at is None else max(now + READ_SLICE_SECS, due_at)

        def enough() -> bool:
            read_until = now + READ_SLICE_SECS if batcher.empty else enough_at
            return clock.monotonic() >= read_until

        lost = batcher.unreadable_events
        await asyncio.get_running_loop().run_in_executor(self._executor, batcher.fill, noticed_at, enough)
        # Commits that came while the thread was reading were noticed with what it read.
        self._noticed_at = None if batcher.read_position >= self._log.durable_seq else clock.monotonic()
        if batcher.unreadable_events > lost:
            log.error("frames of the spool hold no events", sink=self.id, events=batcher.unreadable_events - lost)

    def _oldest_pending_age_secs(self) -> float:
        metadata = None
        if self._window is not None and (index := self._window.first_pending()) is not None:
            metadata = self._window.metadata(index)
        elif self._window is None:
            metadata = self._batcher.head_metadata()
        if metadata is None or metadata.received_at.year <= EPOCH_YEAR:
            return 0.0
        return max(0.0, self._clock.time() - metadata.received_at.timestamp())

    async def _stop(self, timeout_secs: float, deliver_pending: bool) -> None:
        if not self._tasks:
            self._executor.shutdown(wait=False)
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_secs
        run = self._tasks[0]
        if deliver_pending:
            # What comes after this waits for the next start: while other processes take events, there is always more.
            self._finish_at = self._log.durable_seq
            self._waiter.finish()
        else:
            self._waiter.stop()
        await asyncio.wait({run}, timeout=max(0.0, timeout_secs))
        self._waiter.stop()
        if not run.done():
            await self._delivery.caller.cancel()
            await asyncio.wait({run}, timeout=ABORT_SECS)
        if self._unsubscribe is not None:
            self._unsubscribe()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks, timeout=ABORT_SECS)
        await self._recorder.close()
        await self._keeper.close()
        self._delivery.reporter.remind(at_once=True)
        await self._close_sink(max(CLOSE_SECS, deadline - loop.time()))
        if self.dead_letters is not None:
            await asyncio.wait({loop.create_task(self.dead_letters.close())}, timeout=CLOSE_SECS)
        self._executor.shutdown(wait=False)

    async def _close_sink(self, timeout_secs: float) -> None:
        """Call `edge_close`, once."""
        reporter = self._delivery.reporter
        if self._delivery.caller.stuck:
            reporter.stuck()
        # Another caller: this one would wait for the end of a call that does not end.
        closing = asyncio.get_running_loop().create_task(Caller().call(self._sink.close, timeout_secs))
        await asyncio.wait({closing}, timeout=timeout_secs + ABORT_SECS)
        if not closing.done():
            closing.cancel()
            reporter.close_failed("it does not end")
        elif (answer := closing.result()).error is not None:
            reporter.close_failed(answer.text)
