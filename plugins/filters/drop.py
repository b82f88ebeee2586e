"""The filter `drop`."""

from __future__ import annotations

from edge.api import ComponentRegistry, Context, Event, Filter, hookimpl


class Drop(Filter):
    """Drop every event that its `when:` selects.

    The condition is the common option `when:` and is mandatory here: without it all events would be dropped. The sender
    gets a success; the event is counted as filtered with the reason ``matched`` and is not stored. It never fails.

    Example:

    ```yaml
    pipeline:
      - type: drop
        id: drop_heartbeats
        when: {event_type: heartbeat}
    ```
    """

    type = "drop"
    reasons = ("matched",)
    when_required = True

    @hookimpl
    def edge_filter(self, event: Event, context: Context) -> str | None:
        return "matched"


@hookimpl
def edge_register_components(registry: ComponentRegistry) -> None:
    """Register the filter."""
    registry.add(Drop)
