"""Every metric of the gateway, in one table, on a registry that is passed in.

Labels come from closed sets only (route names, statuses, component ids, outcomes, reasons, key ids): nothing that a
client sends ever becomes a label value. Gauges that describe a state are read at scrape time from `sources`.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import tornado
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

import edge
from edge.tallies import SpreadTally, Tally

Kind = Literal["counter", "gauge", "histogram", "scraped"]
Across = Literal["sum", "max", "min"]

LATENCY = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
FAST = (0.000001, 0.000005, 0.00001, 0.00005, 0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1)
DELIVERY = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
EVENTS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000)


@dataclass(frozen=True, slots=True)
class Row:
    """One metric: its name as exposed, kind, meaning, labels. ``scraped`` ones are read when Prometheus asks.

    `across` says what is true of several processes together: the sum of their values, or one of them.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    across: Across = "sum"
    is_shared: bool = False
    """Counted by several threads; the others are counted by one alone, which need not be the event loop's."""

    @property
    def family(self) -> str:
        """The name without what Prometheus appends to counters."""
        return self.name.removesuffix("_total")

    @property
    def is_cumulative(self) -> bool:
        """Whether it only ever grows: a counter or a histogram."""
        return self.kind == "histogram" or self.name.endswith("_total")

    @property
    def exposed_as(self) -> str:
        """The type that Prometheus is told."""
        if self.name.endswith("_total"):
            return "counter"
        return "histogram" if self.kind == "histogram" else "gauge"


TABLE = (
    Row("edge_http_requests_total", "counter", "Answers sent.", ("route", "method", "status")),
    Row(
        "edge_http_request_duration_seconds",
        "histogram",
        "From the request's headers to its answer.",
        ("route",),
        LATENCY,
    ),
    Row("edge_http_request_bytes_total", "counter", "Body bytes read from clients, as they came over the wire."),
    Row("edge_http_connections", "scraped", "Connections open on the ingest listeners."),
    Row("edge_events_received_total", "counter", "Events that arrived and were looked at, by key id.", ("key",)),
    Row("edge_events_outcome_total", "counter", "What became of events at the door.", ("outcome", "reason")),
    Row(
        "edge_component_duration_seconds",
        "histogram",
        "Time in one call of an enricher or a filter (a sample of all calls).",
        ("component", "kind"),
        FAST,
    ),
    Row(
        "edge_component_errors_total",
        "counter",
        "Calls of an enricher or a filter that failed.",
        ("component", "kind"),
    ),
    Row(
        "edge_spool_commit_duration_seconds",
        "histogram",
        "One group commit: write and fdatasync.",
        (),
        LATENCY,
    ),
    Row("edge_spool_commit_events", "histogram", "Events made durable by one group commit.", (), EVENTS),
    Row("edge_spool_bytes", "scraped", "Disk space the spool's segments take, preallocated space included."),
    Row("edge_spool_capacity_bytes", "scraped", "The most the spool may take: `spool.max_bytes`, or its default."),
    Row("edge_spool_segments", "scraped", "Segments on disk."),
    Row("edge_dedup_ids", "scraped", "Ids in memory that repeats are found by; none without `dedup.enabled`."),
    Row(
        "edge_spool_corrupt_bytes_total",
        "counter",
        "Bytes whose checksum failed; they are in quarantine.",
        is_shared=True,
    ),
    Row(
        "edge_spool_lost_frames_total",
        "counter",
        "Frames that were missing or unreadable in the spool.",
        is_shared=True,
    ),
    Row(
        "edge_spool_behind_cursor_events",
        "scraped",
        "Events by which the spool, when it was opened, ended before a sink's cursor: it lost its end.",
    ),
    Row("edge_sink_events_total", "counter", "What became of accepted events at a sink.", ("sink", "outcome")),
    Row("edge_sink_attempts_total", "counter", "Attempts to deliver a batch.", ("sink", "result")),
    Row("edge_sink_delivery_duration_seconds", "histogram", "One attempt to deliver a batch.", ("sink",), DELIVERY),
    Row("edge_sink_batch_events", "histogram", "Events in a batch handed to a sink.", ("sink",), EVENTS),
    Row("edge_sink_pending_events", "scraped", "Accepted events a sink has not settled yet.", ("sink",)),
    Row(
        "edge_sink_oldest_pending_age_seconds",
        "scraped",
        "Age of the oldest event a sink has not settled; 0 when there is none.",
        ("sink",),
        across="max",
    ),
    Row(
        "edge_sink_circuit_state",
        "scraped",
        "0 closed (delivering), 1 half-open (probing), 2 open.",
        ("sink",),
        across="max",
    ),
    Row("edge_dead_letters", "scraped", "Dead letters kept for a sink, neither replayed nor dropped.", ("sink",)),
    Row(
        "edge_dead_letters_evicted",
        "scraped",
        "Dead letters that were dropped because their store was full, since the sink was started.",
        ("sink",),
    ),
    Row(
        "edge_events_unaccounted",
        "scraped",
        "Events whose outcome is missing, at the door or at any sink. Must be 0: anything else is a bug.",
    ),
    Row("edge_key_last_used_timestamp_seconds", "scraped", "When a key was last accepted.", ("key",), across="max"),
    Row(
        "edge_event_loop_lag_seconds",
        "histogram",
        "How late the event loop runs its timers.",
        (),
        LATENCY,
    ),
    Row(
        "edge_config_last_reload_successful",
        "gauge",
        "1 when the last (re)load of the configuration succeeded.",
        across="min",
    ),
    Row(
        "edge_config_last_reload_success_timestamp_seconds",
        "gauge",
        "When the configuration in use was loaded.",
        across="min",
    ),
    Row(
        "edge_process_up",
        "scraped",
        "1 when a process of the gateway answers; of one that does not, only what it had counted is in this scrape.",
        ("process",),
        across="max",
    ),
    Row(
        "edge_process_pid",
        "scraped",
        "The process ids of a gateway with server.workers above 1; 0 for one that is down.",
        ("process",),
        across="max",
    ),
    Row(
        "edge_process_restarts_total",
        "scraped",
        "Processes of the gateway that ended, in order or not, and were started again.",
        ("role",),
        across="max",
    ),
    Row(
        "edge_build_info",
        "gauge",
        "Always 1; the versions are in the labels.",
        ("version", "python", "tornado"),
        across="max",
    ),
)

