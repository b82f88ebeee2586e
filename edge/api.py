"""What a plugin may import, and nothing else: the component classes, the hook marker, batches and errors.

A plugin is a Python module named by an entry point of the group ``edge.plugins``. It defines components (an
:class:`Enricher`, a :class:`Filter` or a :class:`Sink`) and registers them in ``edge_register_components``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from itertools import chain, repeat
from types import MappingProxyType
from typing import Any, ClassVar, Final, NamedTuple, Protocol

import orjson
import pluggy

from edge.lines import split_lines

__all__ = [
    "REMOVE",
    "Batch",
    "Block",
    "Component",
    "ComponentRegistry",
    "Context",
    "EdgeError",
    "Enricher",
    "Event",
    "EventMetadata",
    "Filter",
    "PermanentError",
    "RetryableError",
    "Sink",
    "hookimpl",
]

hookimpl = pluggy.HookimplMarker("edge")
"""Marks a method or function as the implementation of one of the gateway's hooks."""

Event = dict[str, Any]
"""One event: a JSON object as a dict. Hooks treat it as read-only."""


class _Remove:
    """The type of :data:`REMOVE`."""

    def __repr__(self) -> str:
        return "REMOVE"


REMOVE: Final = _Remove()
"""Returned by an enricher as a field's value to delete that field."""


class EdgeError(Exception):
    """Base of the errors that the gateway and its plugins raise on purpose."""


class RetryableError(EdgeError):
    """The target did not take the batch now; the same batch is delivered again later.

    ``retry_after`` is the target's own wish in seconds (for example HTTP ``Retry-After``); the wait is never shorter.
    ``open_circuit`` stops further attempts at once, except probes: for answers that point at the configuration
    (wrong credentials, wrong address) rather than at load.
    """

    def __init__(self, message: str = "", *, retry_after: float | None = None, open_circuit: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.open_circuit = open_circuit


class PermanentError(EdgeError):
    """The target will never take this; the events become dead letters.

    ``divide`` says that only some events of the batch may be at fault (one bad row, a batch too large): the host then
    delivers the two halves separately, down to single events, and gives up only on those that fail alone.
    """

    def __init__(self, message: str = "", *, divide: bool = False) -> None:
        super().__init__(message)
        self.divide = divide


class Context(NamedTuple):
    """What the gateway knows of the request that carried an event; given to enrichers and filters. Cannot be changed.

    A named tuple like the metadata below: one is made for every request, and that takes a third of the time.
    """

    received_at: datetime
    """When the request's headers arrived, UTC."""
    remote_ip: str
    """The client's address: the peer, or what a trusted proxy said of it. Empty on a unix socket."""
    key_id: str
    """The `id` of the API key, never the key; ``anonymous`` when authentication is off."""
    headers: Mapping[str, str]
    """Request headers that some component asked for in `wanted_headers`, names in lower case."""
    request_id: str = ""
    traceparent: str = ""
    """The W3C trace context header of the request, or empty."""


class EventMetadata(NamedTuple):
    """What is stored beside an event; given to sinks, one for each event of a batch. Cannot be changed."""

    key_id: str
    received_at: datetime
    """UTC."""
    request_id: str
    traceparent: str = ""
    sent_at: str = ""
    """The sender's `sent_at` of the batch as it was written, or empty."""


class Block(NamedTuple):
    """Neighbours in a batch that came in one request. A sink that writes whole lines need not take them apart."""

    metadata: EventMetadata
    """What the gateway knows of them; they share it."""
    n_events: int
    text: bytes
    """Their lines, with a newline between two."""

    @property
    def size_bytes(self) -> int:
        """Sum of the lengths of their lines."""
        return len(self.text) - self.n_events + 1

    def lines(self) -> list[bytes]:
        """Return their lines one by one."""
        return [self.text] if self.n_events == 1 else split_lines(self.text)


class Batch:
    """Events that travel to a target together. Sinks read it and keep no reference after `edge_deliver` returns."""

    __slots__ = ("__dict__", "blocks", "id")

    def __init__(self, id: str, blocks: Sequence[Block]) -> None:
        self.id = id
        """Stable over retries and restarts: built from spool positions. For targets that refuse a repeated write."""
        self.blocks = blocks
        """The events in order, those that came together as one text. For sinks that write lines as they are."""

    def __len__(self) -> int:
        return sum([block.n_events for block in self.blocks])

    @cached_property
    def size_bytes(self) -> int:
        """Sum of the lengths of `lines`."""
        return sum([block.size_bytes for block in self.blocks])

    @cached_property
    def lines(self) -> Sequence[bytes]:
        """The stored bytes of each event: one JSON object, UTF-8, no newline inside or at the end."""
        return tuple(chain.from_iterable(map(Block.lines, self.blocks)))

    @cached_property
    def metadata(self) -> Sequence[EventMetadata]:
        """What the gateway knows of each event; same length and order as `lines`."""
        return tuple(chain.from_iterable([repeat(block.metadata, block.n_events) for block in self.blocks]))

    @cached_property
    def events(self) -> list[Event]:
        """The events as dicts, parsed on first use."""
        return [orjson.loads(line) for line in self.lines]


class Component:
    """Base of everything that YAML can configure. Subclass :class:`Enricher`, :class:`Filter` or :class:`Sink`.

    ``type`` is the word operators write in YAML. ``options`` is a voluptuous mapping whose keys are
    ``Required``/``Optional`` markers with a ``description`` (and a ``default`` where there is one). The gateway
    validates the options once at load; ``self.options`` holds the result with the defaults filled in.
    """

    kind: ClassVar[str]
    type: ClassVar[str]
    options: Mapping[Any, Any] = MappingProxyType({})
    when_required: ClassVar[bool] = False
    """True: the operator must write ``when``. For a component that nobody means to be asked about every event, for
    example a filter that drops whatever it is given."""

    def __init__(self, id: str, options: Mapping[str, Any]) -> None:
        self.id = id
        """The operator's name for this instance: in metrics, logs and commands."""
        self.options = options

    def wanted_headers(self) -> Sequence[str]:
        """Names of the request headers this component reads from the context, in any case. Called once after load."""
        return ()


class Enricher(Component):
    """Adds, replaces or removes fields: implements ``edge_enrich(self, event, context)``."""

    kind = "enricher"
    once_per_request: bool = False
    """True: the fields depend on the request alone, so that all its events can have what one call returned, which
    spares most of the cost of a batch. Such an ``edge_enrich`` must not ask for `event`."""


class Filter(Component):
    """Decides to drop events: implements ``edge_filter(self, event, context)``."""

    kind = "filter"
    reasons: ClassVar[Sequence[str]] = ()
    """Every drop reason that `edge_filter` may return: short, lower case, stable (they become metric labels)."""


class Sink(Component):
    """Takes batches to a target: implements ``edge_deliver(self, batch)``, and ``edge_open``/``edge_close`` if need be.

    ``defaults`` may override the host's defaults of the common sink keys, for example
    ``{"batch": {"max_events": 1000}, "timeout_secs": 30}``.
    """

    kind = "sink"
    defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})


class ComponentRegistry(Protocol):
    """What `edge_register_components` is given."""

    def add(self, component: type[Component]) -> None:
        """Register a component class. A second class with the same kind and type is a start-up error."""
