"""The circuit breaker of a sink: after a row of failures it lets one probe through per interval and nothing else."""

from __future__ import annotations

import random
from enum import IntEnum

from edge.config.model import RetryOptions

FAILURES_TO_OPEN = 5
PROBE_SECS = 5.0
"""The shortest time between two probes, unless the sink's own longest wait is shorter."""
PROBE_JITTER = 0.1
"""Share of the shortest time that is added at random: gateways that lost a target together come back one by one."""


class CircuitState(IntEnum):
    """As exported in ``edge_sink_circuit_state``."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class CircuitBreaker:
    """Counts attempts of one sink and says when the next one may start. Times are seconds of the monotonic clock.

    Opens after `FAILURES_TO_OPEN` failed attempts in a row, or at once when the failure asks for it. While open, one
    probe may start per interval; it makes the circuit half-open until its end closes or opens it again. The interval is
    the sink's next wait, which grows up to `max_secs`, and never shorter than `PROBE_SECS`: `max_secs` decides within
    what time a target that is back is noticed.
    """

    def __init__(self, rng: random.Random, options: RetryOptions, failures: int = FAILURES_TO_OPEN) -> None:
        self.state = CircuitState.CLOSED
        self.retry_at = 0.0
        """When the next probe may start; only of meaning while the circuit is open."""
        self._rng = rng
        self._max_secs = options.max_secs
        self._threshold = failures
        self._failures = 0

    def wait_secs(self, now: float) -> float:
        """Return how long no attempt may start; 0 when one may."""
        return max(0.0, self.retry_at - now) if self.state is CircuitState.OPEN else 0.0

    def begin(self) -> None:
        """Note that an attempt starts; an open circuit is half-open until it ends."""
        if self.state is CircuitState.OPEN:
            self.state = CircuitState.HALF_OPEN

    def succeed(self) -> bool:
        """Note that the target answered; return whether that closed the circuit."""
        self._failures = 0
        closed = self.state is not CircuitState.CLOSED
        self.state = CircuitState.CLOSED
        return closed

    def fail(self, now: float, wait_secs: float, *, open_circuit: bool = False) -> bool:
        """Note a failed attempt; return whether the circuit opened (a failed probe keeps it open and returns False).

        `wait_secs` is what the backoff says, the target's own wish included.
        """
        self._failures += 1
        was_closed = self.state is CircuitState.CLOSED
        if was_closed and not open_circuit and self._failures < self._threshold:
            return False
        self.state = CircuitState.OPEN
        shortest = min(self._max_secs, PROBE_SECS * (1.0 + self._rng.uniform(0.0, PROBE_JITTER)))
        self.retry_at = now + max(shortest, wait_secs)
        return was_closed

    def abandon(self) -> None:
        """Note that an attempt was cancelled before the target said anything."""
        if self.state is CircuitState.HALF_OPEN:
            self.state = CircuitState.OPEN
