"""A spool on a real disk, sinks that are small real objects, and a clock that moves when a test says so."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from edge.api import Batch
from edge.clock import SystemClock
from edge.config.model import BatchOptions, ComponentConfig, RetryOptions, SinkConfig
from edge.delivery.dead_letters import DeadLetterStore
from edge.delivery.poison import FlightRecorder, RecordFile
from edge.delivery.worker import SinkWorker
from edge.event import pack
from edge.outcomes import AttemptResult, SinkOutcome
from edge.spool.cursor import CursorFile
from edge.spool.format import EVENTS
from edge.spool.log import Log

WALL = 1_760_000_000.0


class ManualClock:
    """A clock that stands still until `advance`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.wall = WALL
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._ids = itertools.count()

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.wall

    async def sleep(self, secs: float) -> None:
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + secs, next(self._ids), future))
        await future

    @property
    def sleeping(self) -> list[float]:
        """Seconds until each sleeper wakes, soonest first."""
        return sorted(at - self.now for at, _, future in self._sleepers if not future.done())

    def advance(self, secs: float) -> None:
        """Move both clocks on and wake whoever is due."""
        self.now += secs
        self.wall += secs
        while self._sleepers and self._sleepers[0][0] <= self.now + 1e-9:
            future = heapq.heappop(self._sleepers)[2]
            if not future.done():
                future.set_result(None)


class RecordingSink:
    """A sink that writes down what it is given and answers as its script says; without a script it takes all."""

    def __init__(self, id: str = "crm", when: Callable[[Mapping[str, Any]], bool] | None = None) -> None:
        self.id = id
        self.when = when
        self.attempts: list[Batch] = []
        self.taken: list[bytes] = []
        self.script: list[Any] = []
        self.answer: Callable[[Batch], Any] | None = None
        """Called for each batch once the script is used up; may be a coroutine function."""
        self.opens = 0
        self.open_script: list[BaseException | None] = []
        self.closes = 0
        self.running = 0
        self.overlaps = 0

    async def open(self) -> None:
        self.opens += 1
        error = self.open_script.pop(0) if self.open_script else None
        if error is not None:
            raise error

    async def deliver(self, batch: Batch) -> Any:
        self.overlaps += self.running
        self.running += 1
        try:
            self.attempts.append(batch)
            answer = self.script.pop(0) if self.script else self.answer
            if callable(answer) and not isinstance(answer, type):
                answer = answer(batch)
            if asyncio.iscoroutine(answer):
                answer = await answer
            if isinstance(answer, BaseException):
                raise answer
            refused = answer if isinstance(answer, dict) else {}
            self.taken += [line for index, line in enumerate(batch.lines) if index not in refused]
            return answer
        finally:
            self.running -= 1

    async def close(self) -> None:
        self.closes += 1

    def numbers(self) -> list[int]:
        """The `n` of every event taken, in order."""
        return [orjson.loads(line)["n"] for line in self.taken]


class CountingObserver:
    """Adds up what delivery reports."""

    def __init__(self) -> None:
        self.results: Counter[AttemptResult] = Counter()
        self.outcomes: Counter[tuple[str, SinkOutcome]] = Counter()
        self.batches: list[int] = []
        self.durations: list[float] = []

    def attempt(self, sink: str, result: AttemptResult, duration_secs: float) -> None:
        self.results[result] += 1
        self.durations.append(duration_secs)

    def sink_settled(self, sink: str, outcome: SinkOutcome, n_events: int) -> None:
        self.outcomes[sink, outcome] += n_events

    def batch(self, sink: str, n_events: int) -> None:
        self.batches.append(n_events)


def line(n: int, **fields: Any) -> bytes:
    return orjson.dumps({"event_id": f"evt_{n}", "n": n, **fields})


class Spool:
    """The spool of one test: a log that can be closed and opened again, and frames of numbered events for it."""

    def __init__(self, path: Path, loop: asyncio.AbstractEventLoop) -> None:
        self.path = path
        self._loop = loop
        self.n = 0
        self.log = self._open(0)

    def _open(self, floor: int) -> Log:
        log = Log.open(
            self.path,
            shard="shard-000",
            segment_bytes=1 << 20,
            max_bytes=1 << 28,
            durability="disk",
            observer=None,
            floor=floor,
        )
        log.start(self._loop)
        return log

    async def put(self, n_events: int = 1, *, kind: int = EVENTS, size: int = 0, **meta: Any) -> int:
        """Append a frame of numbered events and wait until it is durable; return its first seq."""
        lines = [line(self.n + i, pad="x" * size) for i in range(n_events)]
        self.n += n_events
        return await self.put_lines(lines, kind=kind, **meta)

    async def put_lines(self, lines: Sequence[bytes], *, kind: int = EVENTS, **meta: Any) -> int:
        stored = {"key": "web", "received_at": "2025-10-09T08:53:20+00:00", "request_id": "req-1", **meta}
        return await self.log.append(pack(stored, lines), len(lines), kind)

    async def restart(self) -> None:
        await self.log.close()
        self.log = self._open(0)


