"""How the processes of one gateway talk: short questions from the delivery process, and the answers of the others.

Each ingest process has a pair of datagram sockets with the delivery process. A question has a number, so that an answer
to somebody who is gone is told from one that is waited for. What is long, the metrics, goes over the board.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import orjson
import structlog

from edge.api import EdgeError
from edge.board import DELIVERY, Board, State
from edge.gateway import Check, Gateway
from edge.roles import shard_name
from edge.scrape import Samples, cumulative, pack, take, together, unpack

log = structlog.get_logger(__name__)

ANSWER_SECS: Final = 1.0
LONG_SECS: Final = 30.0
"""What a reload or a repair may take."""
DATAGRAM_BYTES: Final = 160 * 1024
"""Below what a socket's buffer takes by default."""
TEXT_CHARS: Final = 20_000

Answerer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class PeerError(EdgeError):
    """Another process of the gateway did not do what it was asked; the text says which, and why."""


class Ledger:
    """What one process counts, with what those before it in its place had counted; left on the board for the next."""

    def __init__(self, gateway: Gateway, board: Board, place: int) -> None:
        self._gateway = gateway
        self._snapshot = board.snapshot(place)
        try:
            self._before = cumulative(unpack(self._snapshot.read()))
        except (ValueError, TypeError):  # half-written by who died over it; to count from 0 is no reason to die too
            log.warning("what an earlier process had counted is lost: its counters begin at 0", place=place)
            self._before = {}

    def leave(self) -> Samples:
        """Return what is counted so far, and leave it on the board: first there, then anywhere else."""
        samples = together((self._before, take(self._gateway.metrics.registry)))
        if not self._snapshot.write(pack(samples)):
            log.warning("the metrics of this process are too many to be shared", samples=len(samples))
        return samples


