"""Words for what components declare: their docstring, their options and what each option takes.

`edge plugins show` and the generated reference pages say the same because both say it from here.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import voluptuous as vol

from edge.api import Component, Filter

_EXAMPLE = re.compile(r"^Examples?:\s*```yaml\n(?P<yaml>.*?)^```$", re.MULTILINE | re.DOTALL)

_TYPES: dict[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    dict: "mapping",
    list: "list",
    object: "any value",
    None: "null",
    vol.Boolean: "boolean",
    vol.Email: "e-mail address",
    vol.Url: "URL",
    vol.FqdnUrl: "URL",
}

_SILENT: tuple[Any, ...] = (vol.Strip, vol.Lower, vol.Upper)
"""Validators that change a value and do not narrow what may be written."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a component: its name, what it takes, its default and what it is for."""

    name: str
    takes: str
    required: bool
    default: str
    """As it would be written in YAML; empty when there is none."""
    description: str


def summary(component: type[Component]) -> str:
    """Return the first line of the component's docstring."""
    return inspect.cleandoc(component.__doc__ or "").split("\n", 1)[0]


def text(component: type[Component]) -> str:
    """Return the docstring without its example."""
    return _EXAMPLE.sub("", inspect.cleandoc(component.__doc__ or "")).strip()


def example(component: type[Component]) -> str:
    """Return the YAML of the docstring's example; where it has none, the shortest entry there can be."""
    found = _EXAMPLE.search(inspect.cleandoc(component.__doc__ or ""))
    if found is not None:
        return inspect.cleandoc(found["yaml"])
    lines = [f"type: {component.type}", *(f"{one.name}: …" for one in options(component.options) if one.required)]
    if component.kind == "sink":
        return "\n".join(["sinks:", f"  my_{component.type}:", *(f"    {line}" for line in lines)])
    return "\n".join(["pipeline:", f"  - {lines[0]}", *(f"    {line}" for line in lines[1:])])


def reasons(component: type[Component]) -> list[str]:
    """Return the drop reasons of a filter; nothing for other kinds."""
    return list(component.reasons) if issubclass(component, Filter) else []


def options(schema: Any) -> list[Option]:
    """Return the options of a voluptuous mapping in the order in which they are declared."""
    schema = schema.schema if isinstance(schema, vol.Schema) else schema
    if not isinstance(schema, Mapping):
        return []
    return [_option(marker, validator) for marker, validator in schema.items()]


def _option(marker: Any, validator: Any) -> Option:
    name = marker.schema if isinstance(marker, vol.Marker) else marker
    default = getattr(marker, "default", vol.UNDEFINED)
    return Option(
        name=name if isinstance(name, str) else f"<{takes(name)}>",
        takes=takes(validator),
        required=isinstance(marker, vol.Required) and isinstance(default, vol.Undefined),
        default="" if isinstance(default, vol.Undefined) else written(default()),
        description=" ".join(str(getattr(marker, "description", None) or "").split()),
    )


def written(value: Any) -> str:
    """Return a value as one would write it in YAML, on one line."""
    if isinstance(value, str) and value and value.replace("_", "").replace("/", "").replace(".", "").isalnum():
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def takes(validator: Any) -> str:
    """Return in words what a voluptuous validator accepts."""
    if isinstance(validator, vol.Schema):
        return takes(validator.schema)
    try:
        known = _TYPES.get(validator)
    except TypeError:  # unhashable: a list or a mapping
        known = None
    if known is not None:
        return known
    for kind, words in _WORDS:
        if isinstance(validator, kind):
            return words(validator)
    return _by_name(validator)


def _by_name(validator: Any) -> str:
    """Return the words of a function or a literal: a function says what it takes in an attribute or by its name."""
    described = getattr(validator, "takes", None)
    if isinstance(described, str):
        return described
    if inspect.isclass(validator) or inspect.isroutine(validator):
        return validator.__name__.strip("_").replace("_", " ").replace("json", "JSON").replace("url", "URL")
    return f"`{written(validator)}`" if isinstance(validator, str | int | float) else type(validator).__name__


def _all(validator: vol.All) -> str:
    parts = list(dict.fromkeys(takes(part) for part in validator.validators if part not in _SILENT))
    # A function behind a type usually checks what the type cannot say; its name adds nothing to "string".
    if len(parts) > 1 and parts[0] in {"integer", "number"} and parts[1] in {"integer", "number"}:
        parts.pop(0)
    return ", ".join(part for part in parts if part)


def _range(validator: vol.Range) -> str:
    low, high = validator.min, validator.max
    low_text = "" if low is None else f"{'at least' if validator.min_included else 'more than'} {low}"
    high_text = "" if high is None else f"{'at most' if validator.max_included else 'less than'} {high}"
    return " and ".join(filter(None, (low_text, high_text)))


def _length(validator: vol.Length) -> str:
    if validator.min == 1 and validator.max is None:
        return "not empty"
    return "length " + _range(vol.Range(min=validator.min, max=validator.max))


def _in(validator: vol.In) -> str:
    container: Any = validator.container
    return "one of " + ", ".join(f"`{written(item)}`" for item in container)


def _mapping(validator: Mapping[Any, Any]) -> str:
    named = [str(key.schema if isinstance(key, vol.Marker) else key) for key in validator if not _is_type(key)]
    if named:
        return "mapping of " + ", ".join(f"`{name}`" for name in named)
    pairs = [f"{takes(key)} to {takes(value)}" for key, value in validator.items()]
    return "mapping of " + " or ".join(pairs) if pairs else "mapping"


def _is_type(key: Any) -> bool:
    return not isinstance(key.schema if isinstance(key, vol.Marker) else key, str)


_WORDS: tuple[tuple[type, Callable[[Any], str]], ...] = (
    (vol.Coerce, lambda coerce: takes(coerce.type)),
    (vol.All, _all),
    (vol.Any, lambda choice: " or ".join(dict.fromkeys(takes(part) for part in choice.validators))),
    (vol.Range, _range),
    (vol.Clamp, _range),
    (vol.Length, _length),
    (vol.In, _in),
    (vol.Match, lambda match: f"matching `{match.pattern.pattern}`"),
    (Mapping, _mapping),
    (list, lambda items: "list of " + " or ".join(takes(item) for item in items) if items else "list"),
    (tuple, lambda items: "list of " + " or ".join(takes(item) for item in items) if items else "list"),
)