Samples = Iterable[tuple[tuple[str, ...], float]]
"""Label values (in the order of the row's labels) and the value."""


class Metrics:
    """The metrics of one gateway. Attributes are the table's names without ``edge_`` and ``_total``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.sources: dict[str, Callable[[], Samples]] = {}
        """Where scraped gauges come from: full metric name -> a function called at each scrape."""
        gauges = {row.name: Gauge(row.name, row.help, row.labels, registry=registry) for row in _rows("gauge")}
        counters = {row.name: _counter(row, registry) for row in _rows("counter")}
        histograms = {row.name: _histogram(row, registry) for row in _rows("histogram")}
        self.http_requests = counters["edge_http_requests_total"]
        self.http_request_duration_seconds = histograms["edge_http_request_duration_seconds"]
        self.http_request_bytes = counters["edge_http_request_bytes_total"].labels()
        self.events_received = counters["edge_events_received_total"]
        self.events_outcome = counters["edge_events_outcome_total"]
        self.component_duration_seconds = histograms["edge_component_duration_seconds"]
        self.component_errors = counters["edge_component_errors_total"]
        self.spool_commit_duration_seconds = histograms["edge_spool_commit_duration_seconds"].labels()
        self.spool_commit_events = histograms["edge_spool_commit_events"].labels()
        self.spool_corrupt_bytes = counters["edge_spool_corrupt_bytes_total"]
        self.spool_lost_frames = counters["edge_spool_lost_frames_total"]
        self.sink_events = counters["edge_sink_events_total"]
        self.sink_attempts = counters["edge_sink_attempts_total"]
        self.sink_delivery_duration_seconds = histograms["edge_sink_delivery_duration_seconds"]
        self.sink_batch_events = histograms["edge_sink_batch_events"]
        self.event_loop_lag_seconds = histograms["edge_event_loop_lag_seconds"].labels()
        self.config_last_reload_successful = gauges["edge_config_last_reload_successful"]
        self.config_last_reload_success_timestamp_seconds = gauges["edge_config_last_reload_success_timestamp_seconds"]
        gauges["edge_build_info"].labels(edge.__version__, platform.python_version(), tornado.version).set(1)
        registry.register(_Scraped(self.sources))


def _counter(row: Row, registry: CollectorRegistry) -> Any:
    if row.is_shared:
        return Counter(row.name, row.help, row.labels, registry=registry)
    return Tally(row.name, row.help, row.labels, registry)


def _histogram(row: Row, registry: CollectorRegistry) -> SpreadTally:
    return SpreadTally(row.name, row.help, row.labels, registry, row.buckets)


class _Scraped(Collector):
    """Reads the scraped metrics from their sources; a source that is not there yet gives the name without samples."""

    def __init__(self, sources: dict[str, Callable[[], Samples]]) -> None:
        self._sources = sources

    def describe(self) -> Iterator[Metric]:
        """Yield the names, so that a scrape that asks for some of them by name gets them."""
        for row in _rows("scraped"):
            yield _family(row)

    def collect(self) -> Iterator[Metric]:
        """Yield one family for each scraped row."""
        for row in _rows("scraped"):
            family = _family(row)
            source = self._sources.get(row.name)
            for labels, value in source() if source is not None else ():
                family.add_metric(labels, value)
            yield family


def _family(row: Row) -> GaugeMetricFamily | CounterMetricFamily:
    kind = CounterMetricFamily if row.is_cumulative else GaugeMetricFamily
    return kind(row.family, row.help, labels=row.labels)


def _rows(kind: Kind) -> list[Row]:
    return [row for row in TABLE if row.kind == kind]
