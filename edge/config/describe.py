"""Lists options for the reference page: path, type in words, default, meaning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from voluptuous import Required, Schema

from edge.config.checks import Keys, ListOf, MappingOf, Options, OrNull
from edge.config.words import default_of, is_any_name, key_text, type_words


@dataclass(frozen=True, slots=True)
class Option:
    """One option. `default` is None, too, for one that has no default; `default_text` tells them apart."""

    path: str
    """``server.limits.body_bytes``; ``auth.keys[].id`` in a list, ``sinks.<id>.type`` in a mapping of names."""
    type: str
    default: Any
    description: str
    required: bool
    default_text: str
    """As it would be written in YAML; ``required``, or empty for an optional one without default."""


def describe(keys: Keys, prefix: str = "") -> list[Option]:
    """Return every option of a mapping and of the mappings inside it, in the order of declaration."""
    options: list[Option] = []
    for key, value in keys.items():
        if is_any_name(key):
            continue
        path = f"{prefix}{key_text(key)}"
        default = default_of(key)
        required = isinstance(key, Required) and default is ...
        text = "required" if required else "" if default is ... else json.dumps(default, default=str)
        shown = None if default is ... else default
        description = str(getattr(key, "description", None) or "")
        options.append(Option(path, type_words(value), shown, description, required, text))
        options.extend(_inside(value, path))
    return options


def _inside(schema: Any, path: str) -> list[Option]:
    if isinstance(schema, OrNull):
        return _inside(schema.check, path)
    if isinstance(schema, ListOf):
        return _inside(schema.item, f"{path}[]")
    if isinstance(schema, MappingOf):
        return _inside(schema.item, f"{path}.<id>")
    if isinstance(schema, Schema):
        return _inside(schema.schema, path)
    if isinstance(schema, Options):
        return describe(schema.keys, f"{path}.")
    if isinstance(schema, list) and len(schema) == 1:
        return _inside(schema[0], f"{path}[]")
    return describe(schema, f"{path}.") if isinstance(schema, Mapping) else []
