"""The enricher `static_fields`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from voluptuous import All, Length, Required

from edge.api import ComponentRegistry, Enricher, hookimpl

from ..support.checks import field_name, json_value


class StaticFields(Enricher):
    """Set fields to values that stand in the configuration.

    For what is the same for every event of this gateway: the site, the environment, the name of the machine. Values are
    any JSON value; what the sender wrote into the fields is replaced. It never fails.

    Example:

    ```yaml
    pipeline:
      - type: static_fields
        fields:
          environment: production
          gateway: {region: eu-central, tier: 1}
    ```
    """

    type = "static_fields"
    once_per_request = True
    options = {
        Required("fields", description="Top-level fields and the values they are set to."): All(
            {field_name: json_value}, Length(min=1, msg="must be at least one field")
        ),
    }

    def __init__(self, id: str, options: Mapping[str, Any]) -> None:
        super().__init__(id, options)
        self._encoded = orjson.dumps(options["fields"])

    @hookimpl
    def edge_enrich(self) -> Mapping[str, Any] | None:
        # Decoded anew for each event: a nested value that events shared could be changed through one of them.
        fields: dict[str, Any] = orjson.loads(self._encoded)
        return fields


@hookimpl
def edge_register_components(registry: ComponentRegistry) -> None:
    """Register the enricher."""
    registry.add(StaticFields)
