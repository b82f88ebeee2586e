"""Keeps the books of one gateway in its metrics: what the rooms tell on one side, Prometheus on the other."""

from __future__ import annotations

from time import time

import structlog

from edge.binding import Bound, Step
from edge.door import BUSY_CODES
from edge.metrics import Metrics
from edge.outcomes import INVALID_REASONS, AttemptResult, Outcome, SinkOutcome
from edge.pipeline import COMPONENT_FAILED

log = structlog.get_logger(__name__)

DOOR_REASONS: dict[Outcome, tuple[str, ...]] = {
    Outcome.ACCEPTED: ("",),
    Outcome.DUPLICATE: ("",),
    Outcome.INVALID: INVALID_REASONS,
    Outcome.REJECTED: (*(code for _, code in BUSY_CODES), "limit.rate", COMPONENT_FAILED),
}

SLOW_STEP_SECS = 0.05
"""A component that takes longer holds up every sender; said once per component."""


class Books:
    """Observer of door, pipeline and spool."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._last_used: dict[str, float] = {}
        """When a key was last accepted, by its id."""
        metrics.sources["edge_key_last_used_timestamp_seconds"] = lambda: [
            ((key_id,), at) for key_id, at in self._last_used.items()
        ]
        self._slow: set[str] = set()
        self._failing: set[tuple[str, str]] = set()
        self.delivery = DeliveryBooks(metrics)

    def begin(self, bound: Bound) -> None:
        """Let the series of all closed label sets exist, at 0: an alert on an increase must see the first incident."""
        metrics = self._metrics
        for outcome, reasons in DOOR_REASONS.items():
            for reason in reasons:
                metrics.events_outcome.labels(outcome.value, reason)
        for step in bound.steps:
            metrics.component_errors.labels(step.id, step.kind)
            for reason in step.reasons.values():
                metrics.events_outcome.labels(Outcome.FILTERED.value, reason)
        for sink, _ in bound.sinks:
            for sink_outcome in SinkOutcome:
                metrics.sink_events.labels(sink.id, sink_outcome.value)
            for result in AttemptResult:
                metrics.sink_attempts.labels(sink.id, result.value)

    def received(self, key_id: str, n_events: int) -> None:
        """The door: events arrived."""
        self._metrics.events_received.add((key_id,), n_events)
        self._last_used[key_id] = time()

    def settled(self, outcome: Outcome, reason: str, n_events: int) -> None:
        """The door: events have an outcome."""
        # `.value` is two calls of enum's own, for every request.
        self._metrics.events_outcome.add((outcome._value_, reason), n_events)

    def component_timed(self, step: Step, duration_secs: float) -> None:
        """The pipeline: one call took so long."""
        self._metrics.component_duration_seconds.labels(step.id, step.kind).observe(duration_secs)
        if duration_secs > SLOW_STEP_SECS and step.id not in self._slow:
            self._slow.add(step.id)
            log.warning(
                "a component is slow: every sender waits for it", component=step.id, duration_secs=duration_secs
            )

    def component_failed(self, step: Step, error: BaseException) -> None:
        """The pipeline: one call failed. Counted each time, logged once for each kind of error."""
        self._metrics.component_errors.labels(step.id, step.kind).inc()
        key = (step.id, type(error).__name__)
        if key not in self._failing:
            self._failing.add(key)
            log.warning(
                "a component fails; further errors of this kind are only counted",
                component=step.id,
                on_error=step.on_error,
                exc_info=error,
            )

    def commit(self, duration_secs: float, n_events: int) -> None:
        """The spool: one group commit. Called in the writer's thread."""
        self._metrics.spool_commit_duration_seconds.observe(duration_secs)
        self._metrics.spool_commit_events.observe(n_events)

    def corrupt(self, n_bytes: int) -> None:
        """The spool: bytes failed their checksum. May be called in any thread."""
        self._metrics.spool_corrupt_bytes.inc(n_bytes)

    def lost(self, n_frames: int) -> None:
        """The spool: frames are missing. May be called in any thread."""
        self._metrics.spool_lost_frames.inc(n_frames)

    def loop_lag(self, lag_secs: float) -> None:
        """The event loop ran a timer so late."""
        self._metrics.event_loop_lag_seconds.observe(lag_secs)

    def loaded(self, at: float) -> None:
        """A configuration was loaded at this time (seconds since the epoch)."""
        self._metrics.config_last_reload_successful.set(1)
        self._metrics.config_last_reload_success_timestamp_seconds.set(at)

    def reload_failed(self) -> None:
        """A reload failed; the old configuration goes on."""
        self._metrics.config_last_reload_successful.set(0)


class DeliveryBooks:
    """Observer of the sinks' workers."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def attempt(self, sink: str, result: AttemptResult, duration_secs: float) -> None:
        """Delivery: one attempt ended."""
        self._metrics.sink_attempts.labels(sink, result.value).inc()
        self._metrics.sink_delivery_duration_seconds.labels(sink).observe(duration_secs)

    def sink_settled(self, sink: str, outcome: SinkOutcome, n_events: int) -> None:
        """Delivery: events have their outcome at a sink."""
        self._metrics.sink_events.labels(sink, outcome.value).inc(n_events)

    def batch(self, sink: str, n_events: int) -> None:
        """Delivery: a batch is handed to a sink."""
        self._metrics.sink_batch_events.labels(sink).observe(n_events)
