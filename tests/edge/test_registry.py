from __future__ import annotations

import types
from importlib.metadata import entry_points

import pluggy
import pytest

from edge import hookspecs
from edge.api import Enricher, Filter, Sink, hookimpl
from edge.registry import ENTRY_POINT_GROUP, PluginError, Registry, load_registry


class Stamp(Enricher):
    """Stamp events."""

    type = "stamp"

    @hookimpl
    def edge_enrich(self, event, context):
        return None


def test_load_registry_finds_the_built_in_components_through_entry_points() -> None:
    registry = load_registry()
    built_in = [point for point in entry_points(group=ENTRY_POINT_GROUP) if point.value.startswith("edge_plugins.")]
    assert len(built_in) == 10
    assert registry.types("enricher") == ["client_ip", "received_at", "request_headers", "static_fields"]
    assert registry.types("filter") == ["drop", "sample"]
    assert registry.types("sink") == ["blackhole", "console", "file", "http"]
    sink = registry.get("sink", "file")
    assert sink is not None
    assert registry.distribution(sink).startswith("edge-gateway ")


def test_registry_refuses_a_second_component_of_the_same_kind_and_type() -> None:
    registry = Registry()
    registry.add(Stamp)
    with pytest.raises(PluginError, match="enricher type stamp is registered twice"):
        registry.add(Stamp)


def test_registry_takes_the_same_type_name_for_another_kind() -> None:
    class StampFilter(Filter):
        type = "stamp"
        reasons = ("stamped",)

        @hookimpl
        def edge_filter(self, event, context):
            return None

    registry = Registry()
    registry.add(Stamp)
    registry.add(StampFilter)
    assert registry.get("filter", "stamp") is StampFilter


class NoHook(Sink):
    type = "no_hook"


class BadName(Sink):
    type = "Bad-Name"

    @hookimpl
    async def edge_deliver(self, batch):
        return None


class BadReason(Filter):
    type = "bad_reason"
    reasons = ("Too hot!",)

    @hookimpl
    def edge_filter(self, event, context):
        return None


class NoComponent:
    type = "nothing"


@pytest.mark.parametrize(
    ("component", "message"),
    [
        (NoHook, "has no method edge_deliver marked with @hookimpl"),
        (BadName, "must be a word of lower-case"),
        (BadReason, "drop reason 'Too hot!'"),
        (NoComponent, "must be a subclass of Enricher, Filter or Sink"),
    ],
)
def test_registry_refuses_a_component_that_breaks_a_rule(component, message) -> None:
    with pytest.raises(PluginError, match=message):
        Registry().add(component)


def test_registry_names_the_plugin_that_fails_to_register() -> None:
    module = types.ModuleType("broken")

    @hookimpl
    def edge_register_components(registry):
        raise RuntimeError("no licence")

    module.edge_register_components = edge_register_components
    manager = pluggy.PluginManager("edge")
    manager.add_hookspecs(hookspecs)
    with pytest.raises(PluginError, match="plugin broken: RuntimeError: no licence"):
        Registry().register_module(manager, module, "broken")
