"""The admin listener's routes for the spool."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from edge.spool.errors import SpoolFailedError, SpoolFullError

RANGE = {"sink": "archive", "since": "2020-01-01T00:00:00Z", "until": "2100-01-01T00:00:00Z"}


async def ask(gateway: Any, path: str, **body: Any) -> tuple[int, Any]:
    response = await gateway.fetch("POST", path, body, admin=True)
    return response.code, json.loads(response.body)


async def fill(gateway: Any, example_event: Any, eventually: Any, count: int = 5) -> None:
    for number in range(count):
        assert (await gateway.post("/ingest", {**example_event, "event_id": f"evt_{number}"})).code == 200
    await eventually(lambda: gateway.gateway.worker("archive").snapshot().pending_events == 0)


async def test_replay_says_its_end_at_the_first_request_and_keeps_to_it(
    launch: Any, example_event: Any, eventually: Any
) -> None:
    gateway = await launch(spool={"retain_secs": 3600})
    await fill(gateway, example_event, eventually)
    code, body = await ask(gateway, "/spool/replay", **RANGE)
    assert (code, body["position"], body["end"], body["moved"], body["first"]) == (200, 5, 5, 5, 0)
    assert body["oldest"].startswith("20")
    await eventually(lambda: gateway.gateway.worker("archive").snapshot().pending_events == 0)
    code, body = await ask(gateway, "/spool/replay", **RANGE, position=3, end=4)
    assert (code, body["position"], body["end"], body["moved"]) == (200, 4, 4, 1)
    assert "oldest" not in body
    assert (await gateway.metrics())["edge_events_unaccounted"] == 0


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({"since": "2020-01-01T00:00:00Z", "until": "2100-01-01T00:00:00Z"}, 400, "sink"),
        ({**RANGE, "sink": 7}, 400, "sink"),
        ({**RANGE, "sink": "nobody"}, 404, "sink"),
        ({"sink": "archive", "until": "2100-01-01T00:00:00Z"}, 400, "since"),
        ({"sink": "archive", "since": "2020-01-01T00:00:00Z"}, 400, "until"),
        ({**RANGE, "until": "2019-01-01T00:00:00Z"}, 400, "until"),
        ({**RANGE, "since": 7}, 400, "since"),
        ({**RANGE, "since": "yesterday"}, 400, "since"),
        ({**RANGE, "position": -1}, 400, "position"),
        ({**RANGE, "end": True}, 400, "end"),
        ({**RANGE, "dry_run": True}, 400, "dry_run"),
    ],
)
async def test_replay_body_that_does_not_say_what_to_do_appends_nothing(
    launch: Any, body: Any, code: int, field: str
) -> None:
    gateway = await launch()
    response = await gateway.fetch("POST", "/spool/replay", body, admin=True)
    assert (response.code, json.loads(response.body)["details"][0]["field"]) == (code, field)
    assert gateway.gateway.spool.durable_seq == 0


async def test_replay_that_the_spool_refuses_says_how_far_it_came(
    launch: Any, example_event: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch, expect_log: list[str]
) -> None:
    expect_log.append("a range of the spool could not be replayed")
    gateway = await launch(spool={"retain_secs": 3600})
    await fill(gateway, example_event, eventually)
    append, taken = gateway.gateway.spool.append, []

    def full_after_two(*args: Any) -> Any:
        taken.append(args)
        if len(taken) > 2:
            raise SpoolFullError("there is no room on the disk")
        return append(*args)

    monkeypatch.setattr(gateway.gateway.spool, "append", full_after_two)
    response = await gateway.fetch("POST", "/spool/replay", RANGE, admin=True)
    body = json.loads(response.body)
    assert (response.code, "Retry-After" in response.headers) == (503, True)
    assert body["details"][0]["message"] == "cannot go on: there is no room on the disk"
    assert (body["moved"], body["position"], body["end"]) == (2, 2, 5)


async def test_repair_of_an_intact_spool_finds_nothing(launch: Any, example_event: Any, eventually: Any) -> None:
    gateway = await launch()
    await fill(gateway, example_event, eventually)
    code, body = await ask(gateway, "/spool/repair")
    assert code == 200
    assert (body["findings"], body["missing"], body["events"], body["position"], body["end"]) == ([], [], 5, 5, 5)
    code, body = await ask(gateway, "/spool/repair", position=5)
    assert (code, body["segments"], body["position"]) == (200, 0, 5)
    assert (await ask(gateway, "/spool/repair", positon=5))[0] == 400


async def test_repair_that_the_disk_refuses_is_to_be_asked_for_again(
    launch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await launch()

    def refuse(position: int) -> Any:
        raise SpoolFailedError("the repair cannot go on: Input/output error")

    monkeypatch.setattr(gateway.gateway.spool, "repair", refuse)
    code, body = await ask(gateway, "/spool/repair")
    assert (code, body["error"]) == (503, "Service unavailable")
    assert "Input/output error" in body["details"][0]["message"]


async def test_health_answers_while_a_repair_goes_on(launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = await launch()
    real, held, go_on = gateway.gateway.spool.repair, threading.Event(), threading.Event()

    def slow(position: int) -> Any:
        held.set()
        go_on.wait(10)
        return real(position)

    monkeypatch.setattr(gateway.gateway.spool, "repair", slow)
    repairing = asyncio.create_task(ask(gateway, "/spool/repair"))
    await asyncio.to_thread(held.wait, 10)
    assert (await gateway.fetch("GET", "/healthz", admin=True)).code == 200
    go_on.set()
    assert (await repairing)[0] == 200


async def test_both_need_the_token(launch: Any) -> None:
    gateway = await launch(admin={"token": "admin-token-1"})
    for path in ("/spool/repair", "/spool/replay"):
        assert (await gateway.fetch("POST", path, RANGE, admin=True)).code == 401
        assert (await gateway.fetch("GET", path, admin=True)).code == 401
