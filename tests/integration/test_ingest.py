"""The contract of the ingest listener, over real sockets and a real disk."""

from __future__ import annotations

import asyncio
import base64
import gzip
import itertools
import json
import time
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import brotli
import pytest

from edge.judging import LEAST_DETAILS

try:
    from compression import zstd
except ImportError:
    from backports import zstd

KEY = "test-key-0123456789"


def body_of(response: Any) -> Any:
    return json.loads(response.body)


def codes(response: Any) -> list[str]:
    return [detail["code"] for detail in body_of(response)["details"]]


def stored(tmp_path: Path) -> list[dict[str, Any]]:
    files = sorted((tmp_path / "events").rglob("*.ndjson*"))
    return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]


def assert_books_balance(metrics: dict[str, float]) -> None:
    received = sum(value for name, value in metrics.items() if name.startswith("edge_events_received_total{"))
    outcomes = sum(value for name, value in metrics.items() if name.startswith("edge_events_outcome_total{"))
    assert received == outcomes
    assert metrics["edge_events_unaccounted"] == 0


async def test_event_is_answered_and_reaches_the_file_sink_within_a_second(
    launch: Any, example_event: Any, tmp_path: Path, eventually: Any
) -> None:
    gateway = await launch()
    response = await gateway.post("/ingest", example_event)
    assert response.code == 200
    assert body_of(response) == {"status": "success", "eventId": "evt_123456789"}
    await eventually(lambda: stored(tmp_path) == [example_event], 1.0)
    metrics = await gateway.metrics()
    assert metrics['edge_events_outcome_total{outcome="accepted",reason=""}'] == 1
    assert metrics['edge_sink_events_total{outcome="delivered",sink="archive"}'] == 1
    assert_books_balance(metrics)


