"""Metrics of several processes as one."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from edge.board import Snapshot
from edge.metrics import TABLE, Metrics
from edge.scrape import Samples, cumulative, pack, registry_of, take, together, unpack


def metrics(n_events: int, reloaded_at: float, used_at: float) -> Metrics:
    made = Metrics(CollectorRegistry())
    made.events_received.labels("web").inc(n_events)
    made.spool_commit_events.observe(n_events)
    made.config_last_reload_success_timestamp_seconds.set(reloaded_at)
    made.sources["edge_key_last_used_timestamp_seconds"] = lambda: [(("web",), used_at)]
    made.sources["edge_spool_bytes"] = lambda: [((), 10.0)]
    made.sources["edge_sink_circuit_state"] = lambda: [(("crm",), float(n_events == 3))]
    return made


def value(samples: Samples, name: str, **labels: str) -> float:
    [found] = [
        value for (_, sample, of), value in samples.items() if sample == name and labels.items() <= dict(of).items()
    ]
    return found


def test_sums_are_sums_and_the_rest_is_what_the_table_says() -> None:
    parts = [take(metrics(3, 50.0, 70.0).registry), take(metrics(40, 60.0, 65.0).registry)]
    total = together(parts)
    assert value(total, "edge_events_received_total", key="web") == 43
    assert value(total, "edge_spool_commit_events_count") == 2
    assert value(total, "edge_spool_commit_events_sum") == 43
    assert value(total, "edge_spool_commit_events_bucket", le="5.0") == 1
    assert value(total, "edge_spool_commit_events_bucket", le="+Inf") == 2
    assert value(total, "edge_spool_bytes") == 20
    assert value(total, "edge_config_last_reload_success_timestamp_seconds") == 50
    assert value(total, "edge_key_last_used_timestamp_seconds") == 70
    assert value(total, "edge_sink_circuit_state", sink="crm") == 1
    assert value(total, "edge_build_info") == 1


def test_samples_come_back_from_bytes_as_they_were() -> None:
    samples = take(metrics(3, 50.0, 70.0).registry)
    assert unpack(pack(samples)) == samples
    assert unpack(b"") == {}


def test_only_what_grows_outlives_a_process() -> None:
    left = cumulative(take(metrics(3, 50.0, 70.0).registry))
    assert value(left, "edge_events_received_total") == 3
    assert not [key for key in left if key[0] in ("edge_spool_bytes", "edge_build_info", "edge_sink_circuit_state")]


def test_scrape_of_one_process_is_what_its_own_registry_says() -> None:
    registry = metrics(3, 50.0, 70.0).registry
    before = generate_latest(registry).decode().splitlines()
    after = generate_latest(registry_of(take(registry))).decode().splitlines()
    assert sorted(before) == sorted(after)


def test_scrape_knows_every_metric_by_name() -> None:
    registry = registry_of(together([take(metrics(3, 50.0, 70.0).registry)]))
    text = generate_latest(registry.restricted_registry(["edge_spool_bytes"])).decode()
    assert [line for line in text.splitlines() if not line.startswith("#")] == ["edge_spool_bytes 10.0"]
    assert {family.name for family in registry.collect()} == {row.family for row in TABLE}


def test_snapshot_keeps_the_last_bytes_that_were_written_whole() -> None:
    snapshot = Snapshot()
    assert snapshot.read() == b""
    for text in (b"one", b"a longer one", b"3"):
        assert snapshot.write(text)
        assert snapshot.read() == text
    assert not snapshot.write(bytes(8 << 20))
    assert snapshot.read() == b"3"
