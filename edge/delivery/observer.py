"""What delivery reports while it works, and to whom: the gateway binds it to its metrics."""

from __future__ import annotations

from typing import Protocol

from edge.outcomes import AttemptResult, SinkOutcome


class DeliveryObserver(Protocol):
    """Counts what happens at the sinks. Called on the event loop, once per batch or per attempt, never per event."""

    def attempt(self, sink: str, result: AttemptResult, duration_secs: float) -> None:
        """One call of the sink's `edge_deliver` ended."""

    def sink_settled(self, sink: str, outcome: SinkOutcome, n_events: int) -> None:
        """The in-memory cursor moved over `n_events` events with this outcome. Never called with 0."""

    def batch(self, sink: str, n_events: int) -> None:
        """A batch was assembled and is about to be handed to the sink for the first time."""


class NullObserver:
    """Reports to nobody."""

    def attempt(self, sink: str, result: AttemptResult, duration_secs: float) -> None:
        """Ignore it."""

    def sink_settled(self, sink: str, outcome: SinkOutcome, n_events: int) -> None:
        """Ignore it."""

    def batch(self, sink: str, n_events: int) -> None:
        """Ignore it."""