async def test_durations_of_answers_do_not_know_what_time_it_is(
    launch: Any, example_event: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = itertools.count(0, -3600)
    monkeypatch.setattr("tornado.httputil.time", SimpleNamespace(**{**vars(time), "time": lambda: next(hours)}))
    gateway = await launch()
    for _ in range(2):
        assert (await gateway.post("/ingest", example_event)).code == 200
    total = (await gateway.metrics())['edge_http_request_duration_seconds_sum{route="ingest"}']
    assert 0 < total < 60


async def test_every_answer_carries_the_common_headers(launch: Any, example_event: Any) -> None:
    gateway = await launch()
    for response in (
        await gateway.post("/ingest", example_event),
        await gateway.post("/ingest", {}),
        await gateway.fetch("GET", "/nowhere"),
    ):
        assert response.headers["Content-Type"] == "application/json"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Cache-Control"] == "no-store"
        assert "Server" not in response.headers
        assert response.headers["X-Request-Id"]


async def test_request_id_and_traceparent_are_taken_over(launch: Any, example_event: Any, eventually: Any) -> None:
    gateway = await launch()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    response = await gateway.post("/ingest", example_event, headers={"X-Request-Id": "abc-1", "traceparent": trace})
    assert response.headers["X-Request-Id"] == "abc-1"
    frames = gateway.gateway.spool.read(0, 1 << 20).frames
    meta = json.loads(frames[0].payload.split(b"\n")[0])
    assert meta["request_id"] == "abc-1"
    assert meta["traceparent"] == trace
    assert meta["key"] == "test"


@pytest.mark.parametrize("given", ["a b", "x" * 129, "é"])
async def test_request_id_that_is_not_a_plain_word_is_replaced(launch: Any, given: str) -> None:
    gateway = await launch()
    response = await gateway.fetch("GET", "/healthz", headers={"X-Request-Id": given.encode().decode("latin1")})
    assert response.headers["X-Request-Id"] != given
    assert len(response.headers["X-Request-Id"]) == 16


async def test_invalid_event_gets_every_mistake_in_one_answer(launch: Any, example_event: Any) -> None:
    gateway = await launch()
    event = {**example_event, "event_time": "yesterday", "device_type": "toaster", "usr_id": "secret-value"}
    del event["user_id"]
    response = await gateway.post("/ingest", event)
    assert response.code == 400
    assert body_of(response)["error"] == "Invalid event"
    assert body_of(response)["details"] == [
        {"field": "event_time", "message": "must be a valid ISO 8601 datetime", "code": "validation.format"},
        {"field": "user_id", "message": "is required", "code": "validation.required"},
        {"field": "device_type", "message": "must be one of: mobile, desktop, tablet", "code": "validation.enum"},
        {"field": "usr_id", "message": "is not a known field; did you mean user_id?", "code": "validation.unknown"},
    ]
    assert b"secret-value" not in response.body
    assert b"toaster" not in response.body
    assert_books_balance(await gateway.metrics())


async def test_a_thousand_mistakes_come_in_one_answer(launch: Any, example_event: Any) -> None:
    gateway = await launch()
    event = {**example_event, **{f"unknown_{number}": number for number in range(1000)}}
    response = await gateway.post("/ingest", event)
    assert response.code == 400
    assert len(body_of(response)["details"]) == 1000


async def test_small_batch_with_many_mistakes_has_a_bounded_answer(launch: Any, example_event: Any) -> None:
    gateway = await launch()
    events = [dict.fromkeys(map(str, range(40)), 0) for _ in range(230)]
    response = await gateway.post("/ingest/batch", events)
    assert response.code == 400
    details = [row["details"] for row in body_of(response)["results"]]
    assert len(details) == 230
    assert len(details[0]) == 47
    assert max(map(len, details[225:])) <= LEAST_DETAILS + 1  # the last one says how many more there are
    assert_books_balance(await gateway.metrics())


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "json.syntax"),
        (b"{", "json.syntax"),
        (b"hello", "json.syntax"),
        (b'{"a": NaN}', "json.syntax"),
        (b'{"a": "\\ud800"}', "json.encoding"),
        (b'{"a": "\xff"}', "json.encoding"),
        (b"\xef\xbb\xbf{}", "json.encoding"),
        ('{"a": 1}'.encode("utf-16"), "json.encoding"),
        (b"[" * 100_000 + b"]" * 100_000, "json.limit"),
        (b'{"extras": ' * 40 + b"1" + b"}" * 40, "json.limit"),
        (b'{"extras": {"n": 18446744073709551616}}', "json.limit"),
    ],
)
async def test_body_that_is_not_json_is_refused(launch: Any, body: bytes, code: str) -> None:
    gateway = await launch()
    response = await gateway.post("/ingest", body)
    assert (response.code, body_of(response)["error"], codes(response)) == (400, "Invalid JSON", [code])
    assert_books_balance(await gateway.metrics())


async def test_body_that_is_json_but_no_object_is_an_invalid_event(launch: Any) -> None:
    gateway = await launch()
    for body in (b"[]", b"1", b'"a"', b"null"):
        response = await gateway.post("/ingest", body)
        assert (response.code, codes(response)) == (400, ["validation.type"])


@pytest.mark.parametrize(
    "headers",
    [
        {"X-API-Key": KEY},
        {"X-API-Key": None, "Authorization": f"Bearer {KEY}"},
        {"X-API-Key": None, "Authorization": "Basic " + base64.b64encode(f"{KEY}:".encode()).decode()},
    ],
    ids=["header", "bearer", "basic"],
)
async def test_key_is_taken_from_a_header(launch: Any, example_event: Any, headers: Any) -> None:
    gateway = await launch()
    assert (await gateway.post("/ingest", example_event, headers=headers)).code == 200


async def test_key_is_taken_from_the_url_only_when_it_is_a_browser_key(launch: Any, example_event: Any) -> None:
    keys = [{"id": "web", "key": "browser-key-1", "browser": True}, {"id": "server", "key": KEY}]
    gateway = await launch(auth={"mode": "keys", "keys": keys})
    response = await gateway.post("/ingest?api_key=browser-key-1", example_event, headers={"X-API-Key": None})
    assert response.code == 200
    response = await gateway.post(f"/ingest?api_key={KEY}", example_event, headers={"X-API-Key": None})
    assert (response.code, codes(response)) == (403, ["auth.scope"])


