"""What could be read in two ways is refused, in the common shape, and nothing of it is taken for another request."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytestmark = pytest.mark.both_servers

KEY = "test-key-0123456789"
HEAD = f"POST /ingest HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\n".encode()
HIDDEN = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
"""Sent after each malformed request: no answer to it may ever come."""
TE = b"Transfer-Encoding: chunked\r\n"
CHUNKED = HEAD + TE + b"\r\n"
CODING, LENGTH = "Transfer-Encoding", "Content-Length"


def parts_of(answer: bytes) -> tuple[bytes, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, json.loads(body)


def assert_one_malformed(answer: bytes, field: str) -> None:
    head, document = parts_of(answer)
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n"), answer
    assert b"\r\nConnection: close" in head
    assert b"\r\nX-Request-Id: " in head
    assert b"\r\nX-Content-Type-Options: nosniff" in head
    assert b"\r\nCache-Control: no-store" in head
    assert document["error"] == "Bad request"
    assert [(detail["field"], detail["code"]) for detail in document["details"]] == [(field, "http.malformed")]
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    ("request_bytes", "field"),
    [
        pytest.param(HEAD + b"Content-Length: 5\r\n" + TE + b"\r\n0\r\n\r\n", CODING, id="cl and te"),
        pytest.param(HEAD + TE + TE + b"\r\n", CODING, id="te twice"),
        pytest.param(HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n", CODING, id="te list"),
        pytest.param(HEAD + b"Transfer-Encoding: xchunked\r\n\r\n", CODING, id="te unknown"),
        pytest.param(CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n", CODING, id="te in http/1.0"),
        pytest.param(HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", LENGTH, id="cl twice"),
        pytest.param(HEAD + b"Content-Length: 2, 2\r\n\r\n{}", LENGTH, id="cl list"),
        pytest.param(HEAD + b"Content-Length: +2\r\n\r\n{}", LENGTH, id="cl signed"),
        pytest.param(HEAD + b"Content-Length: 1_0\r\n\r\n{}", LENGTH, id="cl underscore"),
        pytest.param(HEAD + b"Content-Length: 0x2\r\n\r\n{}", LENGTH, id="cl hex"),
        pytest.param(HEAD + b"Content-Length:\r\n\r\n{}", LENGTH, id="cl empty"),
        pytest.param(HEAD + b"Content_Length: 2\r\n\r\n{}", "headers", id="cl look-alike"),
        pytest.param(HEAD + b"TRANSFER_ENCODING: chunked\r\n\r\n", "headers", id="te look-alike"),
        pytest.param(HEAD.replace(b"\r\n", b"\n") + b"\n", "headers", id="lf only"),
        pytest.param(HEAD + b"X-A: b\nX-B: c\r\n\r\n", "headers", id="one bare lf"),
        pytest.param(HEAD + b"X-A: b\nTransfer-Encoding: chunked\r\n\r\n", "headers", id="bare lf hides te"),
        pytest.param(HEAD + b"Content-Length: 2\n\n{}", "headers", id="lf at the end"),
        pytest.param(HEAD + b"X-A: b\r\n c\r\n\r\n", "request", id="folded"),
        pytest.param(HEAD + b"X-A : b\r\n\r\n", "request", id="blank before colon"),
        pytest.param(HEAD + b"X-A: \0\r\n\r\n", "request", id="nul"),
        pytest.param(HEAD.replace(b"Host: x\r\n", b"") + b"\r\n", "Host", id="no host"),
        pytest.param(HEAD + b"Host: y\r\n\r\n", "Host", id="two hosts"),
        pytest.param(HEAD + b"".join(b"X-%d: a\r\n" % n for n in range(63)) + b"\r\n", "headers", id="65 lines"),
        pytest.param(HEAD.replace(b"/ingest", b"/ingest?" + b"a" * 2041) + b"\r\n", "path", id="long target"),
        pytest.param(HEAD.replace(b"/ingest", b"/ingest?" + b"&" * 1500) + b"\r\n", "request", id="1500 query fields"),
        pytest.param(HEAD + b"X: " + b"x" * 20_000 + b"\r\n\r\n", "headers", id="long header"),
        pytest.param(CHUNKED + b"2\n{}\n0\n\n", "request", id="lf after chunk size"),
        pytest.param(CHUNKED + b"2\r\n{}\n0\n\n", "request", id="lf after chunk"),
        pytest.param(CHUNKED + b"2;" + b"x" * 100 + b"\r\n{}\r\n", "body", id="long chunk size line"),
        pytest.param(CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n", "request", id="chunk size hex prefix"),
        pytest.param(CHUNKED + b"zz\r\n", "request", id="chunk size no number"),
        pytest.param(CHUNKED + b"2\r\n{}xx0\r\n\r\n", "request", id="chunk longer than said"),
        pytest.param(CHUNKED + b"2\r\n{}\r\n0\r\nX-T: a\r\n\r\n", "request", id="trailer"),
        pytest.param(b"GET /healthz HTTP/2.0\r\nHost: x\r\n\r\n", "request", id="http/2"),
        pytest.param(b"GET /healthz\r\n\r\n", "request", id="http/0.9"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", "request", id="tls"),
    ],
)  # fmt: skip
async def test_request_in_doubt_gets_one_400_and_nothing_after_it_is_read(
    launch: Any, raw: Any, request_bytes: bytes, field: str
) -> None:
    gateway = await launch()
    assert_one_malformed(await raw(gateway.port, request_bytes + HIDDEN, timeout_secs=5), field)
    metrics = await gateway.metrics()
    assert metrics['edge_http_requests_total{method="other",route="other",status="400"}'] == 1
    assert not [name for name in metrics if name.startswith("edge_events_received_total{")]
    assert not gateway.process._site.in_flight
    assert gateway.process._site.body_bytes == 0


@pytest.mark.parametrize("digits", ["4611686018427387905", "1" + "0" * 30, "9" * 5000])
async def test_absurd_length_gets_one_413(launch: Any, raw: Any, short_linger: None, digits: str) -> None:
    gateway = await launch()
    answer = await raw(gateway.port, HEAD + f"Content-Length: {digits}\r\n\r\n".encode() + b"{}", timeout_secs=5)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.count(b"HTTP/1.1 ") == 1


async def test_leading_zeros_of_a_length_mean_nothing(launch: Any, raw: Any, example_event: Any) -> None:
    gateway = await launch()
    body = json.dumps(example_event).encode()
    head = HEAD + b"Connection: close\r\nContent-Length: " + b"0" * 5000 + str(len(body)).encode()
    assert (await raw(gateway.port, head + b"\r\n\r\n" + body, timeout_secs=5)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("key", "chunk"), [("wrong", b"zz\r\n"), (KEY, b"140000\r\n" + b" " * 0x140000 + b"\r\nzz\r\n")]
)
async def test_refused_request_gets_no_second_answer(launch: Any, raw: Any, key: str, chunk: bytes) -> None:
    gateway = await launch()
    answer = await raw(gateway.port, CHUNKED.replace(KEY.encode(), key.encode()), chunk, timeout_secs=5)
    assert answer.startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 413 "))
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("expect", ["100-continue", "100-Continue", "100-CONTINUE"])
async def test_expect_gets_its_100_in_any_case(launch: Any, raw: Any, example_event: Any, expect: str) -> None:
    gateway = await launch()
    body = json.dumps(example_event).encode()
    head = HEAD + f"Connection: close\r\nContent-Length: {len(body)}\r\nExpect: {expect}\r\n\r\n".encode()
    answer = await raw(gateway.port, head + body, timeout_secs=5)
    assert answer.startswith(b"HTTP/1.1 100 ")
    assert b"\r\n\r\nHTTP/1.1 200 OK\r\n" in answer


@pytest.mark.parametrize(("version", "expect"), [("1.1", "200-ok"), ("1.0", "100-continue")])
async def test_expect_that_means_nothing_is_ignored(
    launch: Any, raw: Any, example_event: Any, version: str, expect: str
) -> None:
    gateway = await launch()
    body = json.dumps(example_event).encode()
    head = HEAD.replace(b"HTTP/1.1", f"HTTP/{version}".encode())
    head += f"Connection: close\r\nContent-Length: {len(body)}\r\nExpect: {expect}\r\n\r\n".encode()
    assert (await raw(gateway.port, head + body, timeout_secs=5)).startswith(b"HTTP/1.1 200 ")


async def test_answer_to_what_is_no_http_is_in_the_contract(launch: Any) -> None:
    gateway = await launch()
    document = json.loads((await gateway.fetch("GET", "/openapi.json")).body)
    answer = document["paths"]["/ingest"]["post"]["responses"]["400"]
    assert "http.malformed" in answer["description"]
    assert "Bad request" in document["components"]["schemas"]["Refusal"]["properties"]["error"]["enum"]


@pytest.mark.parametrize(
    "target",
    [b"http://x/ingest", b"HTTPS://other:8443/ingest?verbose=1", b"http://[::1]:4000/ingest", b"http:///ingest"],
)
async def test_target_in_absolute_form_is_the_path_in_it(
    launch: Any, raw: Any, example_event: Any, target: bytes
) -> None:
    gateway = await launch()
    body = json.dumps(example_event).encode()
    head = HEAD.replace(b"/ingest", target) + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = await raw(gateway.port, head + body, timeout_secs=5)
    if target == b"http:///ingest":
        assert_one_malformed(answer, "path")
    else:
        assert answer.startswith(b"HTTP/1.1 200 ")
    assert gateway.gateway.spool.durable_seq == (0 if target == b"http:///ingest" else 1)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET http://x?q", 404),
        (b"OPTIONS *", 404),
        (b"GET healthz", 400),
        (b"CONNECT x:80", 400),
        (b"GET ftp://x/", 400),
    ],
)
async def test_target_of_another_form_gets_one_answer(launch: Any, raw: Any, line: bytes, status: int) -> None:
    gateway = await launch()
    answer = await raw(gateway.port, line + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", timeout_secs=5)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("host", [b"", b"x", b"x:", b"x.y:80", b"127.0.0.1:4000", b"[::1]", b"[::1]:80", b"a_b"])
async def test_host_of_any_form_is_taken(launch: Any, raw: Any, host: bytes) -> None:
    gateway = await launch()
    head = b"GET /healthz HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n"
    assert (await raw(gateway.port, head, timeout_secs=5)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("host", [b"x y", b"x, y", b"http://x", b"x/y", b"u@x", b"x:y", b"[x", b"\xe4"])
@pytest.mark.parametrize("line", [b"GET /healthz", b"POST /ingest"])
async def test_host_that_is_none_is_refused(launch: Any, raw: Any, line: bytes, host: bytes) -> None:
    gateway = await launch()
    head = line + b" HTTP/1.1\r\nHost: " + host + b"\r\nContent-Length: 0\r\n\r\n"
    answer = await raw(gateway.port, head + HIDDEN, timeout_secs=5)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("blank", [b" ", b"\t", b" \t "])
async def test_blanks_around_values_mean_nothing(launch: Any, raw: Any, example_event: Any, blank: bytes) -> None:
    gateway = await launch()
    body = json.dumps(example_event).encode()
    lines = (b"Host:x", b"X-API-Key:" + blank + KEY.encode(), b"Content-Type: application/json", b"Connection: close")
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    framings = [(b"Content-Length: %d" % len(body) + blank, body), (b"Transfer-Encoding: chunked ", chunks)]
    for framing, sent in framings:
        head = b"POST /ingest HTTP/1.1\r\n" + b"".join(line + blank + b"\r\n" for line in lines) + framing + b"\r\n"
        assert (await raw(gateway.port, head + b"\r\n" + sent, timeout_secs=5)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("version", "value", "stays"),
    [
        (b"1.1", b"close", False), (b"1.1", b"Close", False), (b"1.1", b"closed", True), (b"1.1", b"keep-alive", True),
        (b"1.0", b"keep-alive", True), (b"1.0", b"close", False), (b"1.0", b"x", False),
    ],
)  # fmt: skip
async def test_connection_stays_open_when_it_is_asked_to(
    launch: Any, raw: Any, version: bytes, value: bytes, stays: bool
) -> None:
    gateway = await launch()
    head = b"GET /healthz HTTP/" + version + b"\r\nHost: x\r\nConnection: " + value + b"\r\n\r\n"
    last = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = await raw(gateway.port, head + last, timeout_secs=5)
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == 1 + stays


async def test_empty_line_before_a_request_is_skipped_and_a_second_one_is_not(launch: Any, raw: Any) -> None:
    gateway = await launch()
    last = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    request = last.replace(b"Connection: close\r\n", b"")
    answer = await raw(gateway.port, b"\r\n" + request + b"\r\n" + last, timeout_secs=5)
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert_one_malformed(await raw(gateway.port, b"\r\n\r\n" + last, timeout_secs=5), "request")
