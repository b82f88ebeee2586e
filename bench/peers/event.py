"""The event of the contract in pydantic, as a FastAPI user would write it: the same fields, the same rules."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(min_length=1)]


class Event(BaseModel):
    """One analytics event."""

    model_config = ConfigDict(extra="forbid")

    event_id: Name
    event_type: Name
    event_name: Name
    event_time: datetime
    user_id: Name
    session_id: Name
    page_name: Name
    element_id: str | None = None
    referrer: str | None = None
    app_version: str | None = None
    device_type: Literal["mobile", "desktop", "tablet"] | None = None
    platform: Literal["ios", "android", "web"] | None = None
    network_type: Literal["wifi", "cellular", "unknown"] | None = None
    content: dict[str, Any] | None = None
    behavior: dict[str, Any] | None = None
    performance: dict[str, Any] | None = None
    location: dict[str, Any] | None = None
    commerce: dict[str, Any] | None = None
    interaction: dict[str, Any] | None = None
    extras: dict[str, Any] | None = None
    experiments: list[str] | None = None


Batch = Annotated[list[Event], Field(min_length=1, max_length=1000)]
