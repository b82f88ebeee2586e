"""E7: what could be read in two ways is refused by both HTTP servers, however it arrives, and hides no request."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from harness.smuggling import HIDDEN, Case, cases

pytestmark = pytest.mark.both_servers

AT_ONCE = 25
ANSWER_SECS = 5.0
WAYS = {
    "whole": lambda case: [case.whole],
    "byte by byte": lambda case: [bytes([byte]) for byte in case.whole],
    "cut in the doubtful part": lambda case: case.halves,
    "a request behind it": lambda case: [case.whole + HIDDEN],
    "a request behind it, later": lambda case: [case.whole, HIDDEN],
}


def attempts(table: list[Case], cut_every: int) -> Iterator[tuple[Case, str, Iterable[bytes]]]:
    """Yield each case in each way; with `cut_every` also cut in two at every so many bytes."""
    for case in table:
        for way, pieces in WAYS.items():
            yield case, way, pieces(case)
        for at in range(1, len(case.whole), cut_every) if cut_every else ():
            yield case, f"cut at {at}", [case.whole[:at], case.whole[at:]]


async def answer_to(port: int, pieces: Iterable[bytes]) -> bytes:
    """Send pieces, each read before the next is sent, and return what comes back before the peer closes."""
    loop = asyncio.get_running_loop()
    answer = bytearray()
    with socket.socket() as sock:
        sock.settimeout(0)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(sock, ("127.0.0.1", port))
        for piece in pieces:
            with suppress(ConnectionError):  # it has had its answer
                sock.send(piece)
            # The server is in the same loop: it reads, and most often answers, in the next turns.
            for _ in range(3):
                await asyncio.sleep(0)
            with suppress(BlockingIOError, ConnectionError):
                answer += sock.recv(4096)
        async with asyncio.timeout(ANSWER_SECS):
            with suppress(ConnectionResetError):  # it closed while the last pieces were on their way
                while data := await loop.sock_recv(sock, 4096):
                    answer += data
    return bytes(answer)


def mistake(case: Case, answer: bytes) -> str | None:
    """Say what is wrong with an answer."""
    if not answer.startswith(b"HTTP/1.1 %d " % (case.status or 400)):
        return f"answered {answer[:40]!r} in place of {case.status or 400}"
    if case.status is None and b"http.malformed" not in answer:
        return f"taken, and then refused: {answer[-100:]!r}"
    if answer.count(b"HTTP/1.1 ") != 1:
        return "more than one answer"
    if b"\r\nConnection: close\r\n" not in answer and b" HTTP/1.0\r\n" not in case.before:
        return "does not say that it closes"
    return None


async def test_what_could_be_read_in_two_ways_hides_no_request(
    launch: Any, row: Any, scale: Any, short_linger: None, http_server: str
) -> None:
    table = list(cases())
    assert len({case.name for case in table}) == len(table) >= 60
    bound = "0 second requests, 400 and close, 0 tracebacks"
    with row(
        "E7", what=f"{len(table)} requests that could be read in two ways, on both servers", unit="requests"
    ) as found:
        found.bound = bound
        gateway = await launch(server={"limits": {"connections": 500}})
        mistakes: list[str] = []
        turns = asyncio.Semaphore(AT_ONCE)

        async def attempt(case: Case, way: str, pieces: Iterable[bytes]) -> None:
            async with turns:
                found.tried += 1
                try:
                    wrong = mistake(case, await answer_to(gateway.port, pieces))
                except TimeoutError:
                    wrong = "no answer, or no end"
            if wrong:
                mistakes.append(f"{case.name}, {way}: {wrong}")

        await asyncio.gather(*(attempt(*one) for one in attempts(table, scale(0, 4))))
        assert not mistakes, "\n".join(["", *sorted(mistakes)])
        metrics = await gateway.metrics()
        answered = sum(value for name, value in metrics.items() if name.startswith("edge_http_requests_total{"))
        assert answered == found.tried
        assert gateway.gateway.spool.durable_seq == 0, "a hidden request was taken"
        site = gateway.process._site
        assert not site.in_flight
        assert site.body_bytes == 0
        found.note(f"{http_server}: {found.tried / len(table):.0f} ways to send each")
