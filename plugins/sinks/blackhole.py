"""The sink `blackhole`."""

from __future__ import annotations

from edge.api import Batch, ComponentRegistry, Sink, hookimpl


class Blackhole(Sink):
    """Take every batch and do nothing with it.

    For measuring the gateway without a target, and for trying a configuration. Every event counts as delivered and is
    gone. It never fails.

    Example:

    ```yaml
    sinks:
      nowhere:
        type: blackhole
    ```
    """

    type = "blackhole"

    @hookimpl
    async def edge_deliver(self, batch: Batch) -> None:
        return


@hookimpl
def edge_register_components(registry: ComponentRegistry) -> None:
    """Register the sink."""
    registry.add(Blackhole)
