"""The configuration as the gateway uses it: frozen, complete, checked. `edge.config` makes it from YAML.

Durations are seconds, sizes bytes, as the names say. `docs/reference/options.md` has every option with its meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edge.conditions import Condition as Condition  # noqa: PLC0414 - part of the model, exported from here as well


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request, connection or event may use; past a limit the contract's answer is given."""

    body_bytes: int
    decompressed_bytes: int
    decompressed_ratio: int
    event_bytes: int
    batch_events: int
    depth: int
    header_bytes: int
    connections: int
    inflight_bytes: int
    """Bodies being read or handled at one moment, all connections together; past it 503 `busy.backpressure`."""
    idle_secs: float
    body_bytes_per_sec: int
    """A body that arrives slower than this is cut off."""


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificate and key of the ingest listeners, as PEM files."""

    cert_file: Path
    key_file: Path


@dataclass(frozen=True, slots=True)
class Server:
    """The ingest listeners."""

    listen: tuple[str, ...]
    """`host:port`, `[v6]:port` or `unix:/path`."""
    http: Literal["tornado"]
    workers: int
    tls: Tls | None
    trusted_proxies: tuple[str, ...]
    """Networks in CIDR notation, checked."""
    pre_stop_secs: float
    drain_timeout_secs: float
    limits: Limits
    cors_allow_origins: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Admin:
    """The admin listeners."""

    listen: tuple[str, ...]
    token: str
    """Empty: no token is asked for (loopback and unix sockets only)."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """The quota of one key."""

    events_per_sec: float
    burst_events: int


@dataclass(frozen=True, slots=True)
class Key:
    """One API key."""

    id: str
    key_sha256: str
    """Lower-case hex SHA-256 of the key; the key itself is not kept."""
    browser: bool
    allow_origins: tuple[str, ...]
    scopes: frozenset[str]
    """Out of {"ingest", "batch"}: the routes this key may post to."""
    rate_limit: RateLimit | None


@dataclass(frozen=True, slots=True)
class Auth:
    """Who may post events."""

    mode: Literal["keys", "none"]
    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class EventSchema:
    """What a site decides about the event schema."""

    unknown_fields: Literal["reject", "keep", "drop"]
    required: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Spool:
    """Where accepted events lie until every sink has had them."""

    path: Path
    durability: Literal["disk", "os", "memory"]
    segment_bytes: int
    max_bytes: int | None
    """None: 10 GiB, or half of the volume; decided where the spool is opened."""
    retain_secs: float


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """Where events lie that were given up on; one log for each sink."""

    path: Path
    segment_bytes: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Dedup:
    """How long stored ids are remembered, to find events that are sent again: whichever of the two ends first."""

    enabled: bool
    window_secs: float
    window_events: int


@dataclass(frozen=True, slots=True)
class ComponentConfig:
    """One enricher or filter of the pipeline, or the part that every component has."""

    kind: Literal["enricher", "filter", "sink"]
    type: str
    id: str
    options: Mapping[str, Any]
    """Validated by the component's own schema, defaults filled in."""
    when: Condition | None
    when_source: Any
    """The `when:` as it was written, for `edge explain` and `edge check --print`."""
    on_error: Literal["skip", "reject"]
    where: str
    """`file:line` of its definition."""


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """When a sink's batch is full: whichever of the three comes first."""

    max_events: int
    max_bytes: int
    max_age_secs: float


@dataclass(frozen=True, slots=True)
class RetryOptions:
    """How long a sink waits between attempts."""

    initial_secs: float
    max_secs: float
    give_up_secs: float | None
    """None: never; the batch is retried until the target takes it or refuses it for good."""


@dataclass(frozen=True, slots=True)
class SinkConfig:
    """One sink: its component and what the gateway does around it."""

    component: ComponentConfig
    batch: BatchOptions
    retry: RetryOptions
    timeout_secs: float
    dead_letter: bool
    """False: events given up on are counted and not kept."""
    required: bool

    @property
    def id(self) -> str:
        """The operator's name for the sink."""
        return self.component.id


@dataclass(frozen=True, slots=True)
class Log:
    """The gateway's own log."""

    level: Literal["debug", "info", "warning", "error"]
    format: Literal["auto", "json", "text"]


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """The whole configuration."""

    source: Path
    server: Server
    admin: Admin
    auth: Auth
    schema: EventSchema
    spool: Spool
    dead_letters: DeadLetters
    dedup: Dedup
    pipeline: tuple[ComponentConfig, ...]
    sinks: tuple[SinkConfig, ...]
    log: Log
    warnings: tuple[str, ...] = ()
    """Sentences for the operator, each with ``file:line``: what works but should not stay as it is."""
