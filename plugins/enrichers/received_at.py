"""The enricher `received_at`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC
from typing import Any

import orjson
from voluptuous import Optional

from edge.api import ComponentRegistry, Context, Enricher, hookimpl

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
    once_per_request = True
    options = {
        Optional("field", default="received_at", description="The top-level field that is set."): field_name,
    }

    @hookimpl
    def edge_enrich(self, context: Context) -> Mapping[str, Any] | None:
        moment = context.received_at
        if moment.tzinfo is not UTC:
            moment = moment.astimezone(UTC)
        # Less than half of what `isoformat` takes, and a request of one event has little else to do.
        written = orjson.dumps(moment).decode()
        return {self.options["field"]: f"{written[1:24]}Z" if moment.microsecond else f"{written[1:20]}.000Z"}


@hookimpl
def edge_register_components(registry: ComponentRegistry) -> None:
    """Register the enricher."""
    registry.add(ReceivedAt)
