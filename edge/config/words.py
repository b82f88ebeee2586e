"""Says in words what a voluptuous schema takes, and finds the part of a schema that a path leads to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

from voluptuous import All, Coerce, In, Length, Marker, Match, Range, Schema
from voluptuous import Any as AnyOf
from voluptuous.schema_builder import Undefined

_TYPES: dict[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    dict: "mapping",
    list: "list",
    object: "anything",
    None: "null",
    type(None): "null",
}


def key_text(key: Any) -> str:
    """Return the name of an option, out of a marker or a plain key."""
    return str(key.schema if isinstance(key, Marker) else key)


def is_any_name(key: Any) -> bool:
    """Tell a type or a validator that stands for any name from the name of one option."""
    return not isinstance(key.schema if isinstance(key, Marker) else key, str)


def default_of(key: Any) -> Any:
    """Return the default of a marker, or Ellipsis when it has none."""
    factory = getattr(key, "default", None)
    return ... if factory is None or isinstance(factory, Undefined) else factory()


def type_words(schema: Any) -> str:
    """Return what a schema takes: ``whole number, 0 to 5``. Validators nobody knows here give an empty string."""
    own = getattr(schema, "words", None)
    if isinstance(own, str):
        return own
    if isinstance(schema, Schema):
        return type_words(schema.schema)
    if isinstance(schema, All):
        return ", ".join(dict.fromkeys(filter(None, map(type_words, schema.validators))))
    if isinstance(schema, AnyOf):
        return " or ".join(dict.fromkeys(filter(None, map(type_words, schema.validators))))
    if isinstance(schema, Coerce):
        return _TYPES.get(schema.type, "")
    if isinstance(schema, Range | Length):
        return _range_words(schema)
    if isinstance(schema, In):
        return "one of: " + ", ".join(str(each) for each in cast("Iterable[Any]", schema.container))
    if isinstance(schema, Match):
        return f"matching {schema.pattern.pattern}"
    if isinstance(schema, Mapping):
        return _mapping_words(schema)
    if isinstance(schema, list):
        items = " or ".join(filter(None, map(type_words, schema)))
        return f"a list of: {items}" if items else "list"
    return _scalar_words(schema)


_PLURALS = {
    "name of a top-level field": "field names",
    "name of an HTTP header": "header names",
    "JSON value": "values",
    "whole number": "whole numbers",
    "number": "numbers",
}
"""How several of a thing are called in a sentence; what is not here stays as it is."""
_COUNTED = ("field", "JSON", "list", "mapping", "network", "number", "origin", "path", "type", "URL", "whole", "word")
"""First words of what takes an article."""


def asked_for(schema: Any) -> str:
    """Return what a schema takes as a part of a sentence: ``a whole number from 0 to 5``. Empty when nobody knows."""
    if isinstance(schema, Schema):
        return asked_for(schema.schema)
    if isinstance(schema, All):
        limits = [each for each in schema.validators if isinstance(each, Range | Length)]
        others = [asked_for(each) for each in schema.validators if not isinstance(each, Range | Length)]
        what = next(filter(None, others), "")
        return what + "".join(map(_limit_words, limits)) if what else ""
    if isinstance(schema, AnyOf):
        return " or ".join(dict.fromkeys(filter(None, map(asked_for, schema.validators))))
    if isinstance(schema, Mapping):
        for key, value in schema.items():
            if is_any_name(key):
                return f"a mapping of {_several(key) or 'names'} to {_several(value) or 'values'}"
    if isinstance(schema, list):
        items = " or ".join(filter(None, map(_several, schema)))
        return f"a list of {items}" if items else "a list"
    return _with_article(type_words(schema))


def _several(schema: Any) -> str:
    words = type_words(schema)
    return _PLURALS.get(words, words)


def _limit_words(limit: Range | Length) -> str:
    if isinstance(limit, Length):
        # That a list or a mapping must not be empty was said with the mistake.
        return f" of {_range_words(limit).removeprefix('of ')}" if (limit.min, limit.max) != (1, None) else ""
    words = _range_words(limit)
    if " to " in words:
        return f" from {words}"
    return f" {words}" if words.startswith(("above", "below")) else f" of {words}"


def _with_article(words: str) -> str:
    address = re.fullmatch(r"(\S+://.*) URL", words)
    if address:
        return f"a URL that begins with {address[1]}"
    if words.startswith("name of "):
        return f"the {words}"
    words = words.replace("; or ", " or ")
    return f"a {words}" if words.startswith(_COUNTED) else words


def _scalar_words(schema: Any) -> str:
    try:
        known = _TYPES.get(schema)
    except TypeError:
        known = None
    if known is not None:
        return known
    return str(schema) if isinstance(schema, str | int | float) else ""


def _mapping_words(schema: Mapping[Any, Any]) -> str:
    for key, value in schema.items():
        if is_any_name(key):
            return f"mapping of {type_words(key) or 'names'} to {type_words(value) or 'values'}"
    return "mapping"


def _range_words(schema: Range | Length) -> str:
    what = "of length " if isinstance(schema, Length) else ""
    low, high = schema.min, schema.max
    if low is not None and high is not None:
        return f"{what}{low} to {high}"
    if low is not None:
        included = isinstance(schema, Length) or schema.min_included
        return f"{what}{low} or more" if included else f"above {low}"
    if high is not None:
        included = isinstance(schema, Length) or schema.max_included
        return f"{what}{high} or less" if included else f"below {high}"
    return ""


def schema_at(schema: Any, path: tuple[str | int, ...]) -> Any:
    """Return the part of a schema that judges the value at a path, or None when that cannot be told."""
    for part in path:
        schema = _inside(schema, part)
        if schema is None:
            return None
    return schema


def known_options(schema: Any) -> list[str]:
    """Return the names of the options that a mapping schema knows."""
    keys = _mapping(schema)
    return [] if keys is None else [key_text(key) for key in keys if not is_any_name(key)]


def _mapping(schema: Any) -> Mapping[Any, Any] | None:
    if isinstance(schema, Schema):
        return _mapping(schema.schema)
    if isinstance(schema, Mapping):
        return schema
    keys = getattr(schema, "keys", None)
    if isinstance(keys, Mapping):
        return keys
    for inner in _alternatives(schema):
        found = _mapping(inner)
        if found is not None:
            return found
    return None


def _inside(schema: Any, part: str | int) -> Any:
    if isinstance(schema, Schema):
        return _inside(schema.schema, part)
    if isinstance(part, str):
        keys = _mapping(schema)
        for key, value in (keys or {}).items():
            if is_any_name(key) or key_text(key) == part:
                return value
    if isinstance(part, int) and isinstance(schema, list):
        return schema[0] if schema else None
    item = getattr(schema, "item", None)
    if item is not None:
        return item
    for inner in _alternatives(schema):
        found = _inside(inner, part)
        if found is not None:
            return found
    return None


def _alternatives(schema: Any) -> tuple[Any, ...]:
    """Return the schemas that a schema combines."""
    if isinstance(schema, All | AnyOf):
        return tuple(schema.validators)
    inner = getattr(schema, "check", None)
    return () if inner is None else (inner,)
