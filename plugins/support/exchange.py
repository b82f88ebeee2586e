"""One HTTP request and its answer on a connection of its own, which is closed however the exchange ends.

Built on Tornado's connection rather than on its client: the client's connection outlives a cancelled request, sends
the request although nobody waits for its answer any more, and logs a traceback when a target resets mid-answer.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from tornado.http1connection import HTTP1Connection, HTTP1ConnectionParameters
from tornado.httputil import HTTPHeaders, HTTPInputError, HTTPMessageDelegate, RequestStartLine, ResponseStartLine
from tornado.iostream import IOStream, SSLIOStream, StreamClosedError

from .threads import Calls

CONNECT_TIMEOUT_SECS: Final = 3.0
"""For resolving, connecting and the TLS handshake together."""
ANSWER_HEADER_BYTES: Final = 16 * 1024
ANSWER_BODY_BYTES: Final = 64 * 1024
"""What is read of an answer; nothing in it but status and headers is looked at."""

NAT64: Final = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
"""IPv6 addresses that stand for IPv4 addresses, RFC 6052 and RFC 8215."""


class ExchangeError(Exception):
    """No readable answer came. The message says why and holds nothing of request or answer."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to connect."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    public_only: bool
    """Refuse to connect to private, loopback, link-local and similar addresses."""
    lookups: Calls
    """Where the host's name is looked up."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The status and headers of a complete answer."""

    status: int
    headers: Mapping[str, str]


async def exchange(address: Address, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
    """Send a request and return the final answer; `ExchangeError` when there is none. Cancelling closes the connection.

    Redirects are not followed, bodies not decompressed. Only connecting has a time-out here.
    """
    stream = await _connect(address)
    try:
        connection = HTTP1Connection(
            stream,
            is_client=True,
            params=HTTP1ConnectionParameters(
                no_keep_alive=True, max_header_size=ANSWER_HEADER_BYTES, max_body_size=ANSWER_BODY_BYTES
            ),
        )
        reader = _AnswerReader()
        all_headers = HTTPHeaders({**headers, "Content-Length": str(len(body)), "Connection": "close"})
        connection.write_headers(RequestStartLine(method, target, "HTTP/1.1"), all_headers)
        connection.write(body)
        connection.finish()
        await connection.read_response(reader)
    except StreamClosedError as error:
        raise ExchangeError(_closed_words(error)) from error
    except HTTPInputError as error:
        raise ExchangeError("the answer is not HTTP") from error
    finally:
        stream.close()
    if not reader.complete:
        raise ExchangeError("the answer is cut off, larger than 64 KiB, or not HTTP")
    return Answer(reader.status, reader.headers)


@dataclass(slots=True)
class _AnswerReader(HTTPMessageDelegate):
    """Keeps status and headers of the last answer on a connection (100 Continue and the like come before it)."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    complete: bool = False

    def headers_received(self, start_line: Any, headers: HTTPHeaders) -> None:
        if isinstance(start_line, ResponseStartLine):
            self.status = start_line.code
            self.headers = {name.lower(): value for name, value in headers.items()}

    def data_received(self, chunk: bytes) -> None:
        """Let go of the body."""

    def finish(self) -> None:
        self.complete = True


async def _connect(address: Address) -> IOStream:
    """Return a connected stream, trying the host's addresses in turn; `ExchangeError` when none can be reached."""
    error = ExchangeError("the host has no address")
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_SECS):
            found = await address.lookups.run(
                partial(
                    socket.getaddrinfo,
                    address.host,
                    address.port,
                    type=socket.SOCK_STREAM,
                    proto=socket.IPPROTO_TCP,
                )
            )
            # What is checked is what is connected to: a name that resolves differently a moment later changes nothing.
            candidates = list(dict.fromkeys((family, sockaddr) for family, _, _, _, sockaddr in found))
            if address.public_only and not all(is_public(str(sockaddr[0])) for _, sockaddr in candidates):
                raise ExchangeError("the host has an address that is not public, and public_only is on")
            for index, (family, sockaddr) in enumerate(candidates):
                # An address that does not answer leaves time for those after it.
                share = CONNECT_TIMEOUT_SECS / (len(candidates) - index + 1)
                is_last = index == len(candidates) - 1
                try:
                    async with asyncio.timeout(None if is_last else share):
                        return await _connect_to(family, sockaddr, address)
                except TimeoutError:
                    if is_last:
                        raise
                except ExchangeError as failed:
                    error = failed
    except TimeoutError as late:
        raise ExchangeError(f"no connection within {CONNECT_TIMEOUT_SECS:g} s") from late
    except OSError as unresolved:  # socket.gaierror
        raise ExchangeError(_error_words(unresolved)) from unresolved
    except UnicodeError as unresolved:
        raise ExchangeError("the host's name cannot be resolved") from unresolved
    raise error


async def _connect_to(family: int, sockaddr: Any, address: Address) -> IOStream:
    """Connect to one address, TLS handshake included. The socket is closed on any error."""
    connecting = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    limit = 2 * ANSWER_BODY_BYTES
    stream: IOStream
    if address.tls is None:
        stream = IOStream(connecting, max_buffer_size=limit)
    else:
        stream = SSLIOStream(connecting, ssl_options=address.tls, max_buffer_size=limit)
    try:
        await stream.connect(sockaddr, server_hostname=address.host)
    except BaseException as error:
        stream.close()
        if isinstance(error, StreamClosedError):
            raise ExchangeError(_closed_words(error)) from error
        raise
    return stream


def is_public(text: str) -> bool:
    """Say whether an address is one of the open internet, whatever it is wrapped in."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif address.sixtofour is not None or address.teredo is not None or any(address in net for net in NAT64):
            return False  # a relay decides where that ends
    return address.is_global and not address.is_multicast and not address.is_reserved


def _closed_words(error: StreamClosedError) -> str:
    if error.real_error is None:
        return "the connection was closed before the answer was complete"
    return _error_words(error.real_error)


def _error_words(error: BaseException) -> str:
    """Say what went wrong on a connection in words that hold nothing the target has sent."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or 'no reason given'}"
    if isinstance(error, OSError) and error.errno in (errno.ECONNREFUSED, errno.ECONNRESET):
        return "connection refused" if error.errno == errno.ECONNREFUSED else "connection reset"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
