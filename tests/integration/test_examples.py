"""The shipped configurations, each loaded from its own file and run: events go where the file says they go."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from edge.config import load
from edge.http.server import listen
from edge.runtime import Process
from edge.testing import Answer, RecordingTarget

CONFIG = Path(__file__).parents[2] / "config"
PURCHASE = {"event_type": "purchase", "commerce": {"total": 250}, "device_type": "mobile"}


class Example:
    """A gateway that runs one of the files."""

    def __init__(self, process: Process, ingest: str, admin: str) -> None:
        self.process = process
        self._client = SimpleAsyncHTTPClient(force_instance=True)
        self._ingest, self._admin = (f"http://{address}" for address in (ingest, admin))
        self.drained = False

    async def post(self, path: str, body: Any, **headers: str) -> Any:
        """Post to the ingest listener and return the answer's status and body."""
        headers = {"Content-Type": "application/json", **{name.replace("_", "-"): headers[name] for name in headers}}
        response = await self._client.fetch(
            self._ingest + path, method="POST", body=json.dumps(body), headers=headers, raise_error=False
        )
        return response.code, json.loads(response.body)

    async def metrics(self) -> dict[str, float]:
        """Return the samples of a scrape."""
        text = (await self._client.fetch(f"{self._admin}/metrics")).body.decode()
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    async def drain(self) -> None:
        """Check that the books balance, and stop."""
        assert (await self.metrics())["edge_events_unaccounted"] == 0
        assert (await self._client.fetch(f"{self._admin}/readyz", raise_error=False)).code == 200
        self.close()
        await self.process.drain()

    def close(self) -> None:
        """Let go of the client."""
        self.drained = True
        self._client.close()


Run = Callable[..., Awaitable[Example]]


