"""Checks what is configured of enrichers, filters and sinks: common options, and those of each component's type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Protocol

from voluptuous import Required, Schema

from edge.api import Component, Sink
from edge.conditions import Condition, ConditionError, compile_condition
from edge.config.checking import Failed, checked
from edge.config.checks import Anything, Keys, Options
from edge.config.component_schema import SINK, STEP, with_defaults
from edge.config.mistakes import did_you_mean
from edge.config.model import BatchOptions, ComponentConfig, RetryOptions, SinkConfig
from edge.config.problems import Path, path_text
from edge.config.scalars import resolve_plain
from edge.config.secret import Secret, masked
from edge.config.words import key_text
from edge.config.yaml_source import Source

Kind = Literal["enricher", "filter", "sink"]

COMPARISONS = ("gt", "ge", "lt", "le")


class TypeRegistry(Protocol):
    """The part of the registry that is asked here."""

    def get(self, kind: str, type_name: str) -> type[Component] | None:
        """Return the class of a kind and a type name."""

    def types(self, kind: str) -> list[str]:
        """Return the type names of a kind."""


def own_options(component: type[Component]) -> dict[Any, Any]:
    """Return the options that a component class declares, as a mapping of markers."""
    options = component.options
    return dict(options.schema if isinstance(options, Schema) else options)


def common_options(component: type[Component]) -> dict[Any, Any]:
    """Return the options that the gateway adds to a component's own, with the defaults that its class asks for."""
    keys = with_defaults(SINK, component.defaults) if issubclass(component, Sink) else dict(STEP)
    if component.when_required:
        message = "is required; write which events are meant, e.g. when: {event_type: heartbeat}"
        when = Required("when", msg=message, description="Which events the component is asked about.")
        keys = {key: value for key, value in keys.items() if key_text(key) != "when"}
        keys[when] = Anything("condition")
    return keys


@dataclass(frozen=True, slots=True)
class Checked:
    """One component that passed: for the gateway and, as plain data, for the eyes of operators."""

    config: ComponentConfig
    common: Mapping[str, Any]
    plain: dict[str, Any]


def _plain(config: ComponentConfig, options: dict[str, Any]) -> dict[str, Any]:
    plain = {"type": config.type} if config.kind == "sink" else {"type": config.type, "id": config.id}
    return {**plain, **options, "when": config.when_source}


