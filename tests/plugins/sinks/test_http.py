import gzip
import json
from email.utils import formatdate
from importlib.metadata import version

import pytest
from edge_plugins.sinks.http import Http, retry_after_secs

from edge.api import PermanentError, RetryableError
from edge.testing import Answer, OptionsError, RecordingTarget, build, deliver, make_batch, make_event

pytestmark = pytest.mark.usefixtures("io_loop")

EVENTS = [make_event(event_id=f"evt_{n}", extras={"text": "ü\u2028"}) for n in range(3)]


async def post(url, events=EVENTS, **options):
    return await deliver(build(Http, "crm", url=url, **options), events)


async def test_http_posts_ndjson():
    async with RecordingTarget() as target:
        assert await post(target.url + "/hook?source=edge") == {}
        (request,) = target.requests
    assert (request.method, request.path) == ("POST", "/hook?source=edge")
    assert request.headers["Content-Type"] == "application/x-ndjson"
    assert request.headers["User-Agent"] == f"edge-gateway/{version('edge-gateway')}"
    assert request.headers["Idempotency-Key"] == "shard-000:0-1"
    assert request.headers["Host"] == target.url.removeprefix("http://")
    assert "Accept-Encoding" not in request.headers
    assert request.body == b"".join(line + b"\n" for line in make_batch(EVENTS).lines)


async def test_http_puts_an_array():
    async with RecordingTarget() as target:
        await post(target.url, method="PUT", body="array")
        (request,) = target.requests
    assert (request.method, request.path) == ("PUT", "/")
    assert request.headers["Content-Type"] == "application/json"
    assert json.loads(request.body) == EVENTS


@pytest.mark.parametrize("body", ["ndjson", "array"])
async def test_http_compresses_when_told_to(body):
    async with RecordingTarget() as target:
        await post(target.url, compression="gzip", body=body)
        (request,) = target.requests
    assert request.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(request.body) != request.body
    assert request.events == EVENTS


async def test_http_sends_configured_headers_over_its_own():
    headers = {"authorization": "Bearer s3cret", "CONTENT-TYPE": "application/jsonl", "user-agent": "me", "X-Empty": ""}
    async with RecordingTarget() as target:
        await post(target.url, headers=headers)
        (request,) = target.requests
    for name, value in headers.items():
        assert request.headers.get_list(name) == [value]


async def test_http_sends_a_large_batch():
    events = [make_event(extras={"n": n, "text": "x" * 60_000}) for n in range(100)]
    async with RecordingTarget() as target:
        await post(target.url, events)
        assert target.events == events


@pytest.mark.parametrize("status", [200, 201, 202, 204, 207, 299])
async def test_http_takes_every_2xx_for_delivered(status):
    body = b"" if status == 204 else b'{"errors": [{"index": 0, "status": 400}]}'
    async with RecordingTarget(Answer(status, body=body)) as target:
        assert await post(target.url) == {}


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
async def test_http_answer_is_retryable(status):
    async with RecordingTarget(Answer(status, {"Retry-After": "7"}), Answer(status)) as target:
        with pytest.raises(RetryableError, match=f"/hook answered {status}$") as raised:
            await post(target.url + "/hook")
        assert (raised.value.retry_after, raised.value.open_circuit) == (7.0, False)
        with pytest.raises(RetryableError) as raised:
            await post(target.url)
        assert raised.value.retry_after is None


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_http_answer_opens_the_circuit_when_it_looks_like_configuration(status):
    async with RecordingTarget(Answer(status)) as target:
        with pytest.raises(RetryableError, match=f"answered {status}, which looks like configuration") as raised:
            await post(target.url)
    assert raised.value.open_circuit


@pytest.mark.parametrize(
    ("status", "divide"),
    [(400, True), (413, True), (422, True), (402, False), (405, False), (410, False), (418, False)],
)
async def test_http_answer_is_permanent(status, divide):
    async with RecordingTarget(Answer(status, {"Retry-After": "7"})) as target:
        with pytest.raises(PermanentError, match=f"answered {status}$") as raised:
            await post(target.url)
    assert raised.value.divide is divide


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
async def test_http_never_follows_a_redirect(status):
    async with RecordingTarget() as internal:
        async with RecordingTarget(Answer(status, {"Location": internal.url + "/admin"})) as target:
            with pytest.raises(PermanentError, match=f"answered {status}: redirects are not followed") as raised:
                await post(target.url)
        assert not raised.value.divide
        assert internal.requests == []