async def test_missing_and_wrong_keys_are_refused(launch: Any, example_event: Any) -> None:
    gateway = await launch()
    response = await gateway.post("/ingest", example_event, headers={"X-API-Key": None})
    assert (response.code, body_of(response)["error"], codes(response)) == (401, "Unauthorized", ["auth.missing"])
    response = await gateway.post("/ingest", example_event, headers={"X-API-Key": "wrong"})
    assert (response.code, codes(response)) == (401, ["auth.invalid"])
    assert b"wrong" not in response.body


@pytest.mark.both_servers
async def test_key_is_checked_before_the_body_is_read(launch: Any, raw: Any, short_linger: None) -> None:
    gateway = await launch()
    answer = await raw(
        gateway.port,
        b"POST /ingest HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\nContent-Type: application/json\r\n\r\n",
        timeout_secs=5,
    )
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"auth.missing" in answer
    assert b"Connection: close" in answer


@pytest.mark.both_servers
async def test_refusal_comes_instead_of_100_continue(launch: Any, raw: Any) -> None:
    gateway = await launch()
    head = b"POST /ingest HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\nExpect: 100-continue\r\n"
    for line, status in ((b"", b"401"), (f"X-API-Key: {KEY}\r\n".encode(), b"413")):
        answer = await raw(gateway.port, head + line + b"\r\n", timeout_secs=5)
        assert answer.startswith(b"HTTP/1.1 " + status)


@pytest.mark.both_servers
async def test_sender_that_already_sends_sees_the_refusal(launch: Any, raw: Any) -> None:
    gateway = await launch()
    head = b"POST /ingest HTTP/1.1\r\nHost: x\r\nContent-Length: 600000\r\n\r\n"
    answer = await raw(gateway.port, head, *[b"x" * 60_000] * 10, timeout_secs=5)
    assert answer.startswith(b"HTTP/1.1 401 ")


async def test_key_is_held_to_its_origins_and_routes(launch: Any, example_event: Any) -> None:
    keys = [{"id": "web", "key": KEY, "allow_origins": ["https://shop.example.org"], "scopes": ["ingest"]}]
    gateway = await launch(auth={"mode": "keys", "keys": keys})
    response = await gateway.post("/ingest", example_event, headers={"Origin": "https://shop.example.org"})
    assert response.code == 200
    assert response.headers["Access-Control-Allow-Origin"] == "https://shop.example.org"
    assert "Retry-After" in response.headers["Access-Control-Expose-Headers"]
    assert "Origin" in response.headers["Vary"]
    response = await gateway.post("/ingest", example_event, headers={"Origin": "https://evil.example"})
    assert (response.code, codes(response)) == (403, ["auth.origin"])
    assert "Access-Control-Allow-Origin" not in response.headers
    response = await gateway.post("/ingest/batch", [example_event])
    assert (response.code, body_of(response)["error"], codes(response)) == (403, "Forbidden", ["auth.scope"])


async def test_preflight_is_answered_for_configured_origins(launch: Any) -> None:
    gateway = await launch(server={"cors": {"allow_origins": ["https://*.example.org"]}})
    wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,x-retry-count"}
    for path in ("/ingest", "/ingest/batch"):
        headers = {"X-API-Key": None, "Origin": "https://shop.example.org", **wanted}
        response = await gateway.fetch("OPTIONS", path, headers=headers)
        assert response.code == 204
        assert response.headers["Access-Control-Allow-Origin"] == "https://shop.example.org"
        assert response.headers["Access-Control-Allow-Headers"] == "content-type,x-retry-count"
        assert response.headers["Access-Control-Max-Age"] == "86400"
        assert "POST" in response.headers["Access-Control-Allow-Methods"]
    for origin in ("https://example.org.evil.test", "null", "https://example.org"):
        response = await gateway.fetch("OPTIONS", "/ingest", headers={"X-API-Key": None, "Origin": origin, **wanted})
        assert (response.code, codes(response)) == (403, ["auth.origin"])
        assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.both_servers
