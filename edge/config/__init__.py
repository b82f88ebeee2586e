"""The configuration: YAML in, a frozen and checked `GatewayConfig` out, or every mistake with its line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge.api import Component
from edge.config.build import build
from edge.config.components import TypeRegistry, common_options, own_options
from edge.config.describe import Option, describe
from edge.config.model import GatewayConfig
from edge.config.problems import ConfigError, Problem
from edge.config.schema import OPTIONS
from edge.config.secret import Secret
from edge.config.yaml_source import read

__all__ = [
    "ConfigError",
    "GatewayConfig",
    "Option",
    "Problem",
    "Secret",
    "describe_common",
    "describe_component",
    "describe_file",
    "effective",
    "load",
]


def load(path: Path, registry: TypeRegistry, environ: Mapping[str, str]) -> GatewayConfig:
    """Return the configuration in a file; `ConfigError` with every problem that was found in it.

    Blocking. Nothing is started, opened or created. `warnings` of the result are for the operator's log.
    """
    return build(read(path, environ), registry).config


def effective(path: Path, registry: TypeRegistry, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the configuration with all defaults as plain data, every secret as ``***``; `ConfigError` as `load`."""
    return build(read(path, environ), registry).effective


def describe_file() -> list[Option]:
    """Return every option of the configuration file, except those of component types."""
    return describe(OPTIONS)


def describe_component(component: type[Component]) -> list[Option]:
    """Return the options that a component class declares."""
    return describe(own_options(component))


def describe_common(component: type[Component]) -> list[Option]:
    """Return the options that the gateway adds to a component class's own, with its defaults."""
    return describe(common_options(component))
