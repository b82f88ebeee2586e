"""The enricher `request_headers`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from voluptuous import All, Invalid, Length, Optional, Required

from edge.api import ComponentRegistry, Context, Enricher, hookimpl

from ..support.checks import field_name, header_name, takes

REFUSED = frozenset({"authorization", "cookie", "proxy-authorization", "x-api-key"})
"""Headers that carry credentials; they never become part of an event."""


@takes("name of an HTTP header")
def _harmless_header(value: object) -> str:
    """Check a header's name and refuse those that carry credentials."""
    name = header_name(value)
    if name in REFUSED:
        raise Invalid(f"{name} carries credentials and is never stored; leave it out")
    return name


class RequestHeaders(Enricher):
    """Set a field to some of the request's headers.

    The field is an object with the header names in lower case; a header that the request does not have is left out, and
    without any the event stays as it is. What the sender wrote into the field is replaced. It never fails.

    Headers that carry credentials (`authorization`, `cookie`, `proxy-authorization`, `x-api-key`) are refused when the
    configuration is loaded.

    Example:

    ```yaml
    pipeline:
      - type: request_headers
        headers: [User-Agent, Accept-Language]
    ```
    """

    type = "request_headers"
    once_per_request = True
    options = {
        Required("headers", description="Names of the headers, in any case."): All(
            [_harmless_header], Length(min=1, msg="must be at least one header")
        ),
        Optional("field", default="request_headers", description="The top-level field that is set."): field_name,
    }

    def wanted_headers(self) -> Sequence[str]:
        names: list[str] = self.options["headers"]
        return names

    @hookimpl
    def edge_enrich(self, context: Context) -> Mapping[str, Any] | None:
        headers = context.headers
        present = {name: headers[name] for name in self.options["headers"] if name in headers}
        return {self.options["field"]: present} if present else None


@hookimpl
def edge_register_components(registry: ComponentRegistry) -> None:
    """Register the enricher."""
    registry.add(RequestHeaders)
