"""What delivery reports while it works, and to whom: the gateway binds it to its metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import structlog

from edge.outcomes import AttemptResult, SinkOutcome

log = structlog.get_logger(__name__)


class DeliveryObserver(Protocol):
    """Counts what happens at the sinks. Called on the event loop, once per batch or per attempt, never per event."""

    def attempt(self, sink: str, result: AttemptResult, duration_secs: float) -> None:
        """One call of the sink's `edge_deliver` ended."""

    def sink_settled(self, sink: str, outcome: SinkOutcome, n_events: int) -> None:
        """The in-memory cursor moved over `n_events` events with this outcome. Never called with 0."""

    def batch(self, sink: str, n_events: int) -> None:
        """A batch was assembled and is about to be handed to the sink for the first time."""


class GuardedObserver:
    """Passes everything on to another observer; what that one raises is logged once and reaches no worker.

    An error between a target's answer and the events' outcome would have the batch delivered again, for ever.
    """

    def __init__(self, observer: DeliveryObserver) -> None:
        self._observer = observer
        self._failed = False

    def attempt(self, sink: str, result: AttemptResult, duration_secs: float) -> None:
        """Pass it on."""
        self._guard(lambda: self._observer.attempt(sink, result, duration_secs), sink)

    def sink_settled(self, sink: str, outcome: SinkOutcome, n_events: int) -> None:
        """Pass it on."""
        self._guard(lambda: self._observer.sink_settled(sink, outcome, n_events), sink)

    def batch(self, sink: str, n_events: int) -> None:
        """Pass it on."""
        self._guard(lambda: self._observer.batch(sink, n_events), sink)

    def _guard(self, report: Callable[[], None], sink: str) -> None:
        try:
            report()
        except Exception as error:
            if not self._failed:
                self._failed = True
                log.error("what a sink does cannot be counted: its metrics are wrong", sink=sink, exc_info=error)
