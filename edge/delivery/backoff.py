"""How long to wait before the next attempt: exponential with full jitter, never shorter than the target asked for."""

from __future__ import annotations

import random

from edge.config.model import RetryOptions

MAX_RETRY_AFTER_SECS = 86_400.0
"""A target that asks for more than a day is taken to mean a day: a garbled header must not silence a sink for ever."""


class Backoff:
    """The waits between the attempts of one sink.

    The n-th wait in a row is uniform between 0 and ``initial_secs * 2 ** (n - 1)``, at most ``max_secs``. Full jitter
    keeps many gateways from coming back to a recovering target in the same instant.
    """

    def __init__(self, options: RetryOptions, rng: random.Random) -> None:
        self._options = options
        self._rng = rng
        self._failures = 0

    @property
    def failures(self) -> int:
        """Failures in a row."""
        return self._failures

    def next_secs(self, retry_after: object = None) -> float:
        """Count one more failure and return the seconds to wait; at least `retry_after` where that is a sane number."""
        # 2 ** 64 times any sensible `initial_secs` is past any `max_secs`; larger powers overflow.
        ceiling = min(self._options.max_secs, self._options.initial_secs * 2.0 ** min(self._failures, 64))
        self._failures += 1
        return max(self._rng.uniform(0.0, ceiling), sane_retry_after(retry_after))

    def reset(self) -> None:
        """Start over after a success."""
        self._failures = 0


def sane_retry_after(value: object) -> float:
    """Return a plugin's `retry_after` in seconds within [0, a day]; 0 for None and for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    # NaN is not larger than anything either.
    return float(min(value, MAX_RETRY_AFTER_SECS)) if value > 0 else 0.0
