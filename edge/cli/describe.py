"""Words for what components declare: their docstring, their options and what each option takes.

`edge plugins show` and the generated reference pages say the same because both say it from here.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import voluptuous as vol

from edge.api import Component, Filter
from edge.config import components
from edge.config.component_schema import SINK, STEP
from edge.config.describe import describe
from edge.config.words import schema_at, type_words

_EXAMPLE: Final = re.compile(r"^Examples?:\s*```yaml\n(?P<yaml>.*?)^```$", re.MULTILINE | re.DOTALL)
_CHECKED: Final = re.compile(r"Check (?P<what>(?:a|an|the) [^.]+)\.")
_PLAIN: Final = re.compile(r"[A-Za-z][\w./-]*")


@dataclass(frozen=True, slots=True)
class Option:
    """One option: its name, what it takes, its default and what it is for."""

    name: str
    """Dotted from the top of what is described: ``rotate.max_bytes``, ``keys[].id``, ``<id>.type``."""
    takes: str
    required: bool
    default: str
    """As it would be written in YAML; empty when there is none, or when it is a mapping of defaults."""
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
        return textwrap.dedent(found["yaml"]).rstrip()
    own = [one for one in own_options(component) if one.required and "." not in one.name]
    lines = [f"type: {component.type}", *(f"{one.name}: <{one.takes}>" for one in own)]
    if component.kind == "sink":
        return "\n".join(["sinks:", f"  my_{component.type}:", *(f"    {line}" for line in lines)])
    return "\n".join(["pipeline:", f"  - {lines[0]}", *(f"    {line}" for line in lines[1:])])


def reasons(component: type[Component]) -> list[str]:
    """Return the drop reasons of a filter; nothing for other kinds."""
    return list(component.reasons) if issubclass(component, Filter) else []


def common_options(kind: str) -> list[Option]:
    """Return the options that every component of a kind has, `type` aside."""
    return [one for one in options(SINK if kind == "sink" else STEP) if one.name != "type"]


def common_options_of(component: type[Component]) -> list[Option]:
    """Return the same as this component has them: a sink may have defaults of its own, a filter may need its `when`."""
    return [one for one in options(components.common_options(component)) if one.name != "type"]


def own_choices(component: type[Component]) -> list[Option]:
    """Return those of the common options that the component has in its own way."""
    usual = set(common_options(component.kind))
    return [one for one in common_options_of(component) if one not in usual]


def own_options(component: type[Component]) -> list[Option]:
    """Return the options that the component declares."""
    return options(components.own_options(component))


def options(keys: Mapping[Any, Any]) -> list[Option]:
    """Return the options of a mapping schema in their order, those inside an option right after it."""
    return [
        Option(
            name=one.path,
            takes=one.type or takes(schema_at(keys, tuple(one.path.replace("[]", "").split(".")))),
            required=one.required,
            default="" if one.required or not one.default_text or one.default == {} else written(one.default),
            description=" ".join(one.description.split()),
        )
        for one in describe(keys)
    ]


def written(value: Any) -> str:
    """Return a value as one would write it in YAML, on one line."""
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    if isinstance(value, list) and all(isinstance(item, str) and _PLAIN.fullmatch(item) for item in value):
        return f"[{', '.join(value)}]"
    return json.dumps(value, ensure_ascii=False, default=str)


def takes(validator: Any) -> str:
    """Return in words what a validator accepts: as it says itself, or as the docstring of a function says."""
    words = type_words(validator)
    if words:
        return words
    if isinstance(validator, vol.All | vol.Any):
        return " or ".join(dict.fromkeys(filter(None, map(takes, validator.validators))))
    if inspect.isroutine(validator):
        checked = _CHECKED.match(validator.__doc__ or "")
        return checked["what"] if checked else validator.__name__.strip("_").replace("_", " ")
    return ""
