from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest

from edge.api import Enricher, Filter, Sink, hookimpl
from edge.binding import BindingError, bind
from edge.config.model import BatchOptions, ComponentConfig, RetryOptions, SinkConfig
from edge.registry import Registry


class Config:
    """As much of a configuration as binding reads."""

    def __init__(self, *pipeline: ComponentConfig, sinks: tuple[SinkConfig, ...] = ()) -> None:
        self.pipeline = pipeline
        self.sinks = sinks


def entry(kind: Any, type: str, id: str = "", **options: Any) -> ComponentConfig:
    return ComponentConfig(kind, type, id or type, MappingProxyType(options), None, None, "skip", "edge.yaml:7")


def sink_entry(type: str) -> SinkConfig:
    batch, retry = BatchOptions(1, 1, 1), RetryOptions(1, 1, None)
    return SinkConfig(entry("sink", type), batch, retry, 1, dead_letter=True, required=False)


def registry_of(*components: Any) -> Registry:
    registry = Registry()
    for component in components:
        registry.add(component)
    return registry


class Mark(Enricher):
    type = "mark"

    @hookimpl
    def edge_enrich(self, event):
        return {self.id: self.options.get("value")}


class Hot(Filter):
    type = "hot"
    reasons = ("too_hot",)

    @hookimpl
    def edge_filter(self, event, context):
        return "too_hot"


class Can(Sink):
    type = "can"

    @hookimpl
    async def edge_deliver(self, batch):
        return None


def test_bind_keeps_the_order_of_yaml_and_adapts_the_arguments() -> None:
    config = Config(
        entry("enricher", "mark", "one", value=1), entry("enricher", "mark", "two", value=2), entry("filter", "hot")
    )
    bound = bind(config, registry_of(Mark, Hot))
    assert [step.id for step in bound.steps] == ["one", "two", "hot"]
    assert bound.steps[0].call({}, None) == {"one": 1}
    assert bound.steps[2].reasons == {"too_hot": "hot.too_hot"}


async def test_bind_gives_a_sink_that_opens_nothing_an_open_that_does_nothing(io_loop: Any) -> None:
    bound = bind(Config(sinks=(sink_entry("can"),)), registry_of(Can))
    sink, _ = bound.sinks[0]
    await sink.open()
    await sink.close()


class Needy(Enricher):
    type = "needy"

    def __init__(self, id, options):
        raise ModuleNotFoundError("No module named 'teapot'; install edge-gateway[teapot]")

    @hookimpl
    def edge_enrich(self, event, context):
        return None


class Broken(Enricher):
    type = "broken"

    def __init__(self, id, options):
        raise RuntimeError("no spout")

    @hookimpl
    def edge_enrich(self, event, context):
        return None


class FirstPlease(Enricher):
    type = "first"

    @hookimpl(tryfirst=True)
    def edge_enrich(self, event, context):
        return None


class Wrapping(Enricher):
    type = "wrapping"

    @hookimpl(wrapper=True)
    def edge_enrich(self, event, context):
        return (yield)


class AsksForTheEvent(Enricher):
    type = "asks"
    once_per_request = True

    @hookimpl
    def edge_enrich(self, event, context):
        return None


class WrongColour(Enricher):
    type = "colour"

    @hookimpl
    async def edge_enrich(self, event, context):
        return None


class WrongArguments(Enricher):
    type = "arguments"

    @hookimpl
    def edge_enrich(self, event, request):
        return None


class Curious(Enricher):
    type = "curious"

    def wanted_headers(self):
        return ["X-API-Key"]

    @hookimpl
    def edge_enrich(self, event, context):
        return None


class SyncSink(Sink):
    type = "sync_sink"

    @hookimpl
    def edge_deliver(self, batch):
        return None


@pytest.mark.parametrize(
    ("component", "message"),
    [
        (Needy, "needs a library that is not installed: .*install edge-gateway\\[teapot\\]"),
        (Broken, "cannot be built: RuntimeError: no spout; check its options, or remove it"),
        (FirstPlease, "has an edge_enrich marked tryfirst, .*; write plain @hookimpl"),
        (Wrapping, "has an edge_enrich marked wrapper, .*; write plain @hookimpl"),
        (AsksForTheEvent, "is once_per_request, but its edge_enrich asks for the event; leave one of them out"),
        (WrongColour, "has an asynchronous edge_enrich; write def edge_enrich"),
        (WrongArguments, "has hooks that do not fit: .*request.*; write the arguments as edge.hookspecs has them"),
        (Curious, "wants the header x-api-key, which carries credentials; leave it out"),
    ],
)
def test_bind_refuses_a_component_that_breaks_a_rule_by_its_id(component: Any, message: str) -> None:
    with pytest.raises(BindingError, match=f"^edge.yaml:7: pipeline\\[0\\]: enricher my_id {message}"):
        bind(Config(entry("enricher", component.type, "my_id")), registry_of(component))


def test_bind_refuses_a_sink_that_delivers_synchronously() -> None:
    with pytest.raises(
        BindingError, match=r"sinks\.sync_sink: sink sync_sink has a synchronous edge_deliver; write async"
    ):
        bind(Config(sinks=(sink_entry("sync_sink"),)), registry_of(SyncSink))


def test_bind_tells_of_every_component_that_cannot_be_used_on_a_line_each() -> None:
    config = Config(
        entry("enricher", "broken", "one"),
        entry("enricher", "mark", "two"),
        entry("enricher", "curious", "three"),
        entry("enricher", "gone", "four"),
        sinks=(sink_entry("sync_sink"), sink_entry("can")),
    )
    with pytest.raises(BindingError) as raised:
        bind(config, registry_of(Broken, Mark, Curious, SyncSink, Can))
    assert [line.split(" ")[:4] for line in raised.value.problems] == [
        ["edge.yaml:7:", "pipeline[0]:", "enricher", "one"],
        ["edge.yaml:7:", "pipeline[2]:", "enricher", "three"],
        ["edge.yaml:7:", "pipeline[3]:", "enricher", "four"],
        ["edge.yaml:7:", "sinks.sync_sink:", "sink", "sync_sink"],
    ]
    assert str(raised.value).splitlines() == list(raised.value.problems)
