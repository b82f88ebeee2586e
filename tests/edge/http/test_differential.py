"""Both HTTP servers answer the same to any bytes: what one takes and the other refuses, two have read in two ways."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import socket
from collections import Counter
from contextlib import suppress
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

KEY = "test-key-0123456789"
EXAMPLES = 500
QUIET_SECS = 0.05
SURELY_QUIET_SECS = 1.0
EVENT = json.dumps({
    "event_id": "e", "event_type": "click", "event_name": "n", "event_time": "2025-09-17T10:00:00Z",
    "user_id": "u", "session_id": "s", "page_name": "p",
}).encode()  # fmt: skip
END = f"GET /healthz HTTP/1.1\r\nHost: end\r\nX-API-Key: {KEY}\r\nConnection: close\r\n\r\n".encode()
"""Sent behind every request: shows whether both servers see the end of it at the same place."""

TOKENS = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b";", b",", b"=", b"\x0b", b"\x0c", b"\x7f", b"\x80", b"\xff",
    b"\xa0", b"0", b"1", b"2", b"+", b"-", b"_", b"0x", b"a", b"F", b"/", b"?", b"#", b"%", b"*", b"@", b"[", b"]",
    b'"',
    b"\\",
    b"\r\n\r\n", b"\r\n ", b"HTTP/1.1", b"HTTP/1.0", b"http://x", b"GET / HTTP/1.1\r\nHost: y\r\n\r\n",
    b"Content-Length: 2\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", b"2\r\n{}\r\n",
    b"Host: y\r\n", b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Expect: 100-continue\r\n",
    b"Upgrade: h2c\r\n", b"chunked", b"close", b"identity",
]  # fmt: skip
METHODS = [
    b"POST",
    b"GET",
    b"HEAD",
    b"OPTIONS",
    b"PUT",
    b"DELETE",
    b"PATCH",
    b"TRACE",
    b"CONNECT",
    b"post",
    b"BREW",
    b"PRI",
]
TARGETS = [
    b"/ingest", b"/ingest/batch", b"/healthz", b"/ingest?verbose=1", b"/ingest/", b"//ingest", b"/%69ngest",
    b"/ingest?api_key=%ff", b"/ingest;x", b"*", b"http://x/ingest", b"http://x", b"x:80", b"ingest", b"/\xff",
    b"/ingest#x", b"/nowhere", b"/ingest?#", b"/ingest?a b", b'/"', b"/ingest?%", b"/ingest??", b"/../ingest", b"?",
    b"",
]  # fmt: skip
VERSIONS = [b"HTTP/1.1"] * 6 + [
    b"HTTP/1.0",
    b"HTTP/1.0",
    b"HTTP/1.2",
    b"HTTP/2.0",
    b"HTTP/0.9",
    b"http/1.1",
    b"HTTP/1.",
    b"",
]
HEADERS = [
    b"Content-Type: application/json", b"Content-Type: image/png", b"Content-Encoding: gzip", b"Connection: close",
    b"Connection: keep-alive", b"Connection: Close", b"Connection: x, close", b"Connection: upgrade", b"Connection:",
    b"Connection: closed", b"Connection: keep-alive, close", b"Connection: keep-alive\r\nConnection: close",
    b"Upgrade: websocket", b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: x",
    b"Expect: 100-continue", b"Expect: 100-Continue ", b"Expect: x", b"Expect:", b"TE: trailers", b"Trailer: X-T",
    b"X-Empty:", b"X-Tab:\ta\t", b"X-High: \xe4\xff", b"X-API-Key: wrong", b"Authorization: Basic x", b"Origin: http://x",
    b"Host: y", b"X A: b", b"X-A : b", b"X-A", b": b", b"Content-Length : 2", b"X-Request-Id: a b", b"Cookie: a=b",
    b"Proxy-Connection: close", b"Keep-Alive: timeout=5", b"X-Forwarded-For: 1.2.3.4", b"X(: b", b"X!#$%&'*+-.^_`|~: b",
    b"Content_Length: 2", b"X-A: b\r\n c", b"X-A: \x01", b"X-A: b\rc", b"X-A: b\nc", b"\xe4: b",
]  # fmt: skip
LENGTHS = [
    b"%d",
    b"0%d",
    b" %d ",
    b"\t%d",
    b"+%d",
    b"%d, %d",
    b"%d,",
    b"%d\r\nContent-Length: %d",
    b"%d0",
    b"-%d",
    b"",
    b"%dx",
]
CODINGS = [b"chunked"] * 5 + [
    b"Chunked",
    b" chunked ",
    b"identity",
    b"gzip, chunked",
    b"chunked, chunked",
    b"xchunked",
    b"",
]
SIZES = [b"%x"] * 6 + [
    b"%X",
    b"0%x",
    b"00%x",
    b" %x",
    b"%x ",
    b"%x;a=b",
    b"0x%x",
    b"+%x",
    b"%x\n",
    b"000000000000000%x",
]
ENDS = [b"0\r\n\r\n"] * 6 + [
    b"00\r\n\r\n",
    b"0\r\nX-T: a\r\n\r\n",
    b"0\n\n",
    b"0\r\n\n",
    b"0;a\r\n\r\n",
    b"",
    b"-0\r\n\r\n",
]


@st.composite
def framed_bodies(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Return header lines that say how long a body is, and the body; most of the time they fit."""
    body = draw(st.sampled_from([EVENT, b"[" + EVENT + b"]", b"{}", b"", b"x" * 70]))
    kind = draw(st.sampled_from(["length", "length", "chunks", "chunks", "none", "both"]))
    lines, sent = b"", b""
    if kind in ("length", "both"):
        length = draw(st.sampled_from(LENGTHS[:1] * 8 + LENGTHS))
        lines += b"Content-Length: " + length.replace(b"%d", b"%d" % len(body)) + b"\r\n"
        sent = body
    if kind in ("chunks", "both"):
        lines += b"Transfer-Encoding: " + draw(st.sampled_from(CODINGS)) + b"\r\n"
        pieces = [body[:40], body[40:]] if draw(st.booleans()) else [body]
        sent = b"".join(
            draw(st.sampled_from(SIZES)).replace(b"%x", b"%x" % len(piece)).replace(b"%X", b"%X" % len(piece))
            + b"\r\n" + piece + b"\r\n"
            for piece in pieces if piece
        ) + draw(st.sampled_from(ENDS))  # fmt: skip
    return lines, sent


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Return a request that is nearly one."""
    method, target = draw(st.sampled_from(METHODS[:1] * 8 + METHODS)), draw(st.sampled_from(TARGETS[:3] * 6 + TARGETS))
    line = b" ".join([method, target, draw(st.sampled_from(VERSIONS))])
    lines = [b"Host: x"] * draw(st.sampled_from([1] * 10 + [0, 2])) + [b"X-API-Key: " + KEY.encode()]
    lines += draw(st.lists(st.sampled_from(HEADERS), max_size=3))
    framing, body = draw(framed_bodies())
    request = line + b"\r\n" + b"".join(one + b"\r\n" for one in lines) + framing + b"\r\n" + body
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        at = draw(st.integers(0, len(request)))
        cut = draw(st.sampled_from([0, 0, 1, 2]))
        request = request[:at] + draw(st.sampled_from([b"", *TOKENS])) + request[at + cut :]
    return request


async def answers_to(port: int, pieces: list[bytes], quiet_secs: float) -> bytes:
    """Send pieces, one after the other, and return what comes back until the peer closes or says no more."""
    loop = asyncio.get_running_loop()
    answer = bytearray()
    with socket.socket() as sock:
        sock.settimeout(0)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(sock, ("127.0.0.1", port))
        for piece in pieces:
            with suppress(ConnectionError):
                sock.send(piece)
            for _ in range(3):
                await asyncio.sleep(0)
            with suppress(BlockingIOError, ConnectionError):
                answer += sock.recv(65536)
        with suppress(TimeoutError, ConnectionError):
            while True:
                async with asyncio.timeout(quiet_secs):
                    data = await loop.sock_recv(sock, 65536)
                if not data:
                    break
                answer += data
    return bytes(answer)


def verdicts(answer: bytes) -> list[str]:
    """Return the statuses of the answers, with the code of those that are refusals."""
    found = []
    for part in re.split(rb"HTTP/1\.[01] (?=\d{3} )", answer)[1:]:
        if part.startswith(b"100 "):
            continue  # Tornado also says it to a request without a body; either is right (RFC 9110, section 10.1.1)
        code = re.search(rb'"code":"([a-z_.]+)"', part)
        found.append(part[:3].decode() + (f" {code[1].decode()}" if code else ""))
    return found


def lists_connection_options(request: bytes) -> bool:
    values = re.findall(rb"\nconnection:[ \t]*(.*?)[ \t]*\r", request, re.IGNORECASE)
    return len(values) > 1 or any(b"," in value for value in values)


def difference(request: bytes, fast: list[str], tornado: list[str]) -> str | None:
    """Say how the answers differ, unless it is one of the differences that are known:

    - Tornado sees a `close` or `keep-alive` only where it is the one word of the one header, and keeps or closes the
      connection otherwise by the version; the fast server reads the list (RFC 9110, section 7.6.1). One may answer
      what follows and the other not.
    - The parser of the fast server takes no tab behind `chunked`.
    """
    if fast == tornado:
        return None
    if fast[-1:] == ["400 http.malformed"] and re.search(rb"chunked *\t[ \t]*\r\n", request, re.IGNORECASE):
        return None
    shorter = min(len(fast), len(tornado))
    if shorter and fast[:shorter] == tornado[:shorter] and lists_connection_options(request):
        return None
    return f"fast {fast}, tornado {tornado}"


def test_both_servers_answer_the_same(io_loop: Any, launch: Any, tmp_path: Any, short_linger: None) -> None:
    async def start() -> list[Any]:
        return [
            await launch(
                server={"http": name},
                spool={"path": str(tmp_path / name), "durability": "memory"},
                sinks={"nowhere": {"type": "blackhole"}},
            )
            for name in ("fast", "tornado")
        ]

    gateways = io_loop.run_sync(start)

    async def both(pieces: list[bytes], quiet_secs: float) -> list[list[str]]:
        return [
            verdicts(one) for one in await asyncio.gather(*(answers_to(g.port, pieces, quiet_secs) for g in gateways))
        ]

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(requests(), st.lists(st.integers(0, 600), max_size=3))
    def check(request: bytes, cuts: list[int]) -> None:
        whole = request + END
        edges = [0, *sorted(cut for cut in cuts if cut < len(whole)), len(whole)]
        pieces = [whole[start:end] for start, end in itertools.pairwise(edges)]
        found = io_loop.run_sync(lambda: both(pieces, QUIET_SECS))
        if difference(whole, *found):  # or one of them was slow
            found = io_loop.run_sync(lambda: both(pieces, SURELY_QUIET_SECS))
        assert not difference(whole, *found)
        firsts.update(found[0][:1])

    firsts: Counter[str] = Counter()
    check()
    # Neither are all of them refused, nor all taken.
    refused = firsts["400 http.malformed"]
    assert refused > EXAMPLES / 20
    assert firsts.total() - refused > EXAMPLES / 20
    assert firsts["200"]
