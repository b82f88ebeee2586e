"""Turns configured components into ordered, checked steps: who is called, in which order, with which arguments.

Pluggy calls implementations in reverse order of registration, stops at the first exception and does not say who
raised. The gateway therefore looks the implementations up once at every (re)load and calls them itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import pluggy

from edge import hookspecs
from edge.api import Batch, Component, Context, EdgeError, Event, Filter
from edge.config.model import ComponentConfig, Condition, GatewayConfig, SinkConfig
from edge.registry import HOOK_OF_KIND, Registry

Deliver = Callable[[Batch], Awaitable[Mapping[int, EdgeError] | None]]
OpenOrClose = Callable[[], Awaitable[None]]

FORBIDDEN_OPTIONS = ("wrapper", "hookwrapper", "tryfirst", "trylast", "optionalhook")
ASYNC_HOOKS = ("edge_open", "edge_deliver", "edge_close")

CREDENTIAL_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization", "x-api-key"})


class BindingError(EdgeError):
    """A configured component that cannot be used; the message begins with its ``file:line`` and id."""

    def __init__(self, config: ComponentConfig, message: str) -> None:
        super().__init__(f"{config.where}: {config.kind} {config.id}: {message}")
        self.config = config


@dataclass(frozen=True, slots=True)
class Step:
    """One enricher or filter of the pipeline, bound."""

    id: str
    type: str
    kind: Literal["enricher", "filter"]
    call: Callable[[Event, Context], Any]
    when: Condition | None
    on_error: Literal["skip", "reject"]
    reasons: Mapping[str, str]
    """Filters: the reason a component may return -> the reason as counted, ``<component id>.<reason>``."""


@dataclass(frozen=True, slots=True)
class BoundSink:
    """One sink, bound: its three hooks and its condition. Hooks that the component does not have do nothing."""

    id: str
    type: str
    when: Condition | None
    open: OpenOrClose
    deliver: Deliver
    close: OpenOrClose


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """What an enricher or filter has beside its step: opening, closing."""

    id: str
    open: OpenOrClose
    close: OpenOrClose


@dataclass(frozen=True, slots=True)
class Bound:
    """Everything a configuration's components come to."""

    steps: tuple[Step, ...]
    sinks: tuple[tuple[BoundSink, SinkConfig], ...]
    lifecycles: tuple[Lifecycle, ...]
    wanted_headers: tuple[str, ...]
    """Header names in lower case that enrichers and filters read."""


def bind(config: GatewayConfig, registry: Registry) -> Bound:
    """Build every configured component and return its bound hooks, in the order of YAML.

    `BindingError` names the first component that cannot be built or whose hooks break a rule. Nothing is opened.
    """
    binder = _Binder()
    pipeline = [(item, binder.add(item, registry)) for item in config.pipeline]
    sinks = [(item, binder.add(item.component, registry)) for item in config.sinks]
    headers: dict[str, None] = {}
    steps, lifecycles = [], []
    for item, component in pipeline:
        steps.append(binder.step(item, component))
        lifecycles.append(Lifecycle(item.id, binder.coroutine(item, "edge_open"), binder.coroutine(item, "edge_close")))
        headers.update(dict.fromkeys(_wanted_headers(item, component)))
    return Bound(
        steps=tuple(steps),
        sinks=tuple((binder.sink(item.component), item) for item, _ in sinks),
        lifecycles=tuple(lifecycles),
        wanted_headers=tuple(headers),
    )


