"""The enricher `received_at`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from voluptuous import Optional

from edge.api import ComponentRegistry, Context, Enricher, Event, hookimpl

from ..support.checks import field_name


class ReceivedAt(Enricher):
    """Set the time at which the gateway received the event.

    The time is the gateway's own clock when the request's headers arrived: ISO 8601, UTC, with milliseconds, for
    example ``2026-11-23T20:17:31.042Z``. All events of one request have the same. What the sender wrote into the field
    is replaced. It never fails.

    Example:

    ```yaml
    pipeline:
      - type: received_at
        field: gateway_time
    ```
    """

    type = "received_at"
    options = {
        Optional("field", default="received_at", description="The top-level field that is set."): field_name,
    }

    def __init__(self, id: str, options: Mapping[str, Any]) -> None:
        super().__init__(id, options)
        self._received_at: datetime | None = None
        self._changes: Mapping[str, Any] = {}

    @hookimpl
    def edge_enrich(self, event: Event, context: Context) -> Mapping[str, Any] | None:
        # The events of one request come one after the other: writing their time once is a tenth of the work.
        if context.received_at is not self._received_at:
            self._received_at = context.received_at
            stamp = context.received_at.astimezone(UTC).isoformat(timespec="milliseconds")
            self._changes = {self.options["field"]: stamp.removesuffix("+00:00") + "Z"}
        return self._changes


@hookimpl
def edge_register_components(registry: ComponentRegistry) -> None:
    """Register the enricher."""
    registry.add(ReceivedAt)
