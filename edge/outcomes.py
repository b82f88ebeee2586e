"""The closed set of outcomes: what can become of an event at the door and at each sink."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """The fate of an event at the door. Every received event has exactly one."""

    ACCEPTED = "accepted"
    FILTERED = "filtered"
    DUPLICATE = "duplicate"
    INVALID = "invalid"
    REJECTED = "rejected"


class SinkOutcome(StrEnum):
    """The fate of an accepted event at one sink. Every accepted event has exactly one, or is still pending."""

    DELIVERED = "delivered"
    DEAD_LETTERED = "dead_lettered"
    SKIPPED = "skipped"
    DROPPED = "dropped"


class AttemptResult(StrEnum):
    """How one attempt to deliver a batch ended."""

    OK = "ok"
    RETRYABLE = "retryable"
    PERMANENT = "permanent"
    TIMEOUT = "timeout"


VALIDATION_CODES = (
    "validation.required",
    "validation.type",
    "validation.format",
    "validation.enum",
    "validation.length",
    "validation.unknown",
    "validation.limit",
)
"""Why an event breaks the schema."""

JSON_CODES = ("json.syntax", "json.encoding", "json.limit")
"""Why a body, or a line of one, is not JSON that the gateway takes."""

INVALID_REASONS = (*VALIDATION_CODES, *JSON_CODES, "limit.event", "limit.batch", "limit.decompressed")
"""Every reason with which an event is counted as invalid."""