class Components:
    """Checks the components of one file, and that their ids differ."""

    def __init__(self, source: Source, registry: TypeRegistry) -> None:
        self._source = source
        self._registry = registry
        self._ids: dict[str, Path] = {}

    def step(self, index: int, data: dict[str, Any]) -> Checked:
        """Return an enricher or filter of the pipeline; `Failed` when it has problems."""
        path: Path = ("pipeline", index)
        component = self._type(path, data, ("enricher", "filter"), STEP)
        written = data.get("id")
        identifier = written if isinstance(written, str) else component.type
        unique = self._claim(identifier, path, explicit=isinstance(written, str))
        result = self._component(component, identifier, data, path)
        if not unique:
            raise Failed
        return result

    def sink(self, identifier: str, data: dict[str, Any]) -> tuple[SinkConfig, dict[str, Any]]:
        """Return a sink and its plain data; `Failed` when it has problems."""
        path: Path = ("sinks", identifier)
        unique = self._claim(identifier, path, explicit=True)
        component = self._type(path, data, ("sink",), SINK)
        result = self._component(component, identifier, data, path)
        if not unique:
            raise Failed
        common = result.common
        sink = SinkConfig(
            component=result.config,
            batch=BatchOptions(**common["batch"]),
            retry=RetryOptions(**common["retry"]),
            timeout_secs=common["timeout_secs"],
            dead_letter=common["dead_letter"],
            required=common["required"],
        )
        return sink, result.plain

    def _claim(self, identifier: str, path: Path, *, explicit: bool) -> bool:
        first = self._ids.setdefault(identifier, path)
        if first == path:
            return True
        where = f"{path_text(first)} on line {self._source.line(first)}"
        if not explicit:
            advice = f"write one, e.g. id: {identifier}_2"
            self._source.add(path, f"needs an id, since {where} has its type as id", advice)
        else:
            here = path if path[0] == "sinks" else (*path, "id")
            self._source.add(here, f"is the id of {where} too", "write another")
        return False

    def _type(self, path: Path, data: dict[str, Any], kinds: Sequence[Kind], common: Keys) -> type[Component]:
        written = data.get("type")
        found = [self._registry.get(kind, written) for kind in kinds] if isinstance(written, str) else []
        components = [component for component in found if component is not None]
        if len(components) == 1:
            return components[0]
        here: Path = (*path, "type")
        if components:
            self._source.add(here, "is both an enricher and a filter", "remove one of the plugins")
        elif isinstance(written, str) and written and not self._source.is_broken(here):
            self._unknown_type(here, written, kinds)
        # What can be said of the options without the type is said all the same.
        checked(self._source, Options(common), data, path, lenient=True)
        raise Failed

    def _unknown_type(self, path: Path, written: str, kinds: Sequence[Kind]) -> None:
        other = "sinks" if "sink" not in kinds else "pipeline"
        other_kinds: Sequence[Kind] = ("sink",) if other == "sinks" else ("enricher", "filter")
        is_other = any(self._registry.get(kind, written) is not None for kind in other_kinds)
        known = sorted({name for kind in kinds for name in self._registry.types(kind)})
        what = f"is not a known {' or '.join(kinds)} type; known: {', '.join(known) or 'none'}"
        advice = f"write it under {other}" if is_other else did_you_mean(written, known)
        self._source.add(path, what, advice)

    def _component(self, component: type[Component], identifier: str, data: dict[str, Any], path: Path) -> Checked:
        common = common_options(component)
        own = own_options(component)
        clash = sorted({key_text(key) for key in common}.intersection(key_text(key) for key in own) - {"when"})
        if clash:
            what = f"has an option {clash[0]} of its own, which is the gateway's"
            self._source.add((*path, "type"), what, "use another version of the plugin")
            raise Failed
        errors = len(self._source.problems)
        when = self._condition(data.get("when"), (*path, "when"))
        names = {key_text(key) for key in own}
        keys = {**{key: value for key, value in common.items() if key_text(key) not in names}, **own}
        options = checked(self._source, Options(keys), data, path)
        if len(self._source.problems) > errors or self._source.is_broken(path):
            raise Failed
        kind: Any = component.kind
        written = masked(data.get("when"))
        config = ComponentConfig(
            kind=kind,
            type=component.type,
            id=str(identifier),
            options=MappingProxyType({name: value for name, value in options.items() if name in names}),
            when=when,
            when_source=written,
            on_error=options.get("on_error", "skip"),
            where=f"{self._source.file}:{self._source.line(path)}",
        )
        return Checked(config, options, _plain(config, options))

    def _condition(self, data: Any, path: Path) -> Condition | None:
        if data is None or self._source.is_broken(path):
            return None
        try:
            return compile_condition(_with_numbers(data))
        except ConditionError as error:
            for each in (error, *error.others):
                here = (*path, *each.path)
                if not self._source.is_broken(here):
                    what, _, advice = each.message.rpartition("; ")
                    self._source.add(here, what or advice, advice if what else "")
        return None


def _with_numbers(data: Any, key: str = "") -> Any:
    """Return a condition in which expanded operands of comparisons and of `exists` are what they look like."""
    if isinstance(data, Mapping):
        return {name: _with_numbers(value, name) for name, value in data.items()}
    if isinstance(data, list):
        return [_with_numbers(value) for value in data]
    return resolve_plain(data) if isinstance(data, Secret) and key in (*COMPARISONS, "exists") else data
