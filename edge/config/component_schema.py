"""The options that the gateway adds to those of every component: common to all enrichers and filters, to all sinks."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from voluptuous import Optional, Required

from edge.config.checks import ID, Anything, Keys, Number, OneOf, Options, OrNull, Text, TrueOrFalse, Whole
from edge.config.mistakes import Mistake

MIB = 1024 * 1024

ID_TEXT = Text(
    "a word of lower-case letters, digits and underscores that begins with a letter, 63 at most",
    pattern=ID,
    example="web_shop",
)


def _retry_order(options: dict[str, Any]) -> Iterator[Mistake]:
    if options["max_secs"] < options["initial_secs"]:
        yield Mistake("must not be less than initial_secs", "write a longer time", ("max_secs",))


WHEN = Optional("when", default=None, description="Which events the component is asked about; all of them when absent.")

STEP = {
    Required("type", description="The type of enricher or filter."): Text("type name", example="received_at"),
    Optional("id", description="What metrics and logs call the step; its type when absent."): ID_TEXT,
    WHEN: OrNull(Anything("condition")),
    Optional(
        "on_error", default="skip", description="When it fails: skip (the event goes on as it was) or reject (503)."
    ): OneOf("skip", "reject"),
}

BATCH = {
    Optional("max_events", default=500, description="Events in one batch."): Whole(1, 100_000, example=500),
    Optional("max_bytes", default=MIB, description="Bytes in one batch; a larger event travels alone."): Whole(
        1, 1024 * MIB, example=MIB
    ),
    Optional("max_age_secs", default=0.2, description="A batch waits no longer for more events."): Number(
        0, example=0.2
    ),
}

RETRY = {
    Optional(
        "initial_secs", default=0.5, description="Longest wait after the first failure; it doubles from there."
    ): Number(0, above=True, example=0.5),
    Optional(
        "max_secs",
        default=60,
        description="Longest wait between two attempts, or between two probes of a target that is down.",
    ): Number(0, above=True, example=60),
    Optional(
        "give_up_secs", default=None, description="After so long the events become dead letters; null: never."
    ): OrNull(Number(0, above=True, example=3600)),
}

SINK = {
    Required("type", description="The type of sink."): Text("type name", example="file"),
    WHEN: OrNull(Anything("condition")),
    Optional("batch", default=dict, description="When a batch is full: whichever comes first."): Options(BATCH),
    Optional("retry", default=dict, description="How long the gateway waits between attempts."): Options(
        RETRY, check=_retry_order
    ),
    Optional(
        "timeout_secs", default=10, description="An attempt that takes longer is given up and tried again."
    ): Number(0, above=True),
    Optional(
        "dead_letter", default=True, description="Keeps the events that the target will never take."
    ): TrueOrFalse(),
    Optional(
        "required",
        default=False,
        description="The gateway is not ready while this sink is closed, and a full spool refuses events rather than"
        " drop its oldest.",
    ): TrueOrFalse(),
}


def with_defaults(keys: Keys, defaults: Mapping[str, Any]) -> dict[Any, Any]:
    """Return options with other defaults, also those of nested options: ``{"batch": {"max_events": 1000}}``."""
    result: dict[Any, Any] = {}
    for key, value in keys.items():
        name = str(key)
        inner = defaults.get(name)
        if name in defaults and isinstance(value, Options) and isinstance(inner, Mapping):
            result[key] = value.replaced(with_defaults(value.keys, inner))
        elif name in defaults:
            result[Optional(name, default=copy.deepcopy(inner), description=key.description)] = value
        else:
            result[key] = value
    return result
