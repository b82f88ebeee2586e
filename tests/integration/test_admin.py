"""The admin listener over real sockets."""

from __future__ import annotations

import json
from typing import Any

from edge.metrics import TABLE


async def test_all_metric_names_are_there_at_the_first_scrape(launch: Any) -> None:
    gateway = await launch()
    response = await gateway.fetch("GET", "/metrics", admin=True)
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    text = response.body.decode()
    for row in TABLE:
        assert f"# TYPE {row.name} " in text, row.name
        assert row.help in text


async def test_openmetrics_is_served_when_asked_for(launch: Any) -> None:
    gateway = await launch()
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    response = await gateway.fetch("GET", "/metrics", admin=True, headers=accept)
    assert response.headers["Content-Type"].startswith("application/openmetrics-text")
    assert response.body.endswith(b"# EOF\n")


async def test_metrics_can_be_picked_by_name(launch: Any) -> None:
    gateway = await launch()
    response = await gateway.fetch("GET", "/metrics?name[]=edge_build_info", admin=True)
    lines = [line for line in response.body.decode().splitlines() if not line.startswith("#")]
    assert len(lines) == 1
    assert lines[0].startswith("edge_build_info{")


async def test_readyz_names_its_checks(launch: Any, tmp_path: Any) -> None:
    sinks = {"archive": {"type": "blackhole", "required": True}}
    gateway = await launch(sinks=sinks)
    response = await gateway.fetch("GET", "/readyz", admin=True)
    body = json.loads(response.body)
    assert (response.code, body["status"]) == (200, "pass")
    assert set(body["checks"]) == {"spool", "draining", "sink:archive"}


async def test_readyz_fails_while_a_required_sink_is_down(
    launch: Any, free_port: int, example_event: Any, eventually: Any, expect_log: list[str]
) -> None:
    expect_log.append("circuit")
    sinks = {
        "crm": {
            "type": "http",
            "url": f"http://127.0.0.1:{free_port}/",
            "required": True,
            "batch": {"max_age_secs": 0.01},
            "retry": {"initial_secs": 0.01, "max_secs": 0.02},
        }
    }
    gateway = await launch(sinks=sinks)
    await gateway.post("/ingest", example_event)

    async def not_ready() -> bool:
        return (await gateway.fetch("GET", "/readyz", admin=True)).code == 503

    await eventually(not_ready)
    assert (await gateway.post("/ingest", example_event)).code == 200


async def test_admin_asks_for_its_token(launch: Any) -> None:
    gateway = await launch(admin={"token": "admin-token-1"})
    for path in ("/metrics", "/readyz", "/healthz", "/nowhere"):
        response = await gateway.fetch("GET", path, admin=True)
        assert response.code == 401, path
        response = await gateway.fetch("GET", path, admin=True, headers={"Authorization": "Bearer wrong"})
        assert response.code == 401
    response = await gateway.fetch("GET", "/metrics", admin=True, headers={"Authorization": "Bearer admin-token-1"})
    assert response.code == 200


async def test_admin_routes_answer_unknown_paths_and_methods(launch: Any) -> None:
    gateway = await launch()
    response = await gateway.fetch("GET", "/ingest", admin=True)
    assert (response.code, json.loads(response.body)["error"]) == (404, "Not found")
    response = await gateway.fetch("POST", "/metrics", b"", admin=True)
    assert (response.code, response.headers["Allow"]) == (405, "GET")


async def test_reload_over_http_keeps_the_old_configuration_when_the_new_one_is_wrong(
    launch: Any, config_path: Any, example_event: Any, expect_log: list[str]
) -> None:
    expect_log.append("the old one goes on")
    gateway = await launch()
    config_path(schema={"unknown_fields": "rejekt"})
    response = await gateway.fetch("POST", "/reload", b"", admin=True)
    assert response.code == 409
    assert "unknown_fields" in json.loads(response.body)["details"][0]["message"]
    assert (await gateway.metrics())["edge_config_last_reload_successful"] == 0
    assert (await gateway.post("/ingest", {**example_event, "extra": 1})).code == 400
    config_path(schema={"unknown_fields": "keep"})
    assert (await gateway.fetch("POST", "/reload", b"", admin=True)).code == 200
    assert (await gateway.post("/ingest", {**example_event, "extra": 1})).code == 200
    assert (await gateway.metrics())["edge_config_last_reload_successful"] == 1