@pytest.fixture
def run(io_loop: Any, registry: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Return a coroutine function that runs a file of `config/`; its relative paths start in the test's directory.

    Only ports are replaced, and waits that a test has no time for.
    """
    monkeypatch.chdir(tmp_path)
    running: list[Example] = []

    async def start(name: str, **environ: str) -> Example:
        text = (CONFIG / name).read_text()
        text = re.sub(r"(?m)^(  listen: )(\$\{\w+:-)?127\.0\.0\.1:\d+(\})?", r"\g<1>127.0.0.1:0", text)
        for section in ("server", "admin"):
            if not re.search(rf"(?m)^{section}:", text):
                text += f"\n{section}:\n  listen: 127.0.0.1:0\n"
        text = text.replace("pre_stop_secs: 5", "pre_stop_secs: 0").replace("give_up_secs: 10", "give_up_secs: 0.2")
        path = tmp_path / "edge.yaml"
        path.write_text(text)
        config = load(path, registry, environ)
        assert config.warnings == ()
        process = Process(config, registry, environ)
        started = await process.start(listen(config.server.listen), listen(config.admin.listen))
        running.append(Example(process, started.ingest[0], started.admin[0]))
        return running[-1]

    yield start
    for example in running:
        if not example.drained:
            example.close()
            io_loop.run_sync(example.process.drain)


def archived(tmp_path: Path) -> list[dict[str, Any]]:
    """Return the events in the files of the file sink, when all of them are closed."""
    lines: list[bytes] = []
    for path in sorted((tmp_path / "var" / "events").rglob("*.ndjson*")):
        content = path.read_bytes()
        lines += (gzip.decompress(content) if path.suffix == ".gz" else content).splitlines()
    return [json.loads(line) for line in lines]


async def delivered(example: Example, sink: str) -> bool:
    samples = await example.metrics()
    return samples.get(f'edge_sink_events_total{{outcome="delivered",sink="{sink}"}}', 0) == 1


@pytest.mark.parametrize("name", ["edge.yaml", "examples/minimal.yaml"])
async def test_smallest_files_bring_an_event_into_the_archive(
    run: Run, tmp_path: Path, example_event: Any, eventually: Any, name: str
) -> None:
    example = await run(name)
    assert (await example.post("/ingest", example_event))[0] == 401
    code, body = await example.post("/ingest", example_event, X_API_Key="your_api_key")
    assert (code, body) == (200, {"status": "success", "eventId": example_event["event_id"]})
    await eventually(lambda: delivered(example, "archive"))
    await example.drain()
    (stored,) = archived(tmp_path)
    assert {**stored, **example_event} == stored
    assert ("received_at" in stored) is (name == "edge.yaml")


async def test_fan_out_delivers_to_who_is_up_and_keeps_the_rest_pending(
    run: Run, tmp_path: Path, example_event: Any, eventually: Any, free_port: int, expect_log: list[str]
) -> None:
    expect_log.append("circuit")
    async with RecordingTarget() as crm:
        nobody = f"http://127.0.0.1:{free_port}/events"
        example = await run("examples/fan-out.yaml", CRM_URL=crm.url, CRM_TOKEN="t0ken", WAREHOUSE_URL=nobody)
        event = {**example_event, **PURCHASE}
        code, _ = await example.post("/ingest", event, X_API_Key="your_api_key")
        assert code == 200
        code, _ = await example.post("/ingest", {**event, "event_type": "heartbeat"}, X_API_Key="your_api_key")
        assert code == 200
        await eventually(lambda: crm.events)
        await eventually(lambda: delivered(example, "archive"))
        samples = await example.metrics()
        assert samples['edge_sink_pending_events{sink="warehouse"}'] == 1
        assert samples['edge_events_outcome_total{outcome="filtered",reason="drop_heartbeats.matched"}'] == 1
        await example.drain()
    (stored,) = archived(tmp_path)
    assert stored["environment"] == "development"
    assert crm.events == [stored]
    assert crm.requests[0].headers["Authorization"] == "Bearer t0ken"


async def test_dead_letter_keeps_what_the_target_refuses_until_it_is_replayed(
    run: Run, tmp_path: Path, example_event: Any, eventually: Any, expect_log: list[str]
) -> None:
    expect_log.append("events became dead letters")
    async with RecordingTarget(Answer(422)) as crm:
        example = await run("examples/dead-letter.yaml", CRM_URL=crm.url)
        assert (await example.post("/ingest", example_event, X_API_Key="your_api_key"))[0] == 200
        await eventually(lambda: delivered(example, "archive"))
        await eventually(lambda: dead_letters(example))
        (letter,) = example.process.gateway.worker("crm").dead_letters.entries()
        assert (letter.reason, letter.event_id) == ("permanent", example_event["event_id"])
        await example.drain()
    assert (tmp_path / "var" / "dead-letters" / "crm").is_dir()
    assert len(archived(tmp_path)) == 1


async def test_dead_letter_gives_up_on_a_target_that_is_away(
    run: Run, example_event: Any, eventually: Any, free_port: int, expect_log: list[str]
) -> None:
    expect_log.extend(["events became dead letters", "circuit"])
    example = await run("examples/dead-letter.yaml", CRM_URL=f"http://127.0.0.1:{free_port}/hook")
    assert (await example.post("/ingest", example_event, X_API_Key="your_api_key"))[0] == 200
    await eventually(lambda: dead_letters(example))
    (letter,) = example.process.gateway.worker("crm").dead_letters.entries()
    assert letter.reason == "gave_up"
    await example.drain()


async def dead_letters(example: Example) -> bool:
    return (await example.metrics())['edge_dead_letters{sink="crm"}'] == 1


async def test_behind_a_proxy_believes_the_proxy_and_keeps_keys_apart(
    run: Run, tmp_path: Path, example_event: Any, eventually: Any
) -> None:
    example = await run("examples/behind-a-proxy.yaml")
    page = {"Origin": "https://shop.example.org", "X_Forwarded_For": "203.0.113.77", "User_Agent": "Browser/1"}
    code, _ = await example.post("/ingest?api_key=your_web_key", example_event, **page)
    assert code == 200
    assert (await example.post("/ingest?api_key=your_web_key", example_event, Origin="https://a.example"))[0] == 403
    assert (await example.post("/ingest", example_event, X_API_Key="your_backend_key"))[0] == 403
    await eventually(lambda: delivered(example, "archive"))
    await example.drain()
    (stored,) = archived(tmp_path)
    assert stored["client_ip"] == "203.0.113.0"
    assert stored["request_headers"] == {"user-agent": "Browser/1"}
    assert [path.suffix for path in (tmp_path / "var" / "events").rglob("*.ndjson*")] == [".gz"]
