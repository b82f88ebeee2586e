"""Finds plugins through entry points and keeps the component types they register."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any

import pluggy

from edge import hookspecs
from edge.api import Component, EdgeError, Enricher, Filter, Sink

ENTRY_POINT_GROUP = "edge.plugins"

TYPE_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")

BASES: dict[str, type[Component]] = {"enricher": Enricher, "filter": Filter, "sink": Sink}

HOOK_OF_KIND = {"enricher": "edge_enrich", "filter": "edge_filter", "sink": "edge_deliver"}


class PluginError(EdgeError):
    """A plugin that cannot be loaded, or whose component breaks a rule. The message names plugin and component."""


class Registry:
    """The component types of one process, by kind and type name. Filled once at start-up, then only read."""

    def __init__(self) -> None:
        self._types: dict[tuple[str, str], type[Component]] = {}
        self._distributions: dict[type[Component], str] = {}
        self._registering = ""

    def add(self, component: type[Component]) -> None:
        """Register a component class; `PluginError` when it breaks a rule or its kind and type are taken."""
        name = component.__qualname__
        kind = getattr(component, "kind", None)
        base = BASES.get(kind) if isinstance(kind, str) else None
        if base is None or not issubclass(component, base):
            raise PluginError(f"{name} must be a subclass of Enricher, Filter or Sink")
        type_name = getattr(component, "type", None)
        if not isinstance(type_name, str) or TYPE_NAME.fullmatch(type_name) is None:
            raise PluginError(f"{name}.type must be a word of lower-case letters, digits and underscores")
        taken = self._types.get((base.kind, type_name))
        if taken is not None:
            raise PluginError(
                f"{base.kind} type {type_name} is registered twice: by {taken.__module__} and by {component.__module__}"
            )
        hook = HOOK_OF_KIND[base.kind]
        if not hasattr(getattr(component, hook, None), "edge_impl"):
            raise PluginError(f"{base.kind} {type_name} has no method {hook} marked with @hookimpl")
        if issubclass(component, Filter):
            for reason in component.reasons:
                if TYPE_NAME.fullmatch(reason) is None:
                    raise PluginError(f"filter {type_name}: drop reason {reason!r} must be lower-case with underscores")
        self._types[base.kind, type_name] = component
        self._distributions[component] = self._registering

    def get(self, kind: str, type_name: str) -> type[Component] | None:
        """Return the class registered for a kind (``enricher``, ``filter``, ``sink``) and a type name."""
        return self._types.get((kind, type_name))

    def types(self, kind: str) -> list[str]:
        """Return the type names of a kind, sorted."""
        return sorted(name for of_kind, name in self._types if of_kind == kind)

    def all(self) -> list[type[Component]]:
        """Return every component class, by kind, then type name."""
        return [self._types[key] for key in sorted(self._types)]

    def distribution(self, component: type[Component]) -> str:
        """Return name and version of the distribution that registered a class, or an empty string."""
        return self._distributions.get(component, "")

    def register_module(self, manager: pluggy.PluginManager, module: Any, name: str, distribution: str = "") -> None:
        """Register one plugin module under its entry-point name and let it add its component classes."""
        self._registering = distribution
        try:
            manager.register(module, name)
            # Called for this module alone, so that whatever it raises is known to be its own.
            others = [plugin for plugin in manager.get_plugins() if plugin is not module]
            manager.subset_hook_caller("edge_register_components", others)(registry=self)
        except PluginError as error:
            raise PluginError(f"plugin {name}: {error}") from error
        except Exception as error:
            raise PluginError(f"plugin {name}: {type(error).__name__}: {error}") from error
        finally:
            self._registering = ""


def load_registry() -> Registry:
    """Return the registry of every plugin that is installed; `PluginError` for the first one that cannot be loaded.

    The gateway's own components come through the same door: entry points of the group ``edge.plugins``.
    """
    manager = pluggy.PluginManager("edge")
    manager.add_hookspecs(hookspecs)
    registry = Registry()
    seen: dict[str, str] = {}
    for entry_point, distribution in _entry_points():
        label = f"{distribution.metadata['Name']} {distribution.version}"
        if entry_point.name in seen:
            raise PluginError(f"plugin {entry_point.name} is installed by both {seen[entry_point.name]} and {label}")
        seen[entry_point.name] = label
        try:
            module = entry_point.load()
        except Exception as error:
            raise PluginError(
                f"plugin {entry_point.name} of {label} cannot be imported: {type(error).__name__}: {error}"
            ) from error
        registry.register_module(manager, module, entry_point.name, label)
    manager.check_pending()
    return registry


def _entry_points() -> Iterator[tuple[EntryPoint, Distribution]]:
    """Yield the entry points of the group in a stable order, each distribution once (the first on the path wins)."""
    found: dict[str, Distribution] = {}
    for distribution in distributions():
        name = distribution.metadata["Name"]
        if name:
            found.setdefault(name.lower().replace("_", "-"), distribution)
    for name in sorted(found):
        entry_points = found[name].entry_points.select(group=ENTRY_POINT_GROUP)
        for entry_point in sorted(entry_points, key=lambda point: point.name):
            yield entry_point, found[name]