async def test_text_plain_and_no_type_are_parsed_as_json(launch: Any, example_event: Any, raw: Any) -> None:
    gateway = await launch()
    body = json.dumps(example_event).encode()
    head = f"POST /ingest HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nConnection: close\r\n"
    answer = await raw(gateway.port, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    assert answer.startswith(b"HTTP/1.1 200 ")
    for content_type in ("text/plain", "text/plain;charset=UTF-8", "application/json; charset=utf-8"):
        response = await gateway.post("/ingest", body, headers={"Content-Type": content_type})
        assert response.code == 200, content_type


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Content-Type": "application/x-www-form-urlencoded"}, "http.media_type"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, "http.media_type"),
        ({"Content-Type": "application/xml"}, "http.media_type"),
        ({"Content-Encoding": "compress"}, "http.encoding"),
        ({"Content-Encoding": "gzip, gzip"}, "http.encoding"),
    ],
)
async def test_media_types_and_codings_that_are_not_taken_are_refused(launch: Any, headers: Any, code: str) -> None:
    gateway = await launch()
    response = await gateway.post("/ingest", b"--x\r\n", headers=headers)
    assert (response.code, body_of(response)["error"], codes(response)) == (415, "Unsupported media type", [code])


@pytest.mark.parametrize(
    ("coding", "compress"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("zstd", zstd.compress),
        ("br", brotli.compress),
        ("GZIP", gzip.compress),
    ],
)
async def test_compressed_body_is_taken(launch: Any, example_event: Any, coding: str, compress: Any) -> None:
    gateway = await launch()
    body = compress(json.dumps(example_event).encode())
    response = await gateway.post("/ingest", body, headers={"Content-Encoding": coding})
    assert response.code == 200, response.body


@pytest.mark.parametrize(
    ("coding", "compress"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("zstd", zstd.compress), ("br", brotli.compress)],
)
async def test_compressed_bomb_is_refused(launch: Any, coding: str, compress: Any) -> None:
    gateway = await launch()
    bomb = compress(b"[" + b" " * (50 << 20) + b"]")
    response = await gateway.post("/ingest/batch", bomb, headers={"Content-Encoding": coding})
    assert (response.code, body_of(response)["error"], codes(response)) == (
        413,
        "Payload too large",
        ["limit.decompressed"],
    )
    assert_books_balance(await gateway.metrics())


@pytest.mark.both_servers
async def test_body_over_the_limit_is_refused(launch: Any, raw: Any, example_event: Any, short_linger: None) -> None:
    gateway = await launch(server={"limits": {"body_bytes": 10_000}})
    response = await gateway.post("/ingest", b" " * 10_001)
    assert (response.code, codes(response)) == (413, ["limit.body"])
    head = f"POST /ingest HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    answer = await raw(gateway.port, head, *[b"1000\r\n" + b" " * 4096 + b"\r\n"] * 5, timeout_secs=5)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert (await gateway.post("/ingest", example_event)).code == 200


@pytest.mark.both_servers
async def test_chunked_body_is_taken(launch: Any, raw: Any, example_event: Any) -> None:
    gateway = await launch()
    body = json.dumps(example_event).encode()
    head = f"POST /ingest HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nConnection: close\r\n"
    head += "Transfer-Encoding: chunked\r\n\r\n"
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(body[i : i + 50]), body[i : i + 50]) for i in range(0, len(body), 50))
    answer = await raw(gateway.port, head.encode() + chunks + b"0\r\n\r\n", timeout_secs=5)
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_event_over_its_limit_is_refused(launch: Any, example_event: Any) -> None:
    gateway = await launch()
    event = {**example_event, "extras": {"blob": "x" * 65_536}}
    response = await gateway.post("/ingest", event)
    assert (response.code, codes(response)) == (413, ["limit.event"])
    response = await gateway.post("/ingest/batch", [example_event, event])
    assert response.code == 200
    assert body_of(response)["results"][0]["details"][0]["code"] == "limit.event"