class Line:
    """One end of a pair of sockets, on the event loop."""

    def __init__(self, sock: socket.socket, heard: Callable[[dict[str, Any]], None]) -> None:
        sock.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        self._sock = sock
        self._heard = heard
        asyncio.get_running_loop().add_reader(sock, self._readable)

    def say(self, message: Mapping[str, Any]) -> bool:
        """Send a message; False when it cannot be taken: nobody has read for long, or it is too large."""
        try:
            self._sock.send(orjson.dumps(message))
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Hear nothing any more."""
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()

    def _readable(self) -> None:
        with suppress(BlockingIOError, ValueError):
            self._heard(orjson.loads(self._sock.recv(DATAGRAM_BYTES * 2)))


class Answers:
    """The end of an ingest process: does what the delivery process asks for."""

    def __init__(self, sock: socket.socket, answerers: Mapping[str, Answerer]) -> None:
        self._answerers = answerers
        self._tasks: set[asyncio.Task[None]] = set()
        self._line = Line(sock, self._heard)

    def close(self) -> None:
        """Answer nothing any more."""
        self._line.close()
        for task in self._tasks:
            task.cancel()

    def _heard(self, question: dict[str, Any]) -> None:
        task = asyncio.create_task(self._answer(question))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, question: dict[str, Any]) -> None:
        number = question.get("number")
        try:
            answer = await self._answerers[question["what"]](question)
        except (EdgeError, OSError) as error:
            answer = {"error": (str(error) or type(error).__name__)[:TEXT_CHARS]}
        except Exception as error:
            log.exception("a question of the delivery process could not be answered", what=question.get("what"))
            answer = {"error": type(error).__name__}
        if not self._line.say({"number": number, **answer}):
            self._line.say({"number": number, "error": "the answer is too long"})


class Peers:
    """The end of the delivery process: knows the ingest processes, and speaks for all of them together."""

    def __init__(self, gateway: Gateway, board: Board, socks: Sequence[socket.socket]) -> None:
        self._gateway = gateway
        self._board = board
        self._ledger = Ledger(gateway, board, DELIVERY)
        # Not from 0: an answer to a question of the one before, who is gone, is none to one of this process.
        self._numbers = itertools.count(time.monotonic_ns())
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._lines = {place: Line(sock, self._heard) for place, sock in enumerate(socks, 1)}
        self._answering: set[int] = set(self._lines)
        gateway.metrics.sources["edge_process_up"] = self._up
        gateway.metrics.sources["edge_process_pid"] = self._pids
        gateway.metrics.sources["edge_process_restarts_total"] = self._restarts

    async def ask(self, place: int, what: str, secs: float = ANSWER_SECS, **details: Any) -> dict[str, Any]:
        """Return what an ingest process answers; `PeerError` when it does not, or says that it cannot."""
        number = next(self._numbers)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            if not self._lines[place].say({"number": number, "what": what, **details}):
                raise PeerError(f"ingest-{place} does not answer")
            async with asyncio.timeout(secs):
                answer = await future
        except TimeoutError:
            raise PeerError(f"ingest-{place} does not answer") from None
        finally:
            del self._waiting[number]
        if "error" in answer:
            raise PeerError(f"ingest-{place}: {answer['error']}")
        return answer

    async def ask_all(self, what: str, secs: float = ANSWER_SECS) -> dict[int, dict[str, Any] | PeerError]:
        """Ask every ingest process the same, at once; return what each of them answered, or why it did not."""
        places = list(self._lines)
        answers = await asyncio.gather(*(self._try(place, what, secs) for place in places))
        return dict(zip(places, answers, strict=True))

    async def _try(self, place: int, what: str, secs: float) -> dict[str, Any] | PeerError:
        if self._board.state(place) is not State.UP:
            return PeerError(f"ingest-{place} is not running")
        try:
            return await self.ask(place, what, secs)
        except PeerError as error:
            return error

    async def scrape(self) -> Samples:
        """Return the metrics of all processes together; of one that does not answer only what it had counted."""
        answers = await self.ask_all("metrics")
        self._answering = {place for place, answer in answers.items() if not isinstance(answer, PeerError)}
        parts = [self._ledger.leave()]
        for place in self._lines:
            samples = unpack(self._board.snapshot(place).read())
            parts.append(samples if place in self._answering else cumulative(samples))
        return together(parts)

    def leave(self) -> None:
        """Leave on the board what this process has counted."""
        self._ledger.leave()

    async def checks(self) -> list[Check]:
        """Return what the readiness of the whole gateway depends on."""
        own = self._gateway.checks()
        if self._board.is_draining:
            own = [item for item in own if item.name != "draining"]
            own.append(Check("draining", ok=False, detail="the gateway is stopping"))
        answers = await self.ask_all("checks")
        waiting = self._gateway.shards.missing
        for place, answer in answers.items():
            name = f"process:ingest-{place}"
            if isinstance(answer, PeerError):
                own.append(Check(name, ok=False, detail=str(answer)))
            elif shard_name(place) in waiting:
                own.append(Check(name, ok=False, detail="its shard is not being delivered yet"))
            else:
                own.append(Check(name, ok=not answer["failing"], detail=answer["failing"]))
        return own

    async def reload(self) -> None:
        """Have every ingest process that runs read the configuration again; `PeerError` names those that did not."""
        answers = await self.ask_all("reload", LONG_SECS)
        errors = [
            str(answer)
            for place, answer in answers.items()
            # One that is being started reads the new configuration by itself.
            if isinstance(answer, PeerError) and self._board.state(place) is State.UP
        ]
        if errors:
            raise PeerError("; ".join(errors))

    def close(self) -> None:
        """Ask nobody any more."""
        for line in self._lines.values():
            line.close()

    def _heard(self, answer: dict[str, Any]) -> None:
        future = self._waiting.get(answer.pop("number", -1))
        if future is not None and not future.done():
            future.set_result(answer)

    def _up(self) -> list[tuple[tuple[str, ...], float]]:
        ingest = [((f"ingest-{place}",), float(place in self._answering)) for place in self._lines]
        return [(("delivery",), 1.0), *ingest]

    def _pids(self) -> list[tuple[tuple[str, ...], float]]:
        ingest = [((f"ingest-{place}",), float(self._board.pid(place))) for place in self._lines]
        return [(("delivery",), float(self._board.pid(DELIVERY))), *ingest]

    def _restarts(self) -> list[tuple[tuple[str, ...], float]]:
        board = self._board
        return [
            (("delivery",), float(board.restarts(DELIVERY))),
            (("ingest",), float(sum(board.restarts(place) for place in self._lines))),
        ]


def failing(checks: Sequence[Check]) -> str:
    """Return what of some checks fails, in words; empty when nothing does."""
    return "; ".join(f"{check.name}: {check.detail or 'fails'}" for check in checks if not check.ok)
