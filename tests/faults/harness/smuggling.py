r"""Requests that two parties could read in two ways, cut in three: what comes before the doubtful part, it, the rest.

A case is refused as malformed, or, where a status stands beside it, is one request whatever its body looks like.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

KEY = "test-key-0123456789"
COMMON = f"Host: x\r\nX-API-Key: {KEY}\r\nConnection: close\r\n".encode()
HEAD = b"POST /ingest HTTP/1.1\r\n" + COMMON
CODING = b"Transfer-Encoding: chunked\r\n"
EVENT = (
    b'{"event_id": "smuggled", "event_type": "click", "event_name": "n", "event_time": "2025-09-17T10:00:00Z",'
    b' "user_id": "u", "session_id": "s", "page_name": "p"}'
)
HIDDEN = b"POST /ingest HTTP/1.1\r\n" + COMMON + b"Content-Length: %d\r\n\r\n" % len(EVENT) + EVENT
"""A request that would be taken, sent behind a case or as its body: an answer to it, or its event, is a failure."""


@dataclass(frozen=True, slots=True)
class Case:
    """One request."""

    name: str
    before: bytes
    doubtful: bytes
    after: bytes
    status: int | None = None
    """What the one request is answered; None when it is refused as malformed."""

    @property
    def whole(self) -> bytes:
        """The request in one piece."""
        return self.before + self.doubtful + self.after

    @property
    def halves(self) -> tuple[bytes, bytes]:
        """The request, cut in the middle of its doubtful part."""
        middle = len(self.before) + len(self.doubtful) // 2
        return self.whole[:middle], self.whole[middle:]


LENGTHS = {
    "+5": b"+5",
    "-5": b"-5",
    "5_0": b"5_0",
    "0x5": b"0x5",
    "5.0": b"5.0",
    "5e0": b"5e0",
    "5;": b"5;",
    "5 5": b"5 5",
    "5, 5": b"5, 5",
    "5, 6": b"5, 6",
    "5,": b"5,",
    "empty": b"",
    "a blank": b" ",
    "a quoted 5": b'"5"',
    "a full-width 5": "\uff15".encode(),
    "a raised 2 of Latin-1": b"\xb2",
    "5 and a vertical tab": b"5\x0b",
    "5 and a form feed": b"5\x0c",
    "5 and a NUL": b"5\0",
    "5 and a no-break space": b"5\xa0",
    "5 in the next line": b"\r\n 5",
    "5 and a bare CR": b"5\rX: y",
    "5 and a bare LF": b"5\nX: y",
    "CL CL": b"5\r\nContent-Length: 5",
    "CL cl": b"5\r\ncontent-length: 6",
    "CL TE": b"5\r\nTransfer-Encoding: chunked",
    "CL TE identity": b"5\r\nTransfer-Encoding: identity",
}
"""Values of `Content-Length`, and what follows them."""

CODINGS = {
    "xchunked": b"xchunked",
    "chunkedx": b"chunkedx",
    "a quoted chunked": b'"chunked"',
    "identity": b"identity",
    "empty": b"",
    "gzip, chunked": b"gzip, chunked",
    "chunked, gzip": b"chunked, gzip",
    "chunked, chunked": b"chunked, chunked",
    "chunked,": b"chunked,",
    ", chunked": b", chunked",
    "chunked;q=1": b"chunked;q=1",
    "chunked and a vertical tab": b"chunked\x0b",
    "a vertical tab and chunked": b"\x0bchunked",
    "chunked and a NUL": b"chunked\0",
    "chunked in the next line": b"\r\n chunked",
    "chunked in two lines": b"chun\r\n ked",
    "the Kelvin sign in chunked": "chun\u212aed".encode(),
    "TE TE": b"chunked\r\nTransfer-Encoding: chunked",
    "TE TE identity": b"chunked\r\nTransfer-Encoding: identity",
    "TE te": b"chunked\r\ntransfer-encoding: x",
    "TE CL": b"chunked\r\nContent-Length: 5",
    "TE CL 0": b"chunked\r\nContent-Length: 0",
}
"""Values of `Transfer-Encoding`, and what follows them."""

LINES = {
    "a blank before the colon": b"Transfer-Encoding : chunked",
    "a tab before the colon": b"Transfer-Encoding\t: chunked",
    "a blank before a length's colon": b"Content-Length : 5",
    "a blank before a host's colon": b"Host : y",
    "a blank at the front": b" Transfer-Encoding: chunked",
    "a tab at the front": b"\tContent-Length: 5",
    "a folded header": b"X-A: b\r\n Transfer-Encoding: chunked",
    "a bare LF before a coding": b"X-A: b\nTransfer-Encoding: chunked",
    "a bare CR before a coding": b"X-A: b\rTransfer-Encoding: chunked",
    "two CR before a coding": b"X-A: b\r\r\nTransfer-Encoding: chunked",
    "LF CR before a coding": b"X-A: b\n\rTransfer-Encoding: chunked",
    "a NUL before a coding": b"X-A: b\0Transfer-Encoding: chunked",
    "a NUL in a name": b"Transfer-Encoding\0: chunked",
    "a control character in a value": b"X-A: \x01",
    "a DEL in a value": b"X-A: \x7f",
    "a name with an n with a tilde": b"Co\xf1tent-Length: 5",
    "a name with a soft hyphen": b"Transfer\xadEncoding: chunked",
    "a name behind a no-break space": b"\xa0Transfer-Encoding: chunked",
    "a name with a Kelvin sign": "X-\u212aey: y".encode(),
    "an underscore in a length's name": b"Content_Length: 5",
    "an underscore in a coding's name": b"TRANSFER_ENCODING: chunked",
    "a blank in a name": b"Content Length: 5",
    "a bracket in a name": b"Content-Length(: 5",
    "no name": b": chunked",
    "no colon": b"Transfer-Encoding",
    "a request line among the headers": b"GET /healthz HTTP/1.1",
    "a second host": b"Host: y",
    "a host with a blank": b"X: y\r\nHost: x y",
}
"""Header lines."""

CHUNK_SIZES = {
    "+2": b"+2",
    "-2": b"-2",
    "0x2": b"0x2",
    "0_2": b"0_2",
    "a blank and 2": b" 2",
    "2 and a blank": b"2 ",
    "2 and a tab": b"2\t",
    "2 and a NUL": b"2\0",
    "empty": b"",
    "g": b"g",
    "a full-width 2": "\uff12".encode(),
    "2 and an extension": b"2;a=b",
    "2 and an empty extension": b"2;",
    "2 and an extension with a bare LF": b"2;\n",
    "2 and a bare LF": b"2\n{}\r\n0\r\n\r\n",
    "2 and a bare CR": b"2\r",
    "2 with nineteen zeros": b"0" * 19 + b"2",
    "2 to the power of 64, plus 2": b"10000000000000002",
    "a minus and nothing": b"-",
}
"""Sizes of a chunk of two bytes."""

CHUNKS = {
    "a chunk longer than it says": b"2\r\n{}x\r\n0\r\n\r\n",
    "a chunk that ends with LF": b"2\r\n{}\n0\r\n\r\n",
    "a chunk that ends with CR": b"2\r\n{}\r0\r\n\r\n",
    "a chunk that ends with two CR": b"2\r\n{}\r\r\n0\r\n\r\n",
    "a last chunk with an extension": b"2\r\n{}\r\n0;a\r\n\r\n",
    "a last chunk that is -0": b"2\r\n{}\r\n-0\r\n\r\n",
    "a last chunk that ends with LF": b"2\r\n{}\r\n0\n\r\n",
    "an end that is LF": b"2\r\n{}\r\n0\r\n\n\r\n",
    "an end that is two CR": b"2\r\n{}\r\n0\r\n\r\r\n",
    "a trailer": b"2\r\n{}\r\n0\r\nX-T: a\r\n\r\n",
    "a length in the trailers": b"2\r\n{}\r\n0\r\nContent-Length: 5\r\n\r\n",
    "a coding in the trailers": b"2\r\n{}\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a trailer without colon": b"2\r\n{}\r\n0\r\nnonsense\r\n\r\n",
    "a trailer that ends with LF": b"2\r\n{}\r\n0\r\nX-T: a\n\r\n",
    "a request in the trailers": b"2\r\n{}\r\n0\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
}
"""Bodies in chunks."""

REQUEST_LINES = {
    "HTTP/0.9": b"GET /healthz",
    "HTTP/0.9 in name": b"GET /healthz HTTP/0.9",
    "HTTP/1.2": b"GET /healthz HTTP/1.2",
    "HTTP/2.0": b"GET /healthz HTTP/2.0",
    "HTTP/1": b"GET /healthz HTTP/1",
    "HTTP/1.10": b"GET /healthz HTTP/1.10",
    "HTTP/01.1": b"GET /healthz HTTP/01.1",
    "http/1.1": b"GET /healthz http/1.1",
    "HTTP /1.1": b"GET /healthz HTTP /1.1",
    "another protocol": b"GET /healthz ICAP/1.1",
    "two blanks": b"GET  /healthz HTTP/1.1",
    "two blanks before the version": b"GET /healthz  HTTP/1.1",
    "a blank at its end": b"GET /healthz HTTP/1.1 ",
    "a blank at its front": b" GET /healthz HTTP/1.1",
    "tabs": b"GET\t/healthz\tHTTP/1.1",
    "a blank in the target": b"GET /healthz /healthz HTTP/1.1",
    "a NUL in the target": b"GET /healthz\0 HTTP/1.1",
    "a bare CR in the target": b"GET /healthz\r HTTP/1.1",
    "a bare LF at its end": b"GET /healthz HTTP/1.1\nX: y",
    "a bare CR at its end": b"GET /healthz HTTP/1.1\rX: y",
    "no target": b"GET HTTP/1.1",
    "no method": b"/healthz HTTP/1.1",
    "a method with a bracket": b"G(T /healthz HTTP/1.1",
    "a method with a no-break space": b"GET\xa0 /healthz HTTP/1.1",
    "the preface of HTTP/2": b"PRI * HTTP/2.0",
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00",
}
"""Request lines; a host and the end of the head follow."""

ENDINGS = {
    "LF only": HEAD.replace(b"\r\n", b"\n") + b"Content-Length: 0\n\n",
    "LF only, but for the end": HEAD.replace(b"\r\n", b"\n") + b"Content-Length: 0\r\n\r\n",
    "CR only": HEAD.replace(b"\r\n", b"\r") + b"Content-Length: 0\r\r\r\n\r\n",
    "LF at the end of the head": HEAD + b"Content-Length: 0\r\n\n\r\n",
    "LF CR LF at the end of the head": HEAD + b"Content-Length: 0\n\r\n",
    "LF before the request": b"\n" + HEAD + b"Content-Length: 0\r\n\r\n",
    "CR before the request": b"\r" + HEAD + b"Content-Length: 0\r\n\r\n",
    "a blank line with a blank before the request": b" \r\n" + HEAD + b"Content-Length: 0\r\n\r\n",
}
"""Whole requests whose lines end as they should not."""

BODIES = {
    "a request as the body of a refused key": (b"POST /ingest HTTP/1.1\r\nHost: x\r\n", 401),
    "a request as the body of a GET": (b"GET /healthz HTTP/1.1\r\nHost: x\r\n", 200),
    "a request as the body of a HEAD": (b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n", 200),
    "a request as the body of an OPTIONS": (b"OPTIONS /ingest HTTP/1.1\r\nHost: x\r\n", 204),
    "a request as the body of a DELETE": (b"DELETE /ingest HTTP/1.1\r\nHost: x\r\n", 405),
    "a request as the body of an unknown method": (b"BREW /ingest HTTP/1.1\r\nHost: x\r\n", 405),
    "a request as the body of an unknown path": (b"POST /nowhere HTTP/1.1\r\nHost: x\r\n", 404),
    "a request as the body of a media type": (HEAD + b"Content-Type: image/png\r\n", 415),
    "a request as the body of an upgrade": (HEAD + b"Upgrade: h2c\r\n", 400),
    "a request as the body of HTTP/1.0": (HEAD.replace(b"HTTP/1.1", b"HTTP/1.0"), 400),
    "a request as the body of an expectation": (HEAD + b"Expect: 200-ok\r\n", 400),
}
"""Heads, and what their request is answered: its body is never a request. The last three are no JSON."""


def cases() -> Iterator[Case]:
    """Yield every case, names all different."""
    rest = b"\r\n\r\n{ } \n"
    for name, value in LENGTHS.items():
        yield Case(f"length: {name}", HEAD + b"Content-Length: ", value, rest)
    for name, value in CODINGS.items():
        yield Case(f"coding: {name}", HEAD + b"Transfer-Encoding: ", value, b"\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
    yield Case("coding: chunked in HTTP/1.0", b"POST /ingest HTTP/1.", b"0", HEAD[21:] + CODING + b"\r\n0\r\n\r\n")
    for name, value in LINES.items():
        yield Case(f"header: {name}", HEAD, value, rest)
    yield Case("header: no host", b"GET /healthz", b" HTTP/1.1\r\n", b"\r\n")
    for name, value in CHUNK_SIZES.items():
        yield Case(f"chunk size: {name}", HEAD + CODING + b"\r\n", value, b"\r\n{}\r\n0\r\n\r\n")
    for name, value in CHUNKS.items():
        yield Case(f"chunks: {name}", HEAD + CODING + b"\r\n", value, b"")
    for name, value in REQUEST_LINES.items():
        yield Case(f"request line: {name}", b"", value, b"\r\nHost: x\r\n\r\n")
    for name, value in ENDINGS.items():
        yield Case(f"lines: {name}", b"", value, b"")
    for name, (head, status) in BODIES.items():
        length, chunk = b"Content-Length: %d\r\n\r\n" % len(HIDDEN), b"%x\r\n" % len(HIDDEN)
        yield Case(name, head + length, HIDDEN, b"", status)
        if b"HTTP/1.0" not in head:
            yield Case(f"{name}, in a chunk", head + CODING + b"\r\n" + chunk, HIDDEN, b"\r\n0\r\n\r\n", status)
    yield Case("target in absolute form", b"GET ", b"http://x/healthz", b" HTTP/1.1\r\n" + COMMON + b"\r\n", 200)
