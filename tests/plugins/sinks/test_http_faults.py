"""The HTTP sink against targets that hang, reset, lie, or say nothing that is HTTP; and over TLS."""

import asyncio
import gzip
import socket
import ssl
import struct
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from edge_plugins.sinks.http import Http
from edge_plugins.support.exchange import is_public
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, ResponseStartLine
from tornado.netutil import bind_sockets

from edge.api import PermanentError, RetryableError
from edge.testing import build, deliver, make_batch, make_event

pytestmark = pytest.mark.usefixtures("io_loop")

TLS = Path(__file__).parent / "tls"
"""A self-signed certificate for localhost and 127.0.0.1, valid for a hundred years."""

EVENTS = [make_event(event_id=f"evt_{n}", extras={"text": "ü\u2028"}) for n in range(3)]


async def post(url, events=EVENTS, **options):
    return await deliver(build(Http, "crm", url=url, **options), events)


def n_descriptors():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


class RawTarget:
    """A TCP server on loopback that reads `until` these bytes and then does what the test says with the connection."""

    def __init__(self, handle, until=b"\r\n\r\n"):
        self._handle = handle
        self._until = until
        self._serving = {}
        self.connections = 0

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 24)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/hook"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for writer in self._serving.values():
            writer.transport.abort()
        await asyncio.gather(*self._serving)
        await self._server.wait_closed()

    async def _serve(self, reader, writer):
        self.connections += 1
        self._serving[asyncio.current_task()] = writer
        try:
            await reader.readuntil(self._until)
            await self._handle(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the gateway hung up
        finally:
            writer.transport.abort()


@contextmanager
def full_backlog():
    """A port of loopback that lets connections neither succeed nor fail: its queue is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, ExitStack() as waiting:
        for _ in range(4):
            client = waiting.enter_context(socket.socket())
            client.settimeout(0)
            client.connect_ex(server.getsockname())
        yield server.getsockname()[1]


def answering(*pieces):
    """A target that reads everything that is there, sends these bytes and closes the connection."""

    async def handle(reader, writer):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    return RawTarget(handle)


BAD_ANSWERS = {
    "nothing": [],
    "garbage": [b"\x00\xff\x16\x03garbage\r\n\r\n" * 3],
    "not HTTP": [b"SSH-2.0-OpenSSH_9.2\r\n\r\n"],
    "old HTTP": [b"<html>hello</html>"],
    "status is no number": [b"HTTP/1.1 2xx OK\r\nContent-Length: 0\r\n\r\n"],
    "half a head": [b"HTTP/1.1 200 OK\r\nContent-"],
    "half a body": [b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"],
    "half a chunk": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nabc"],
    "wrong chunk": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n"],
    "wrong length": [b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"],
    "two lengths": [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\nhello"],
    "folded headers": [b"HTTP/1.1 200 OK\r\n folded\r\n\r\n"],
    "large head": [b"HTTP/1.1 200 OK\r\n" + b"X-Large: " + b"x" * 20_000 + b"\r\n\r\n"],
    "100,000 headers": [b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 100_000, b"\r\n"],
    "endless 1xx": [b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"],
    "announced large body": [b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n", b"x" * 100_000],
    "chunked large body": [
        b"HTTP/1.1 400 No\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"8000\r\n" + b"x" * 32768 + b"\r\n",
    ]
    + [b"8000\r\n" + b"x" * 32768 + b"\r\n"] * 3,
    "large body without length": [b"HTTP/1.0 200 OK\r\n\r\n", b"x" * 70_000],
    "switching protocols": [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"],
}


@pytest.mark.parametrize("answer", sorted(BAD_ANSWERS))
async def test_http_answer_that_cannot_be_read_is_retryable(answer):
    async with answering(*BAD_ANSWERS[answer]) as target:
        with pytest.raises(RetryableError, match=r"^http://127\.0\.0\.1:\d+/hook: [a-zA-Z0-9, ]+$") as raised:
            await post(target.url)
    assert not raised.value.open_circuit
    assert raised.value.retry_after is None


async def test_http_reads_a_final_answer_behind_a_few_1xx():
    interim = b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    async with answering(interim + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as target:
        assert await post(target.url) == {}


async def test_http_does_not_decompress_an_answer():
    bomb = gzip.compress(b"\0" * 50_000_000)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n".encode()
    assert len(bomb) < 64 * 1024
    async with answering(head + bomb) as target:
        assert await post(target.url) == {}


async def test_http_stops_reading_a_body_of_a_gigabyte():
    sent = 0

    async def handle(reader, writer):
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
        for _ in range(1000):
            writer.write(chunk)
            await writer.drain()
            sent += 1 << 20

    async with RawTarget(handle) as target:
        with pytest.raises(RetryableError, match="larger than 64 KiB"):
            await post(target.url)
    # What was not read lies in the buffers of the two sockets.
    assert sent < 32 << 20


async def test_http_reset_is_retryable():
    async def handle(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc")
        await writer.drain()
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close sends RST

    async with RawTarget(handle) as target:
        with pytest.raises(RetryableError, match=r"connection reset|closed before the answer"):
            await post(target.url)


async def test_http_answer_that_comes_before_the_whole_request_counts():
    # A target may refuse a large body at its head and hang up.
    async def handle(reader, writer):
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        while await reader.read(1 << 16):  # as servers do, so that the answer is not lost to a reset
            pass

    async with RawTarget(handle) as target:
        with pytest.raises(PermanentError) as raised:
            await post(target.url, [make_event(extras={"text": "x" * 8_000_000})])
    assert raised.value.divide


async def test_http_connection_refused_is_retryable(free_port):
    with pytest.raises(RetryableError, match=f"^http://127.0.0.1:{free_port}/: connection refused$"):
        await post(f"http://127.0.0.1:{free_port}/")


async def test_http_host_without_address_is_retryable():
    with pytest.raises(RetryableError, match=r"http://nowhere\.invalid: "):
        await post("http://nowhere.invalid")


async def test_http_connecting_has_a_timeout(monkeypatch):
    monkeypatch.setattr("edge_plugins.support.exchange.CONNECT_TIMEOUT_SECS", 0.1)
    with full_backlog() as port, pytest.raises(RetryableError, match=r"no connection within 0\.1 s"):
        await post(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n123"])
async def test_http_hang_leaves_nothing_behind_when_the_attempt_is_cancelled(says, eventually):
    gone = asyncio.Event()

    async def handle(reader, writer):
        writer.write(says)
        while await reader.read(1 << 16):
            pass
        gone.set()

    async with RawTarget(handle) as target:
        sink = build(Http, url=target.url)
        await sink.edge_open()
        before = n_descriptors()
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await sink.edge_deliver(make_batch(EVENTS))
            await gone.wait()
            gone.clear()
        await sink.edge_close()
        await eventually(lambda: n_descriptors() <= before)
        await eventually(lambda: len(asyncio.all_tasks()) == 1)
        assert target.connections == 3


async def test_http_cancelled_while_connecting_leaves_nothing_behind(eventually):
    with full_backlog() as port:
        sink = build(Http, url=f"http://127.0.0.1:{port}")
        await sink.edge_open()
        before = n_descriptors()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await sink.edge_deliver(make_batch(EVENTS))
        assert n_descriptors() == before
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_http_failures_leave_no_descriptor_behind(free_port, eventually):
    async def fail_in_every_way():
        for answer in ("nothing", "garbage", "announced large body", "half a body"):
            async with answering(*BAD_ANSWERS[answer]) as target:
                with pytest.raises(RetryableError):
                    await post(target.url)
        with pytest.raises(RetryableError):
            await post(f"http://127.0.0.1:{free_port}")

    await fail_in_every_way()  # whatever the event loop opens once is open now
    before = n_descriptors()
    for _ in range(3):
        await fail_in_every_way()
    await eventually(lambda: n_descriptors() <= before)


async def test_http_opens_one_connection_for_each_attempt():
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as target:
        for _ in range(3):
            await post(target.url)
        assert target.connections == 3


async def test_http_delivers_over_tls_to_a_trusted_certificate(tls_target):
    await post(tls_target.url, ca_file=str(TLS / "cert.pem"))
    await post(tls_target.url.replace("127.0.0.1", "localhost"), ca_file=str(TLS / "cert.pem"))
    assert tls_target.paths == ["/hook", "/hook"]


async def test_http_refuses_a_certificate_that_is_not_trusted(tls_target, expect_log):
    expect_log.append("SSL Error")
    with pytest.raises(RetryableError, match=r"the certificate is not trusted: self.signed certificate"):
        await post(tls_target.url)
    assert tls_target.paths == []


async def test_http_over_tls_to_a_plain_target_is_retryable(expect_log):
    expect_log.append("SSL Error")

    async def handle(reader, writer):
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async with RawTarget(handle, until=b"\x16") as target:  # the first byte of a TLS handshake
        with pytest.raises(RetryableError, match=r"TLS failed|closed before"):
            await post(target.url.replace("http://", "https://"))


async def test_http_ca_file_that_cannot_be_read_is_retryable(tmp_path):
    (tmp_path / "no.pem").write_text("not PEM")
    for name in ("missing.pem", "no.pem"):
        with pytest.raises(RetryableError, match=f"ca_file .*{name} cannot be read"):
            await post("https://localhost", ca_file=str(tmp_path / name))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "0"])
async def test_http_public_only_does_not_connect_to_loopback(host):
    async with RawTarget(None) as target:
        url = target.url.replace("127.0.0.1", host)
        with pytest.raises(RetryableError, match=r"not public|no address|not known|supported"):
            await post(url, public_only=True)
        assert target.connections == 0


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("10.0.0.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("0.0.0.0", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:93.184.215.14", True),
        ("64:ff9b::a00:1", False),
        ("2002:a00:1::", False),
        ("2001:0:a00:1::", False),
    ],
)
def test_is_public_tells_the_open_internet_from_the_rest(address, public):
    assert is_public(address) is public


@pytest.fixture
def tls_target(io_loop):
    """An HTTPS server on loopback with the self-signed certificate."""

    class Target:
        url = ""

    def take(request):
        target.paths.append(request.path)
        request.connection.write_headers(ResponseStartLine("HTTP/1.1", 204, "No Content"), HTTPHeaders())
        request.connection.finish()

    target = Target()
    target.paths = []
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(TLS / "cert.pem", TLS / "key.pem")
    server = HTTPServer(take, ssl_options=context)

    async def start():
        sockets = bind_sockets(0, "127.0.0.1")
        server.add_sockets(sockets)
        target.url = f"https://127.0.0.1:{sockets[0].getsockname()[1]}/hook"

    io_loop.run_sync(start)
    yield target
    server.stop()
    io_loop.run_sync(server.close_all_connections)


DEAD_RESOLVER = """
import asyncio, socket, time
from edge.api import RetryableError
from edge.testing import build, make_batch, make_event
from edge_plugins.sinks.http import Http

def hang(*args, **kwargs):
    time.sleep(60)

async def main():
    socket.getaddrinfo = hang
    sink = build(Http, url="http://crm.example.org/hook")
    await sink.edge_open()
    for _ in range(12):
        try:
            async with asyncio.timeout(0.05):
                await sink.edge_deliver(make_batch([make_event()]))
        except TimeoutError:
            print("timed out")
        except RetryableError as error:
            print(error)
    await sink.edge_close()

asyncio.run(main())
"""


def test_http_lookup_that_hangs_does_not_keep_the_process_from_ending():
    done = subprocess.run([sys.executable, "-c", DEAD_RESOLVER], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.splitlines() == ["timed out"] * 8 + ["http://crm.example.org/hook: earlier calls hang"] * 4