@pytest.fixture
def spool(io_loop: Any, tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path / "spool" / "shard-000", io_loop.asyncio_loop)
    yield made
    io_loop.run_sync(made.log.close)


class Pair:
    """Two spools, the shards of one gateway."""

    def __init__(self, spools: list[Spool]) -> None:
        self.spools = spools
        self.observer = CountingObserver()

    def __iter__(self) -> Iterator[tuple[Path, Log]]:
        return iter([(one.path, one.log) for one in self.spools])


@pytest.fixture
def logs(spool: Spool, io_loop: Any) -> Iterator[Pair]:
    other = Spool(spool.path.with_name("shard-001"), io_loop.asyncio_loop)
    other.n = 1000
    yield Pair([spool, other])
    io_loop.run_sync(other.log.close)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def sink_config(id: str = "crm", **options: Any) -> SinkConfig:
    """Return a sink's configuration; keys of batch and retry are given flat."""
    component = ComponentConfig("sink", "recording", id, {}, None, None, "skip", "test:1")
    return SinkConfig(
        component=component,
        batch=BatchOptions(
            max_events=options.pop("max_events", 100),
            max_bytes=options.pop("max_bytes", 1 << 20),
            max_age_secs=options.pop("max_age_secs", 0.0),
        ),
        retry=RetryOptions(
            initial_secs=options.pop("initial_secs", 0.5),
            max_secs=options.pop("max_secs", 60.0),
            give_up_secs=options.pop("give_up_secs", None),
        ),
        timeout_secs=options.pop("timeout_secs", 10.0),
        dead_letter=options.pop("dead_letter", True),
        required=options.pop("required", False),
        **options,
    )


class Station:
    """A worker with all its parts; `worker` starts a new one on the same files, as a restart does."""

    def __init__(
        self, spool: Spool, sink: RecordingSink, store: DeadLetterStore, clock: Any, config: SinkConfig
    ) -> None:
        self.spool = spool
        self.sink = sink
        self.store = store
        self.clock = clock
        self.config = config
        self.observer = CountingObserver()
        self.workers: list[SinkWorker] = []
        self.turn = asyncio.Lock()

    def start(self, file: CursorFile | None = None) -> SinkWorker:
        file = file or CursorFile(self.spool.path, self.sink.id)
        self.store = DeadLetterStore(self.store.path.parent, self.sink.id, segment_bytes=1 << 20, max_bytes=1 << 26)
        self.worker = SinkWorker(
            self.sink,
            self.config,
            self.spool.log,
            file,
            self.store,
            self.observer,
            self.clock,
            rng=random.Random(7),
            recorder=FlightRecorder(self.sink.id, RecordFile(self.spool.path, self.sink.id), self.turn),
        )
        self.workers.append(self.worker)
        self.worker.start()
        return self.worker

    @property
    def settled(self) -> bool:
        return self.worker.snapshot().pending_events == 0

    async def letters(self) -> list[Any]:
        return await asyncio.to_thread(lambda: list(self.store.entries()))

    def assert_balanced(self) -> None:
        """Check the books of the sink: cursor invariant, and everything accepted has an outcome or is pending."""
        snapshot = self.worker.snapshot()
        cursor = snapshot.cursor
        assert cursor.position == cursor.base + cursor.settled_events
        assert self.spool.log.durable_seq == cursor.base + cursor.settled_events + snapshot.pending_events


@pytest.fixture
def station(io_loop: Any, spool: Spool, tmp_path: Path) -> Iterator[Callable[..., Station]]:
    """Return a function that builds a station; its workers are stopped after the test."""
    made: list[Station] = []

    def build(sink: RecordingSink | None = None, clock: Any = None, **options: Any) -> Station:
        sink = sink or RecordingSink()
        store = DeadLetterStore(tmp_path / "dead-letters", sink.id, segment_bytes=1 << 20, max_bytes=1 << 26)
        made.append(Station(spool, sink, store, clock or SystemClock(), sink_config(sink.id, **options)))
        return made[-1]

    yield build

    async def stop() -> None:
        for one in made:
            for worker in one.workers:
                await worker.stop(0.2)
            await one.store.close()

    io_loop.run_sync(stop)


Sinks = Callable[..., RecordingSink]


@pytest.fixture
def new_sink() -> Sinks:
    return RecordingSink


@pytest.fixture
def new_config() -> Callable[..., SinkConfig]:
    return sink_config


@pytest.fixture
def new_line() -> Callable[..., bytes]:
    return line


@pytest.fixture
def until(eventually: Callable[..., Awaitable[None]], clock: ManualClock) -> Callable[..., Awaitable[None]]:
    """Return a coroutine function that moves the clock on, sleeper by sleeper, until a condition holds."""

    async def wait(condition: Callable[[], Any], limit_secs: float = 10_000.0) -> None:
        end = clock.now + limit_secs

        def step() -> bool:
            if condition():
                return True
            if clock.sleeping and clock.now < end:
                clock.advance(clock.sleeping[0])
            return False

        await eventually(step)

    return wait
