"""What the handlers of one process share: the plan in use, the books, and who is being served."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Protocol

from edge.config.model import GatewayConfig, Limits
from edge.gateway import Gateway
from edge.http.auth import Authenticator
from edge.http.large import LargeBodies
from edge.http.origins import OriginPolicy
from edge.http.proxies import TrustedProxies
from edge.http.ratelimit import RateLimiter
from edge.tallies import Count, Spread


class Served(Protocol):
    """A request being read or answered."""

    body_clock: Any

    def cut_off(self) -> None:
        """Answer it, although its body has not arrived."""


class Stream(Protocol):
    """A connection."""

    def sweep(self, now: float) -> None:
        """Close it when its peer neither says nor takes anything for too long; `now` is monotonic."""


@dataclass(frozen=True, slots=True)
class HttpPlan:
    """What requests are judged by before their events are; replaced whole by a reload."""

    limits: Limits
    authenticator: Authenticator
    origins: OriginPolicy
    cors_enabled: bool
    proxies: TrustedProxies
    rate_limiter: RateLimiter


def http_plan(config: GatewayConfig, gateway: Gateway, previous: HttpPlan | None = None) -> HttpPlan:
    """Return the plan of a configuration. Quotas that are the same as in `previous` go on where they are."""
    origins = [*config.server.cors_allow_origins]
    for key in config.auth.keys:
        origins.extend(key.allow_origins)
    limits = {key.id: key.rate_limit for key in config.auth.keys if key.rate_limit is not None}
    return HttpPlan(
        limits=config.server.limits,
        authenticator=Authenticator(config.auth),
        origins=OriginPolicy(origins),
        cors_enabled=bool(origins),
        proxies=TrustedProxies(config.server.trusted_proxies),
        rate_limiter=RateLimiter(limits, gateway.clock, previous.rate_limiter if previous is not None else None),
    )


@dataclass(slots=True)
class Site:
    """The shared state behind the ingest routes."""

    gateway: Gateway
    plan: HttpPlan
    tls: bool = False
    closing: bool = False
    """Draining has begun: what is not yet admitted is answered 503 `busy.draining`."""
    body_bytes: int = 0
    """Bytes of bodies held at this moment, all requests together; what was decompressed counts in its full length."""
    large: LargeBodies = field(default_factory=LargeBodies)
    in_flight: set[Any] = field(default_factory=set)
    streams: Collection[Stream] = ()
    """The connections of the ingest listeners; the server puts its own here."""
    _series: dict[tuple[str, str, int], tuple[Count, Spread]] = field(default_factory=dict)

    def observe(self, route: str, method: str, status: int, duration_secs: float) -> None:
        """Count one answer."""
        key = (route, method, status)
        series = self._series.get(key)
        if series is None:
            metrics = self.gateway.metrics
            series = self._series[key] = (
                metrics.http_requests.labels(route, method, str(status)),
                metrics.http_request_duration_seconds.labels(route),
            )
        answered, durations = series
        answered.inc()
        durations.observe(duration_secs)

    def count_body(self, n_bytes: int) -> None:
        """Count the bytes of a body."""
        self.gateway.metrics.http_request_bytes.inc(n_bytes)

    def count_refused(self, status: int) -> None:
        """Count an answer that no handler gave: to what is no HTTP, or to a connection too many."""
        self.gateway.metrics.http_requests.labels("other", "other", str(status)).inc()

    def sweep(self) -> None:
        """Cut off bodies that arrive too slowly, and peers that do not take their answers. Called every second."""
        now = monotonic()
        slow: Sequence[Served] = [
            handler
            for handler in self.in_flight
            if handler.body_clock is not None and handler.body_clock.too_slow(now, self.plan.limits.body_bytes_per_sec)
        ]
        for handler in slow:
            handler.cut_off()
        for stream in [*self.streams]:
            stream.sweep(now)