class _Binder:
    """One plugin manager with every component instance registered under its id."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager("edge")
        self._manager.add_hookspecs(hookspecs)

    def add(self, config: ComponentConfig, registry: Registry) -> Component:
        """Construct and register the component of one configuration entry."""
        component_class = registry.get(config.kind, config.type)
        if component_class is None:
            raise BindingError(config, f"type {config.type} is not installed")
        try:
            component = component_class(config.id, config.options)
        except ImportError as error:
            raise BindingError(config, f"needs a library that is not installed: {error}") from error
        except Exception as error:
            raise BindingError(config, f"cannot be built: {type(error).__name__}: {error}") from error
        try:
            self._manager.register(component, config.id)
        except (pluggy.PluginValidationError, ValueError) as error:
            raise BindingError(config, f"its hooks do not fit: {str(error).splitlines()[-1].strip()}") from error
        return component

    def step(self, config: ComponentConfig, component: Component) -> Step:
        """Return the pipeline step of an enricher or a filter."""
        implementation = self._implementation(config, HOOK_OF_KIND[config.kind])
        if implementation is None:
            raise BindingError(config, f"has no {HOOK_OF_KIND[config.kind]}")
        reasons: Iterable[str] = component.reasons if isinstance(component, Filter) else ()
        return Step(
            id=config.id,
            type=config.type,
            kind="filter" if config.kind == "filter" else "enricher",
            call=_with_arguments(implementation.function, implementation.argnames),
            when=config.when,
            on_error=config.on_error,
            reasons={reason: f"{config.id}.{reason}" for reason in reasons},
        )

    def sink(self, config: ComponentConfig) -> BoundSink:
        """Return the bound hooks of a sink."""
        implementation = self._implementation(config, "edge_deliver")
        if implementation is None:
            raise BindingError(config, "has no edge_deliver")
        if "batch" not in implementation.argnames:
            raise BindingError(config, "edge_deliver must take the batch")
        return BoundSink(
            id=config.id,
            type=config.type,
            when=config.when,
            open=self.coroutine(config, "edge_open"),
            deliver=cast("Deliver", implementation.function),
            close=self.coroutine(config, "edge_close"),
        )

    def coroutine(self, config: ComponentConfig, hook: str) -> OpenOrClose:
        """Return the component's `edge_open` or `edge_close`, or one that does nothing."""
        implementation = self._implementation(config, hook)
        return _nothing if implementation is None else cast("OpenOrClose", implementation.function)

    def _implementation(self, config: ComponentConfig, hook: str) -> pluggy.HookImpl | None:
        """Return the component's one implementation of a hook, refusing what the gateway would not honour."""
        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        found = [impl for impl in caller.get_hookimpls() if impl.plugin_name == config.id]
        if not found:
            return None
        if len(found) > 1:
            raise BindingError(config, f"implements {hook} more than once")
        implementation = found[0]
        for option in FORBIDDEN_OPTIONS:
            if getattr(implementation, option, False):
                raise BindingError(
                    config, f"{hook} is marked {option}; order is decided in YAML: write plain @hookimpl"
                )
        is_async = inspect.iscoroutinefunction(implementation.function)
        if hook in ASYNC_HOOKS and not is_async:
            raise BindingError(config, f"{hook} must be asynchronous: write async def {hook}")
        if hook not in ASYNC_HOOKS and is_async:
            raise BindingError(config, f"{hook} must be synchronous: write def {hook}")
        return implementation


async def _nothing() -> None:
    """The hook of a component that does not implement it."""


def _with_arguments(function: Callable[..., Any], argnames: Sequence[str]) -> Callable[[Event, Context], Any]:
    """Return the function as one that takes (event, context), whichever of the two it asked for, in its order."""
    names = tuple(argnames)
    if names == ("event", "context"):
        return function
    if names == ("event",):
        return lambda event, _context: function(event)
    if names == ("context",):
        return lambda _event, context: function(context)
    if names == ():
        return lambda _event, _context: function()
    return lambda event, context: function(event=event, context=context)


def _wanted_headers(config: ComponentConfig, component: Component) -> list[str]:
    """Return the header names a component reads, in lower case; credentials are refused."""
    names = [name.lower() for name in component.wanted_headers()]
    refused = sorted(CREDENTIAL_HEADERS.intersection(names))
    if refused:
        raise BindingError(config, f"wants the header {refused[0]}, which carries credentials")
    return names