async def test_unknown_route_and_method_get_their_answers(launch: Any) -> None:
    gateway = await launch()
    for path in (
        "/",
        "/metrics",
        "/readyz",
        "/ingest/",
        "//ingest",
        "/ingest/../metrics",
        "/%2e%2e/etc/passwd",
        "/reload",
    ):
        for method, body in (("GET", None), ("POST", b"{}")):
            response = await gateway.fetch(method, path, body)
            assert (response.code, body_of(response)["error"], codes(response)) == (
                404,
                "Not found",
                ["http.not_found"],
            )
    for method in ("GET", "PUT", "DELETE", "HEAD", "PATCH"):
        response = await gateway.fetch(method, "/ingest", b"{}" if method in ("PUT", "PATCH") else None)
        assert response.code == 405
        assert response.headers["Allow"] == "POST, OPTIONS"
        if method != "HEAD":
            assert body_of(response)["error"] == "Method not allowed"


@pytest.mark.both_servers
async def test_method_nobody_knows_is_405(launch: Any, raw: Any) -> None:
    gateway = await launch()
    answer = await raw(gateway.port, b"BREW /ingest HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", timeout_secs=5)
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"Allow: POST, OPTIONS" in answer
    metrics = await gateway.metrics()
    assert metrics['edge_http_requests_total{method="other",route="ingest",status="405"}'] == 1


async def test_batch_in_its_three_shapes(launch: Any, example_event: Any, tmp_path: Path, eventually: Any) -> None:
    gateway = await launch()
    events = [{**example_event, "event_id": f"evt_{number}"} for number in range(3)]
    expected = {"status": "success", "accepted": 3, "rejected": 0, "results": []}
    response = await gateway.post("/ingest/batch", events)
    assert (response.code, body_of(response)) == (200, expected)
    response = await gateway.post("/ingest/batch", {"events": events, "sent_at": "2026-01-01T00:00:00Z"})
    assert (response.code, body_of(response)) == (200, expected)
    lines = b"\n".join(json.dumps(event).encode() for event in events) + b"\n\n"
    response = await gateway.post("/ingest/batch", lines, headers={"Content-Type": "application/x-ndjson"})
    assert (response.code, body_of(response)) == (200, expected)
    await eventually(lambda: stored(tmp_path) == events * 3)
    metrics = await gateway.metrics()
    assert metrics["edge_spool_commit_events_count"] == 3
    assert_books_balance(metrics)


async def test_batch_is_judged_event_by_event(launch: Any, example_event: Any, tmp_path: Path, eventually: Any) -> None:
    gateway = await launch()
    bad = {**example_event, "event_id": "evt_bad", "platform": "symbian"}
    response = await gateway.post("/ingest/batch", [example_event, bad, 7])
    assert response.code == 200
    assert body_of(response) == {
        "status": "partial",
        "accepted": 1,
        "rejected": 2,
        "results": [
            {
                "index": 1,
                "eventId": "evt_bad",
                "status": "invalid",
                "retryable": False,
                "details": [
                    {"field": "platform", "message": "must be one of: ios, android, web", "code": "validation.enum"}
                ],
            },
            {
                "index": 2,
                "eventId": None,
                "status": "invalid",
                "retryable": False,
                "details": [{"field": "event", "message": "must be a JSON object", "code": "validation.type"}],
            },
        ],
    }
    await eventually(lambda: stored(tmp_path) == [example_event])
    response = await gateway.post("/ingest/batch?verbose=1", [example_event, bad])
    assert [row["status"] for row in body_of(response)["results"]] == ["accepted", "invalid"]
    assert_books_balance(await gateway.metrics())


