"""What a process of several has of the configuration, and what the shards are called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.config import load
from edge.config.model import GatewayConfig
from edge.roles import SHARD, WHOLE, Role, roles, shard_name, shard_names, shard_number
from edge.supervisor import LONGEST_PAUSE_SECS, pause_secs


@pytest.fixture
def config(config_path: Any, registry: Any) -> GatewayConfig:
    limit = {"events_per_sec": 500, "burst_events": 5}
    keys = [
        {"id": "web", "key": "test-key-0123456789", "rate_limit": limit},
        {"id": "free", "key": "another-key-01234"},
    ]
    path = config_path(
        server={"workers": 4, "limits": {"connections": 1001}},
        auth={"mode": "keys", "keys": keys},
        pipeline=[{"type": "received_at"}],
    )
    return load(path, registry, {})


def test_ingest_process_has_its_share_of_connections_and_quotas(config: GatewayConfig) -> None:
    _, first, *_ = roles(4)
    mine = first.of(config)
    assert mine.server.limits.connections == 251
    [web, free] = mine.auth.keys
    assert web.rate_limit is not None
    assert (web.rate_limit.events_per_sec, web.rate_limit.burst_events) == (125, 1)
    assert free.rate_limit is None
    # All that is not divided is the same.
    limits = replace(mine.server.limits, connections=1001)
    assert replace(mine, auth=config.auth, server=replace(mine.server, limits=limits)) == config


def test_whoever_delivers_has_the_whole_configuration(config: GatewayConfig) -> None:
    delivery, *_ = roles(4)
    assert delivery.of(config) is config
    assert WHOLE.of(config) is config


def test_components_are_built_where_they_work(config: GatewayConfig) -> None:
    delivery, first, *_ = roles(4)
    assert (len(first.parts(config).pipeline), len(first.parts(config).sinks)) == (1, 0)
    assert (len(delivery.parts(config).pipeline), len(delivery.parts(config).sinks)) == (0, 1)
    assert WHOLE.parts(config) == config


def test_every_process_has_a_shard_and_ingest_processes_a_seam() -> None:
    delivery, first, second = roles(2)
    assert [role.shard for role in (WHOLE, delivery, first, second)] == [SHARD, SHARD, "shard-001", "shard-002"]
    assert [role.name for role in (WHOLE, delivery, first, second)] == ["whole", "delivery", "ingest-1", "ingest-2"]
    assert delivery.followed == {"shard-001": first.seam, "shard-002": second.seam}
    assert delivery.seam is None
    assert not first.followed
    assert Role().seam is None


def test_shards_are_directories_with_a_number(tmp_path: Path) -> None:
    for name in ("shard-002", "shard-000", "shard-1", "shard-001.old", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "shard-003").touch()
    assert shard_names(tmp_path) == ["shard-000", "shard-002"]
    assert shard_names(tmp_path / "missing") == []
    assert [shard_number(shard_name(number)) for number in (0, 7, 64)] == [0, 7, 64]


def test_process_that_dies_young_for_ever_is_started_again_for_ever() -> None:
    assert [pause_secs(failures) for failures in (0, 1, 2, 3)] == [0.0, 0.1, 0.2, 0.4]
    assert {pause_secs(failures) for failures in (10, 1025, 10**6)} == {LONGEST_PAUSE_SECS}
