"""The hooks of the gateway and what each promises. Only `edge_register_components` is called through pluggy.

The others are looked up once at every (re)load, checked, and then called directly (see `edge.binding`): the gateway
wants to know which component raised, in which order they run, and to await the asynchronous ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pluggy

from edge.api import Batch, ComponentRegistry, Context, Event, PermanentError, RetryableError

hookspec = pluggy.HookspecMarker("edge")


@hookspec
def edge_register_components(registry: ComponentRegistry) -> None:
    """Register component classes. Called once for each plugin module at start-up; raising stops the start."""


@hookspec
def edge_enrich(event: Event, context: Context) -> Mapping[str, Any] | None:
    """Return the fields to set on the event (a value `REMOVE` deletes one), or None to leave it as it is.

    Called for every valid event, in the order of YAML, synchronously: reads memory only. The event is not to be
    mutated. Raising leaves the event as it was and counts an error; `on_error` decides what happens next. A component
    that is `once_per_request` may be called once for all events of a request.
    """


@hookspec(firstresult=True)
def edge_filter(event: Event, context: Context) -> str | None:
    """Return a drop reason out of the component's `reasons`, or None to keep the event.

    Called like `edge_enrich`. A reason that was not declared counts as an error of the component.
    """


@hookspec
async def edge_open() -> None:
    """Get ready: open the connection, the file, the table. Called before the first batch and after a failure.

    Called again after it raised, and after the connection was lost. A sink that raises stays closed and is tried again
    with backoff; an enricher or a filter that raises stops the start (or the reload: the old configuration goes on).
    """


@hookspec
async def edge_deliver(batch: Batch) -> Mapping[int, RetryableError | PermanentError] | None:
    """Deliver a batch; return once the target has taken all of it.

    Raise `RetryableError` to get the same batch again later, `PermanentError` to give it up as dead letters. Any
    other exception, and the sink's time-out, count as retryable. A target that judges each event: return a mapping of
    the index in the batch to the error, for those events that were not taken. Never called concurrently for one sink.
    """


@hookspec
async def edge_close() -> None:
    """Let go of what `edge_open` took. Called once, at drain or after a reload, even if opening failed."""
