"""The example event of the HTTP contract: in the banner's curl line, the OpenAPI document, tests and benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

EXAMPLE_EVENT: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "event_id": "evt_123456789",
        "event_type": "click",
        "event_name": "button_click",
        "event_time": "2025-09-17T10:00:00Z",
        "user_id": "usr_987654321",
        "session_id": "sess_123456789",
        "page_name": "checkout",
        "element_id": "submit_button",
        "device_type": "mobile",
        "platform": "ios",
        "app_version": "2.1.0",
        "network_type": "wifi",
    }
)
