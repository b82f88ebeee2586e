"""Quotas: a token bucket for each key that has a rate limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from edge.clock import Clock
from edge.config.model import RateLimit

_ROUNDING: Final = 1e-3
"""Events that rounding may cost: whoever waits as long as it was told is not sent away a second time."""


@dataclass(slots=True)
class Bucket:
    """What one key may still send."""

    limit: RateLimit
    events: float
    """How many may come now; below zero after a batch larger than the bucket."""
    filled_at: float


class RateLimiter:
    """Grants events by key. A bucket holds `burst_events`, begins full and fills by `events_per_sec`.

    Keys without a limit are always granted. After a reload, buckets of `previous` whose limit is the same go on as they
    are. A limit that never grants anything is a `ValueError`.
    """

    def __init__(self, rate_limits: Mapping[str, RateLimit], clock: Clock, previous: RateLimiter | None = None) -> None:
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}
        for key_id, limit in rate_limits.items():
            if not (limit.events_per_sec > 0 and limit.burst_events >= 1):
                raise ValueError(f"the rate limit of key {key_id} grants nothing")
            kept = previous.bucket(key_id) if previous is not None else None
            if kept is None or kept.limit != limit:
                kept = Bucket(limit, limit.burst_events, clock.monotonic())
            self._buckets[key_id] = kept

    def bucket(self, key_id: str) -> Bucket | None:
        """Return the bucket of a key, None when it has no limit."""
        return self._buckets.get(key_id)

    def take(self, key_id: str, n_events: int) -> float:
        """Take `n_events` out of the key's bucket and return 0, or take none and return the seconds until it would do.

        A batch larger than the bucket is granted when the bucket is full, and leaves it in debt: it is paid for
        afterwards rather than refused for ever.
        """
        bucket = self._buckets.get(key_id)
        if bucket is None:
            return 0.0
        self._fill(bucket)
        limit = bucket.limit
        missing = min(n_events, limit.burst_events) - bucket.events
        if missing > _ROUNDING:
            return missing / limit.events_per_sec
        bucket.events -= n_events
        return 0.0

    def wait_secs(self, key_id: str) -> float:
        """Return the seconds until one event would be granted, 0 for now. Takes none."""
        bucket = self._buckets.get(key_id)
        if bucket is None:
            return 0.0
        self._fill(bucket)
        missing = 1 - bucket.events
        return missing / bucket.limit.events_per_sec if missing > _ROUNDING else 0.0

    def _fill(self, bucket: Bucket) -> None:
        now = self._clock.monotonic()
        earned = (now - bucket.filled_at) * bucket.limit.events_per_sec
        bucket.events = min(bucket.limit.burst_events, bucket.events + earned)
        bucket.filled_at = now
