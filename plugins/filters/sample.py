"""The filter `sample`."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import orjson
from voluptuous import Invalid, Optional, Required

from edge.api import ComponentRegistry, Context, Event, Filter, hookimpl

from ..support.checks import field_path, takes

HASH_BYTES = 8


@takes("number from 0 to 1")
def _rate(value: object) -> float:
    """Check a share between 0 and 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise Invalid("must be a number between 0 and 1, for example 0.1 for a tenth")
    return float(value)


@takes("text or whole number")
def _seed(value: object) -> str:
    """Check what selections are told apart by; a number means the same as its text."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Invalid("must be text or a whole number")
    return str(value)


class Sample(Filter):
    """Keep a share of the events: those of a stable selection of users.

    Whether an event is kept is decided by a hash of one field's value, so a user is whole in or whole out: on every
    gateway, after every restart, and a lower rate keeps a part of what a higher rate kept. Another `seed` is another,
    independent selection. An event that lacks the field (or has null there) is kept. It never fails.

    The sender of an event that is dropped gets a success; the event is counted as filtered with the reason
    ``sampled_out`` and is not stored.

    Example:

    ```yaml
    pipeline:
      - type: sample
        rate: 0.1
        when: {event_type: [scroll, mousemove]}
    ```
    """

    type = "sample"
    options = {
        Required("rate", description="The share of users to keep, 0 to 1."): _rate,
        Optional("by", default="user_id", description="The field whose value decides, a dotted path."): field_path,
        Optional("seed", default="", description="Anything; another seed is another selection."): _seed,
    }
    reasons = ("sampled_out",)

    def __init__(self, id: str, options: Mapping[str, Any]) -> None:
        super().__init__(id, options)
        self._path: tuple[str, ...] = tuple(options["by"].split("."))
        # A hash is kept when it is below this; the whole range is 2**64.
        self._limit = round(options["rate"] * 2 ** (8 * HASH_BYTES))
        seed = options["seed"].encode()
        self._start = blake2b(len(seed).to_bytes(8, "big") + seed, digest_size=HASH_BYTES)

    @hookimpl
    def edge_filter(self, event: Event, context: Context) -> str | None:
        value: Any = event
        for name in self._path:
            value = value.get(name) if isinstance(value, dict) else None
        if value is None:
            return None
        # A number and its text are the same user: senders do not agree on how to write an id.
        data = value.encode() if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
        state = self._start.copy()
        state.update(data)
        return None if int.from_bytes(state.digest(), "big") < self._limit else "sampled_out"


@hookimpl
def edge_register_components(registry: ComponentRegistry) -> None:
    """Register the filter."""
    registry.add(Sample)
