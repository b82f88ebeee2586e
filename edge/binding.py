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
from edge.api import Batch, Component, Context, EdgeError, Enricher, Event, Filter
from edge.config.model import ComponentConfig, Condition, GatewayConfig, SinkConfig
from edge.registry import HOOK_OF_KIND, Registry

Deliver = Callable[[Batch], Awaitable[Mapping[int, EdgeError] | None]]
OpenOrClose = Callable[[], Awaitable[None]]

FORBIDDEN_OPTIONS = ("wrapper", "hookwrapper", "tryfirst", "trylast", "optionalhook")
ASYNC_HOOKS = ("edge_open", "edge_deliver", "edge_close")

CREDENTIAL_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization", "x-api-key"})


class BindingError(EdgeError):
    """Configured components that cannot be used; `problems` has one line for each, as `edge check` prints it."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)
        """``FILE:LINE: path: what is wrong; what to write``."""


class _UnusableError(Exception):
    """Why one component cannot be used; reads after its kind and id."""


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
    once_per_request: bool = False
    """Enrichers: what it returns for one event of a request it returns for all of them."""


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

    `BindingError` names every component that cannot be built or whose hooks break a rule. Nothing is opened.
    """
    binder = _Binder(registry)
    steps = [binder.step(f"pipeline[{index}]", item) for index, item in enumerate(config.pipeline)]
    sinks = [binder.sink(f"sinks.{item.id}", item) for item in config.sinks]
    if binder.problems:
        raise BindingError(binder.problems)
    bound_steps = [bound for bound in steps if bound is not None]
    return Bound(
        steps=tuple(bound.step for bound in bound_steps),
        sinks=tuple(bound for bound in sinks if bound is not None),
        lifecycles=tuple(bound.lifecycle for bound in bound_steps),
        wanted_headers=tuple(dict.fromkeys(header for bound in bound_steps for header in bound.wanted_headers)),
    )


@dataclass(frozen=True, slots=True)
class _BoundStep:
    """What one component of the pipeline comes to."""

    step: Step
    lifecycle: Lifecycle
    wanted_headers: Sequence[str]


class _Binder:
    """One plugin manager with every component instance registered under its id."""

    def __init__(self, registry: Registry) -> None:
        self.problems: list[str] = []
        self._registry = registry
        self._manager = pluggy.PluginManager("edge")
        self._manager.add_hookspecs(hookspecs)

    def step(self, path: str, config: ComponentConfig) -> _BoundStep | None:
        """Return an enricher or a filter, bound; None, and a problem more, when it cannot be used."""
        try:
            component = self._build(config)
            return _BoundStep(
                self._step(config, component),
                Lifecycle(config.id, self._coroutine(config, "edge_open"), self._coroutine(config, "edge_close")),
                _wanted_headers(component),
            )
        except _UnusableError as error:
            self._add(path, config, error)
            return None

    def sink(self, path: str, config: SinkConfig) -> tuple[BoundSink, SinkConfig] | None:
        """Return a sink, bound; None, and a problem more, when it cannot be used."""
        try:
            self._build(config.component)
            return self._sink(config.component), config
        except _UnusableError as error:
            self._add(path, config.component, error)
            return None

    def _add(self, path: str, config: ComponentConfig, error: _UnusableError) -> None:
        # One line for each problem, whatever a plugin raises.
        said = " ".join(str(error).split())
        self.problems.append(f"{config.where}: {path}: {config.kind} {config.id} {said}")

    def _build(self, config: ComponentConfig) -> Component:
        """Construct and register the component of one configuration entry."""
        component_class = self._registry.get(config.kind, config.type)
        if component_class is None:
            raise _UnusableError(f"has the type {config.type}, which is not installed; install its plugin")
        try:
            component = component_class(config.id, config.options)
        except ImportError as error:
            advice = "" if "install " in str(error) else "; install it beside the gateway"
            raise _UnusableError(f"needs a library that is not installed: {error}{advice}") from error
        except Exception as error:
            raise _UnusableError(
                f"cannot be built: {type(error).__name__}: {error}; check its options, or remove it"
            ) from error
        try:
            self._manager.register(component, config.id)
        except (pluggy.PluginValidationError, ValueError) as error:
            raise _UnusableError(
                f"has hooks that do not fit: {str(error).splitlines()[-1].strip()}; "
                "write the arguments as edge.hookspecs has them"
            ) from error
        return component

    def _step(self, config: ComponentConfig, component: Component) -> Step:
        """Return the pipeline step of an enricher or a filter."""
        hook = HOOK_OF_KIND[config.kind]
        implementation = self._implementation(config, hook)
        if implementation is None:
            raise _UnusableError(f"has no {hook}; write one and mark it @hookimpl")
        once_per_request = isinstance(component, Enricher) and component.once_per_request
        if once_per_request and "event" in implementation.argnames:
            raise _UnusableError(f"is once_per_request, but its {hook} asks for the event; leave one of them out")
        reasons: Iterable[str] = component.reasons if isinstance(component, Filter) else ()
        return Step(
            id=config.id,
            type=config.type,
            kind="filter" if config.kind == "filter" else "enricher",
            call=_with_arguments(implementation.function, implementation.argnames),
            when=config.when,
            on_error=config.on_error,
            reasons={reason: f"{config.id}.{reason}" for reason in reasons},
            once_per_request=once_per_request,
        )

    def _sink(self, config: ComponentConfig) -> BoundSink:
        """Return the bound hooks of a sink."""
        implementation = self._implementation(config, "edge_deliver")
        if implementation is None:
            raise _UnusableError("has no edge_deliver; write one and mark it @hookimpl")
        if "batch" not in implementation.argnames:
            raise _UnusableError("has an edge_deliver without the batch; write async def edge_deliver(self, batch)")
        return BoundSink(
            id=config.id,
            type=config.type,
            when=config.when,
            open=self._coroutine(config, "edge_open"),
            deliver=cast("Deliver", implementation.function),
            close=self._coroutine(config, "edge_close"),
        )

    def _coroutine(self, config: ComponentConfig, hook: str) -> OpenOrClose:
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
            raise _UnusableError(f"implements {hook} more than once; write one")
        implementation = found[0]
        for option in FORBIDDEN_OPTIONS:
            if getattr(implementation, option, False):
                raise _UnusableError(
                    f"has an {hook} marked {option}, and order is decided in YAML; write plain @hookimpl"
                )
        is_async = inspect.iscoroutinefunction(implementation.function)
        if hook in ASYNC_HOOKS and not is_async:
            raise _UnusableError(f"has a synchronous {hook}; write async def {hook}")
        if hook not in ASYNC_HOOKS and is_async:
            raise _UnusableError(f"has an asynchronous {hook}; write def {hook}")
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


def _wanted_headers(component: Component) -> list[str]:
    """Return the header names a component reads, in lower case; credentials are refused."""
    try:
        names = [name.lower() for name in component.wanted_headers()]
    except Exception as error:
        raise _UnusableError(f"cannot say which headers it wants: {type(error).__name__}: {error}") from error
    refused = sorted(CREDENTIAL_HEADERS.intersection(names))
    if refused:
        raise _UnusableError(f"wants the header {refused[0]}, which carries credentials; leave it out")
    return names
