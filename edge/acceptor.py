"""Makes an accept-only check out of a voluptuous schema: what it accepts is surely valid, the rest voluptuous judges.

Walking a schema of 21 fields costs voluptuous tens of microseconds an event, a function made of the same schema about
one. The function never says what is wrong and never changes a value, so it answers only two questions: does voluptuous
accept this, and is its result equal to what came in. It is made once for each load. A schema with a part that is not
known here, or that may change a value, gets no function at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol, runtime_checkable

import voluptuous as vol

Accepts = Callable[[object], bool]

_EXACT: Final = {str: "str", int: "int", float: "float", bool: "bool", dict: "dict", list: "list"}
_PLAIN: Final = frozenset({str, int, bool, type(None)})
_WIDE: Final = float(2**63)


@runtime_checkable
class Expressible(Protocol):
    """A validator that can say itself when it surely accepts a value and leaves it as it is."""

    def accepts(self, source: Source, var: str) -> str:
        """Return a Python expression over the variable `var`; it must not raise for any JSON value."""


class UnknownPartError(Exception):
    """A part of a schema that cannot be generated."""


def generate(schema: vol.Schema, *, flat: bool = False) -> Accepts | None:
    """Return the function for a schema, None where the schema has a part that cannot be generated.

    With `flat` it accepts less: only known fields, no value that is more than an object or array of plain values, and
    no float as large as what a parser makes of an integer beyond 64 bits.
    """
    source = Source(flat=flat)
    try:
        name = source.mapping(schema.schema, schema)
    except UnknownPartError:
        return None
    return source.function(name, source.lines)


def generate_value(check: Any, schema: vol.Schema) -> Accepts:
    """Return the flat function for the value of one field; raises `UnknownPartError`."""
    source = Source(flat=True)
    expression = source.expression(check, "v", schema)
    return source.function("accepts_value", [*source.lines, f"def accepts_value(v): return bool({expression})"])


class Source:
    """The text of the functions being generated, and the values they refer to by name."""

    def __init__(self, *, flat: bool = False) -> None:
        self.lines: list[str] = []
        self.names: dict[str, Any] = {"all_plain": all_plain}
        self._flat = flat

    def function(self, name: str, lines: Sequence[str]) -> Accepts:
        """Return the function of a name that these lines define."""
        namespace = dict(self.names)
        exec(compile("\n".join(lines), "<generated from a schema>", "exec"), namespace)  # noqa: S102 - our own text: names and values of the schema are bound, never written into it
        accepts: Accepts = namespace[name]
        return accepts

    def bind(self, value: object) -> str:
        """Return a name that stands for a value in the generated text: no value is ever written as text."""
        name = f"value_{len(self.names)}"
        self.names[name] = value
        return name

    def object(self, var: str) -> str:
        """Return the expression for any object."""
        return f"type({var}) is dict" + (f" and all_plain({var}.values())" if self._flat else "")

    def mapping(self, fields: Any, schema: vol.Schema) -> str:
        """Write the function of a mapping; return its name."""
        if not isinstance(fields, dict):
            raise UnknownPartError
        name = f"accepts_{len(self.names)}"
        self.names[name] = None
        required: list[str] = []
        optional: list[str] = []
        for key, check in fields.items():
            text, wanted = field_of(key, schema)
            test = self.expression(check, "v", schema)
            if wanted:
                required += [f"        v = event[{self.bind(text)}]", f"        if not ({test}): return False"]
            else:
                bound = self.bind(text)
                optional += [
                    f"    if {bound} in event:",
                    f"        v = event[{bound}]",
                    f"        if not ({test}): return False",
                    "        left -= 1",
                    "        if not left: return True",
                ]
        lines = [f"def {name}(event):", "    if type(event) is not dict: return False"]
        if required:
            lines += ["    try:", *required, "    except KeyError: return False"]
        # Once nothing is left there is no need to ask for the other fields.
        lines += [f"    left = len(event) - {len(required) // 2}", "    if not left: return True", *optional]
        # With extra=REMOVE_EXTRA a mapping with further fields is valid and its result is another one.
        takes_more = schema.extra == vol.ALLOW_EXTRA and not self._flat
        lines.append(f"    return {takes_more}")
        self.lines += lines
        return name

    def expression(self, check: Any, var: str, schema: vol.Schema) -> str:
        """Return an expression that is true only for values that a part of the schema accepts as they are."""
        if isinstance(check, Expressible):
            return check.accepts(self, var)
        if isinstance(check, type):
            return self._type(check, var)
        if isinstance(check, dict):
            return f"{self.mapping(check, schema)}({var})"
        if isinstance(check, vol.Schema):
            return self.expression(check.schema, var, check)
        if isinstance(check, list):
            return self._elements(check, var, schema)
        return self._validator(check, var, schema)

    def _type(self, check: type, var: str) -> str:
        if check not in _EXACT or (self._flat and check is float):
            raise UnknownPartError
        if check is dict:
            return self.object(var)
        if check is list and self._flat:
            return f"type({var}) is list and all_plain({var})"
        return f"type({var}) is {_EXACT[check]}"

    def _elements(self, check: list[Any], var: str, schema: vol.Schema) -> str:
        if len(check) != 1:
            raise UnknownPartError
        inner = f"{var}_"
        return f"type({var}) is list and all([{self.expression(check[0], inner, schema)} for {inner} in {var}])"

    def _validator(self, check: Any, var: str, schema: vol.Schema) -> str:
        """Return the expression of a literal or of one of voluptuous' own validators that never change a value.

        By exact type: a subclass may do anything.
        """
        if check is None:
            return f"{var} is None"
        if type(check) in (str, int, bool) or (type(check) is float and not math.isnan(check)):
            return f"type({var}) is {_EXACT[type(check)]} and {var} == {self.bind(check)}"
        if type(check) in (vol.Any, vol.All) and getattr(check, "discriminant", None) is None:
            # A validator inherits neither from the schema around it: these know `required` only.
            inner = vol.Schema(object, required=check.required, extra=vol.PREVENT_EXTRA)
            if any(isinstance(part, dict) for part in check.validators):
                raise UnknownPartError
            parts = [f"({self.expression(part, var, inner)})" for part in check.validators]
            if not parts:
                raise UnknownPartError
            return (" or " if type(check) is vol.Any else " and ").join(parts)
        if type(check) is vol.In and isinstance(check.container, list | tuple | set | frozenset):
            words = frozenset(word for word in check.container if type(word) is str)
            return f"type({var}) is str and {var} in {self.bind(words)}"
        if type(check) is vol.Match and type(check.pattern.pattern) is str:
            return f"type({var}) is str and {self.bind(check.pattern.match)}({var}) is not None"
        if type(check) is vol.Length:
            return _within(f"type({var}) in (str, list, dict)", f"len({var})", check, self)
        if type(check) is vol.Range and check.min_included and check.max_included:
            return _within(f"type({var}) in (int, float)", var, check, self)
        raise UnknownPartError


def flat_event(value: object) -> bool:
    """Say whether an event holds nothing but plain values, and objects and arrays of them."""
    if type(value) is not dict:
        return False
    if _PLAIN.issuperset(map(type, value.values())):
        return True
    for element in value.values():
        kind = type(element)
        if kind is str:
            continue
        if not all_plain(element.values() if kind is dict else element if kind is list else (element,)):
            return False
    return True


def all_plain(values: Iterable[Any]) -> bool:
    """Say whether there are plain values only: no object or array, no float beyond 64 bits."""
    for element in values:
        kind = type(element)
        if kind is not str and kind not in _PLAIN and not (kind is float and -_WIDE < element < _WIDE):
            return False
    return True


def _within(guard: str, measured: str, check: Any, source: Source) -> str:
    """Return the expression for a smallest and a largest value; either may be absent."""
    bounds = [
        f"{measured} {sign} {source.bind(bound)}"
        for sign, bound in ((">=", check.min), ("<=", check.max))
        if bound is not None
    ]
    if any(type(bound) not in (int, float) for bound in (check.min, check.max) if bound is not None):
        raise UnknownPartError
    return " and ".join([guard, *bounds])


def field_of(key: Any, schema: vol.Schema) -> tuple[str, bool]:
    """Return the name of a field and whether it has to be there."""
    if type(key) is str:
        return key, bool(schema.required)
    if type(key) not in (vol.Required, vol.Optional) or type(key.schema) is not str:
        raise UnknownPartError
    # A default is filled in where the field is missing, which changes the value.
    has_default = not isinstance(key.default, vol.Undefined)
    return key.schema, type(key) is vol.Required or has_default