async def test_batch_without_a_good_event_is_400_in_both_shapes(launch: Any, example_event: Any) -> None:
    gateway = await launch()
    response = await gateway.post("/ingest/batch", [{**example_event, "user_id": 5}])
    assert response.code == 400
    body = body_of(response)
    assert (body["status"], body["accepted"], body["rejected"]) == ("error", 0, 1)
    assert body["error"] == "Invalid event"
    assert body["details"] == [{"field": "events[0].user_id", "message": "must be a string", "code": "validation.type"}]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"[]", 400, "validation.length"),
        (b'{"events": []}', 400, "validation.length"),
        (b"{}", 400, "validation.required"),
        (b'{"events": 1}', 400, "validation.type"),
        (b'{"events": [{}], "sentAt": "x"}', 400, "validation.unknown"),
        (b'{"events": [{}], "sent_at": "x"}', 400, "validation.format"),
        (b"7", 400, "validation.type"),
        (b"[", 400, "json.syntax"),
        (b"[" + b"{}," * 1000 + b"{}]", 413, "limit.batch"),
    ],
)
async def test_body_that_is_no_batch_is_refused(launch: Any, body: bytes, status: int, code: str) -> None:
    gateway = await launch()
    response = await gateway.post("/ingest/batch", body)
    assert (response.code, codes(response)) == (status, [code])
    assert_books_balance(await gateway.metrics())


async def test_bad_line_of_ndjson_spoils_only_itself(launch: Any, example_event: Any) -> None:
    gateway = await launch()
    lines = b"{nonsense\n" + json.dumps(example_event).encode() + b'\n{"extras": {"n": 99999999999999999999}}'
    response = await gateway.post("/ingest/batch", lines, headers={"Content-Type": "application/x-ndjson"})
    assert response.code == 200
    results = body_of(response)["results"]
    assert [(row["index"], row["details"][0]["code"]) for row in results] == [(0, "json.syntax"), (2, "json.limit")]


async def test_unknown_fields_follow_the_configuration(
    launch: Any, example_event: Any, tmp_path: Path, eventually: Any
) -> None:
    gateway = await launch(schema={"unknown_fields": "drop", "required": ["app_version"]})
    assert (await gateway.post("/ingest", {**example_event, "surprise": 1})).code == 200
    await eventually(lambda: stored(tmp_path) == [example_event])
    response = await gateway.post(
        "/ingest", {key: value for key, value in example_event.items() if key != "app_version"}
    )
    assert body_of(response)["details"] == [
        {"field": "app_version", "message": "is required", "code": "validation.required"}
    ]


async def test_filtered_event_is_a_success_for_its_sender(launch: Any, example_event: Any) -> None:
    pipeline = [{"type": "drop", "id": "drop_clicks", "when": {"event_type": "click"}}]
    gateway = await launch(pipeline=pipeline)
    response = await gateway.post("/ingest", example_event)
    assert (response.code, body_of(response)["status"]) == (200, "success")
    response = await gateway.post("/ingest/batch", [example_event, {**example_event, "event_type": "view"}])
    assert body_of(response) == {"status": "success", "accepted": 2, "rejected": 0, "results": []}
    metrics = await gateway.metrics()
    assert metrics['edge_events_outcome_total{outcome="filtered",reason="drop_clicks.matched"}'] == 2
    assert_books_balance(metrics)


async def test_key_over_its_quota_is_told_when_to_come_back(launch: Any, example_event: Any) -> None:
    keys = [{"id": "web", "key": KEY, "rate_limit": {"events_per_sec": 0.5, "burst_events": 2}}]
    gateway = await launch(auth={"mode": "keys", "keys": keys})
    assert (await gateway.post("/ingest/batch", [example_event] * 2)).code == 200
    response = await gateway.post("/ingest", example_event)
    assert (response.code, body_of(response)["error"], codes(response)) == (429, "Too many requests", ["limit.rate"])
    assert 1 <= int(response.headers["Retry-After"]) <= 2
    assert_books_balance(await gateway.metrics())


