"""A registry of three small components, and ways to load YAML out of a test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from voluptuous import All, Coerce, In, Invalid, Length, Optional, Range, Required

from edge.api import Component, Enricher, Filter, Sink
from edge.config import ConfigError, GatewayConfig, load


def _talkative(value: object) -> object:
    """Quote what it refuses, as a careless plugin might."""
    raise Invalid(f"{value} is not a colour")


def _clumsy(value: Any) -> object:
    return value.no_such_thing


class Stamp(Enricher):
    """Stamps events."""

    type = "stamp"
    options: ClassVar[Any] = {
        Optional("field", default="stamp", description="The field to set."): All(str, Length(min=1))
    }


class Remove(Filter):
    """Removes events."""

    type = "remove"
    when_required = True
    options: ClassVar[Any] = {
        Optional("share", default=1.0, description="How many of them."): All(Coerce(float), Range(min=0, max=1))
    }


class Teapot(Sink):
    """Takes batches and pours."""

    type = "teapot"
    options: ClassVar[Any] = {
        Required("spout", description="File that receives the lines."): str,
        Optional("sugar", default=1, description="Lumps per batch."): All(int, Range(min=0, max=5)),
        Optional("milk", default="none", description="When."): In(["first", "last", "none"]),
        Optional("kettle", default=dict, description="The kettle."): {
            Optional("watts", default=2000, description="Its power."): int,
        },
        Optional("headers", default=dict, description="Sent along."): {str: str},
        Optional("guests", default=list, description="Who comes."): [str],
        Optional("colour", description="Of the pot."): _talkative,
        Optional("lid", description="Breaks the check."): _clumsy,
    }
    defaults: ClassVar[Any] = {"batch": {"max_events": 4}, "timeout_secs": 30}


class SmallRegistry:
    """What the configuration asks of the registry."""

    def __init__(self, *components: type[Component]) -> None:
        self._components = {(component.kind, component.type): component for component in components}

    def get(self, kind: str, type_name: str) -> type[Component] | None:
        return self._components.get((kind, type_name))

    def types(self, kind: str) -> list[str]:
        return sorted(name for of_kind, name in self._components if of_kind == kind)


@pytest.fixture
def small_registry() -> SmallRegistry:
    return SmallRegistry(Stamp, Remove, Teapot)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "edge.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def load_text(write: Callable[[str], Path], small_registry: SmallRegistry) -> Callable[..., GatewayConfig]:
    def load_text(text: str, environ: Mapping[str, str] | None = None) -> GatewayConfig:
        return load(write(text), small_registry, environ or {})

    return load_text


@pytest.fixture
def problems(load_text: Callable[..., GatewayConfig]) -> Callable[..., list[str]]:
    """Return the problems of a text as lines, without the name of the file."""

    def problems(text: str, environ: Mapping[str, str] | None = None) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load_text(text, environ)
        return [str(problem).removeprefix(f"{problem.file}:") for problem in caught.value.problems]

    return problems