@pytest.mark.parametrize(
    ("text", "secs"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 3 ", 3.0),
        ("86400", 3600.0),
        ("9" * 5000, 3600.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        ("Sun, 06 Nov 1994 08:49:37", 0.0),
        ("", None),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("Fri, 99 Nov 9999 99:99:99 GMT", None),
        ("1, 2", None),
    ],
)
def test_retry_after_reads_seconds_and_dates(text, secs):
    assert retry_after_secs(text, 1_800_000_000) == secs


def test_retry_after_reads_a_date_to_come():
    assert retry_after_secs(formatdate(1_800_000_090, usegmt=True), 1_800_000_000) == 90.0
    assert retry_after_secs(formatdate(1_900_000_000, usegmt=True), 1_800_000_000) == 3600.0


async def test_http_errors_hold_no_query_header_or_body():
    secret = "s3cret-token"
    said = Answer(500, {"X-Said": secret}, secret.encode())
    async with RecordingTarget(
        said, Answer(404, body=secret.encode()), then=Answer(418, {"Location": secret})
    ) as target:
        for _ in range(3):
            with pytest.raises((RetryableError, PermanentError)) as raised:
                await post(f"{target.url}/hook?token={secret}", headers={"Authorization": secret})
            assert secret not in str(raised.value)
            assert "/hook" in str(raised.value)


async def test_http_errors_hold_no_path_that_came_from_the_environment():
    class Secret(str):
        """The type that the configuration gives to expanded text."""

        __slots__ = ()

    async with RecordingTarget(Answer(500)) as target:
        with pytest.raises(RetryableError) as raised:
            await post(Secret(target.url + "/services/T000/s3cret"))
    assert str(raised.value) == f"{target.url} answered 500"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "ftp://example.org"}, "url: must begin with http:// or https://"),
        ({"url": "https://"}, "url: must begin with"),
        ({"url": "example.org/hook"}, "url: must begin with"),
        ({"url": "file:///etc/passwd"}, "url: must begin with"),
        ({"url": "http://user:s3cret@example.org"}, "url: must not hold a user name or password"),
        ({"url": "http://user@example.org"}, "url: must not hold a user name or password"),
        ({"url": "http://example.org:99999"}, "url: must be a URL with a valid host and port"),
        ({"url": "http://[::1"}, "url: must be a URL with a valid host and port"),
        ({"url": "http://example.org/a b"}, "url: must be a URL of at most"),
        ({"url": "http://example.org/\r\nX: y"}, "url: must be a URL of at most"),
        ({"url": "http://ex\u00e4mple.org"}, "url: must be a URL of at most"),
        ({"url": "http://example.org/#part"}, "url: must be a URL without a fragment"),
        ({"url": 7}, "url: must be a URL of at most"),
        ({"method": "GET"}, "method"),
        ({"headers": ["A"]}, "headers: must be a mapping"),
        ({"headers": {"A b": "c"}}, "headers: must have names"),
        ({"headers": {"A\r\nB": "c"}}, "headers: must have names"),
        ({"headers": {"A": "b\r\nC: d"}}, "headers.A: must be text"),
        ({"headers": {"A": 7}}, "headers.A: must be text"),
        ({"headers": {"A": "s3cret\0"}}, "headers.A: must be text"),
        ({"headers": {"Content-Length": "7"}}, "headers.Content-Length: is set by the sink"),
        ({"headers": {"Idempotency-Key": "7"}}, "headers.Idempotency-Key: is set by the sink"),
        ({"headers": {"a": "1", "A": "2"}}, "headers: must not name a header twice"),
        ({"body": "xml"}, "body"),
        ({"compression": "zstd"}, "compression"),
        ({"ca_file": ""}, "ca_file"),
        ({"verify_tls": False}, "verify_tls: is not a known option"),
        ({"public_only": "yes"}, "public_only"),
    ],
)
def test_http_refuses_wrong_options(options, message):
    with pytest.raises(OptionsError) as raised:
        build(Http, **{"url": "http://example.org", **options})
    assert message in str(raised.value)
    assert "s3cret" not in str(raised.value)