async def test_healthz_and_openapi_are_served(launch: Any) -> None:
    gateway = await launch(schema={"unknown_fields": "reject", "required": ["platform"]})
    response = await gateway.fetch("GET", "/healthz", headers={"X-API-Key": None})
    assert (response.code, body_of(response)) == (200, {"status": "pass"})
    response = await gateway.fetch("GET", "/openapi.json", headers={"X-API-Key": None})
    document = body_of(response)
    assert document["openapi"] == "3.1.0"
    event = document["components"]["schemas"]["Event"]
    assert event["additionalProperties"] is False
    assert "platform" in event["required"]
    assert event["properties"]["device_type"]["enum"] == ["mobile", "desktop", "tablet"]
    assert set(document["paths"]["/ingest"]["post"]["responses"]) == {
        "200",
        "400",
        "401",
        "403",
        "404",
        "405",
        "413",
        "415",
        "429",
        "503",
    }


async def test_many_requests_share_commits(launch: Any, example_event: Any) -> None:
    gateway = await launch()
    responses = await asyncio.gather(*(gateway.post("/ingest", example_event) for _ in range(200)))
    assert {response.code for response in responses} == {200}
    metrics = await gateway.metrics()
    assert metrics["edge_spool_commit_events_sum"] == 200
    assert metrics["edge_spool_commit_duration_seconds_count"] < 200
    assert_books_balance(metrics)


async def test_no_client_value_becomes_a_metric_label(launch: Any, example_event: Any, eventually: Any) -> None:
    gateway = await launch()
    await gateway.post("/ingest", example_event)
    await gateway.fetch("GET", "/warm-up")
    await gateway.post("/ingest", example_event, headers={"X-API-Key": "warm-up"})

    async def delivered() -> bool:
        return (await gateway.metrics())['edge_sink_events_total{outcome="delivered",sink="archive"}'] >= 1

    await eventually(delivered)
    before = set(await gateway.metrics())
    for number in range(50):
        event = {**example_event, "event_name": f"name_{number}", "user_id": f"user_{number}"}
        headers = {"User-Agent": f"agent_{number}"}
        await gateway.post(f"/ingest?x={number}", event, headers=headers)
        await gateway.fetch("GET", f"/path_{number}")
        await gateway.post("/ingest", event, headers={"X-API-Key": f"key_{number}"})
    assert set(await gateway.metrics()) == before


@pytest.mark.both_servers
async def test_pipelined_requests_are_answered_in_order(launch: Any, raw: Any, example_event: Any) -> None:
    gateway = await launch()
    requests = []
    for number in range(3):
        body = json.dumps({**example_event, "event_id": f"evt_{number}"}).encode()
        last = b"Connection: close\r\n" if number == 2 else b""
        head = f"POST /ingest HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: {len(body)}\r\n".encode()
        requests.append(head + last + b"\r\n" + body)
    answer = await raw(gateway.port, b"".join(requests), timeout_secs=5)
    positions = [answer.index(f'"eventId":"evt_{number}"'.encode()) for number in range(3)]
    assert positions == sorted(positions)


@pytest.mark.both_servers
async def test_sender_that_goes_away_leaves_nothing_behind(launch: Any, eventually: Any) -> None:
    gateway = await launch()
    for _ in range(20):
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(
            f"POST /ingest HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: 5000\r\n\r\n".encode()
            + b"x" * 999
        )
        await writer.drain()
        writer.close()
    site = gateway.process._site
    await eventually(
        lambda: not site.in_flight and site.body_bytes == 0 and not gateway.process._ingest.open_connections
    )


@pytest.mark.both_servers
async def test_bodies_of_all_requests_together_are_bounded(
    launch: Any, raw: Any, eventually: Any, short_linger: None
) -> None:
    limits = {"inflight_bytes": 100_000, "body_bytes": 95_000, "decompressed_bytes": 95_000}
    gateway = await launch(server={"limits": limits})
    head = f"POST /ingest HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: 90000\r\n\r\n".encode()
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(head + b" " * 80_000)
    await eventually(lambda: gateway.process._site.body_bytes == 80_000)
    answer = await raw(gateway.port, head, timeout_secs=5)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"busy.backpressure" in answer
    writer.close()
