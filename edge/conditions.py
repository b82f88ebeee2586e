"""Conditions: the `when:` of a component, which is data and not a language.

A condition is a mapping, and every entry of it must hold. A key is the path of a field (``commerce.total``), its value
what the field must be: a value, a list of values, or operators (``{gt: 3, lt: 10}``). The keys `any`, `all` and `not`
hold further conditions. Everything is checked at load and compiled to closures: asking costs a fraction of a
microsecond, and never raises, whatever the event.

A field that is not there equals nothing, so only `ne`, `not` and `exists: false` can match it. A value of another type
than the operator expects does not match. ``true`` is not 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from edge.api import EdgeError
from edge.patterns import SUBJECT_CHARS, PatternError, compile_pattern

__all__ = ["OPERATORS", "Condition", "ConditionError", "compile_condition"]

Condition = Callable[[Mapping[str, Any]], bool]
"""A compiled `when:`: true when the event matches."""

Test = Callable[[Any], bool]
"""Judges the value of one field; is given MISSING for a field that is not there."""

Path = tuple[str | int, ...]

MISSING: Final = object()

NUMBERS: Final = frozenset({int, float})
"""The exact types of numbers in JSON; a bool is none of them."""

MAX_DEPTH = 16
"""Conditions inside `any`, `all` and `not` may be nested this deep."""

OPERATORS: Mapping[str, str] = {
    "eq": "equals the value",
    "ne": "does not equal the value, or the field is missing",
    "in": "is one of the listed values",
    "gt": "is greater than the number or text",
    "ge": "is greater than or equal to the number or text",
    "lt": "is less than the number or text",
    "le": "is less than or equal to the number or text",
    "matches": "is text in which the regular expression is found",
    "contains": "is text with this part, or a list with this value",
    "exists": "the field is there (true) or is not there (false)",
}
"""Every operator and what it says of a field."""

COMBINATIONS = ("any", "all", "not")


class ConditionError(EdgeError):
    """A `when:` that cannot be compiled: where in it, and what is wrong; `others` are the further mistakes in it."""

    def __init__(self, path: Path, message: str, others: Sequence[ConditionError] = ()) -> None:
        super().__init__(message)
        self.path = path
        """Keys and indexes that lead from the `when:` to the mistake."""
        self.message = message
        """``what is wrong; what to write``. Never holds a value of the condition."""
        self.others = tuple(others)


def compile_condition(data: object) -> Condition:
    """Return the function that decides whether an event matches; `ConditionError` with every mistake in `data`."""
    compiler = _Compiler()
    condition = compiler.condition((), data, 0)
    if compiler.errors:
        first, *others = compiler.errors
        raise ConditionError(first.path, first.message, others)
    return condition


class _Compiler:
    """Collects mistakes on the way, so that all of them are told at once."""

    def __init__(self) -> None:
        self.errors: list[ConditionError] = []

    def condition(self, path: Path, data: object, depth: int) -> Condition:
        if not isinstance(data, Mapping) or not data:
            return self.refuse(path, "must be a mapping of fields to values; write e.g. {event_type: click}")
        if depth > MAX_DEPTH:
            return self.refuse(path, f"is nested deeper than {MAX_DEPTH} conditions; write fewer any, all and not")
        parts: list[Condition] = []
        for key, value in data.items():
            here = (*path, key)
            if key == "not":
                parts.append(_negation(self.condition(here, value, depth + 1)))
            elif key in COMBINATIONS:
                parts.append(self.combination(here, key, value, depth))
            elif not isinstance(key, str) or not all(key.split(".")):
                parts.append(self.refuse(here, "is not the path of a field; write e.g. event_type or commerce.total"))
            else:
                parts.append(self.field(here, key, value))
        return parts[0] if len(parts) == 1 else _conjunction(parts)

    def combination(self, path: Path, key: str, value: object, depth: int) -> Condition:
        if not isinstance(value, list) or not value:
            return self.refuse(path, f"must be a list of conditions; write e.g. {key}: [{{event_type: click}}]")
        parts = [self.condition((*path, index), part, depth + 1) for index, part in enumerate(value)]
        return _disjunction(parts) if key == "any" else _conjunction(parts)

    def field(self, path: Path, name: str, expected: object) -> Condition:
        if isinstance(expected, str) and "." not in name:
            # The commonest condition, an attribute that equals a word, is worth a closure less.
            return lambda event: event.get(name) == expected
        if isinstance(expected, Mapping):
            test = self.operators(path, expected)
        elif isinstance(expected, list):
            test = self.membership(path, expected)
        else:
            test = self.equality(path, expected)
        if "." not in name:
            return lambda event: test(event.get(name, MISSING))
        find = _finder(name)
        return lambda event: test(find(event))

    def operators(self, path: Path, expected: Mapping[Any, object]) -> Test:
        tests = [self.operator((*path, name), name, value) for name, value in expected.items()]
        if not tests:
            self.refuse(path, f"must hold an operator; known: {', '.join(OPERATORS)}")
        if len(tests) == 1:
            return tests[0]
        return lambda value: all(test(value) for test in tests)

    def operator(self, path: Path, name: object, operand: object) -> Test:
        match name:
            case "eq":
                return self.equality(path, operand)
            case "ne":
                equals = self.equality(path, operand)
                return lambda value: not equals(value)
            case "in":
                return self.membership(path, operand)
            case "gt" | "ge" | "lt" | "le":
                return self.comparison(path, name, operand)
            case "matches":
                return self.match(path, operand)
            case "contains":
                return self.containment(path, operand)
            case "exists":
                return self.existence(path, operand)
        near = difflib.get_close_matches(str(name)[:64], OPERATORS, n=1)
        advice = f"did you mean {near[0]}? For" if near else "for"
        self.refuse(
            path,
            f"is not a known operator; known: {', '.join(OPERATORS)}; "
            f"{advice} a field inside an object write its path, such as commerce.total",
        )
        return _never

    def equality(self, path: Path, expected: object) -> Test:
        if expected is None or isinstance(expected, bool):
            return lambda value: value is expected
        if isinstance(expected, str):
            return lambda value: bool(value == expected)
        if type(expected) in NUMBERS:
            return lambda value: bool(value == expected) and not isinstance(value, bool)
        self.refuse(path, "must be text, a number, true, false or null")
        return _never

    def membership(self, path: Path, expected: object) -> Test:
        if not isinstance(expected, list) or not expected:
            self.refuse(path, "must be a list of values; write e.g. [click, scroll]")
            return _never
        texts = frozenset(item for item in expected if isinstance(item, str))
        others = [
            self.equality((*path, index), item) for index, item in enumerate(expected) if not isinstance(item, str)
        ]
        if not others:
            return lambda value: isinstance(value, str) and value in texts
        return lambda value: value in texts if isinstance(value, str) else any(test(value) for test in others)

    def comparison(self, path: Path, name: str, operand: object) -> Test:
        if isinstance(operand, str):
            return _comparison(name, operand, frozenset({str}))
        if type(operand) in NUMBERS:
            return _comparison(name, operand, NUMBERS)
        self.refuse(path, "must be a number or text; write e.g. 100")
        return _never

    def match(self, path: Path, operand: object) -> Test:
        try:
            search = compile_pattern(operand).search
        except PatternError as error:
            self.refuse(path, str(error))
            return _never
        return lambda value: isinstance(value, str) and search(value[:SUBJECT_CHARS]) is not None

    def containment(self, path: Path, operand: object) -> Test:
        equals = self.equality(path, operand)
        part = operand if isinstance(operand, str) else None

        def contains(value: Any) -> bool:
            if isinstance(value, str):
                return part is not None and part in value
            return isinstance(value, list) and any(equals(item) for item in value)

        return contains

    def existence(self, path: Path, operand: object) -> Test:
        if not isinstance(operand, bool):
            self.refuse(path, "must be true or false")
        return lambda value: (value is not MISSING) is operand

    def refuse(self, path: Path, message: str) -> Condition:
        self.errors.append(ConditionError(path, message))
        return _never


def _never(_value: Any) -> bool:
    """Stand where a mistake was, until all mistakes are told."""
    return False


def _comparison(name: str, bound: Any, types: frozenset[type]) -> Test:
    tests: dict[str, Test] = {
        "gt": lambda value: type(value) in types and value > bound,
        "ge": lambda value: type(value) in types and value >= bound,
        "lt": lambda value: type(value) in types and value < bound,
        "le": lambda value: type(value) in types and value <= bound,
    }
    return tests[name]


def _negation(condition: Condition) -> Condition:
    return lambda event: not condition(event)


def _conjunction(parts: Iterable[Condition]) -> Condition:
    conditions = tuple(parts)

    def matches(event: Mapping[str, Any]) -> bool:
        for condition in conditions:  # noqa: SIM110 - a generator would cost more than the conditions
            if not condition(event):
                return False
        return True

    return matches


def _disjunction(parts: Iterable[Condition]) -> Condition:
    conditions = tuple(parts)

    def matches(event: Mapping[str, Any]) -> bool:
        for condition in conditions:  # noqa: SIM110 - as above
            if condition(event):
                return True
        return False

    return matches


def _finder(name: str) -> Callable[[Mapping[str, Any]], Any]:
    """Return the function that finds a dotted path: at each level the literal rest of it wins over a nested object."""
    words = name.split(".")
    if len(words) == 2:
        return _finder_of_two(name, *words)
    steps = tuple((words[index], ".".join(words[index + 1 :])) for index in range(len(words) - 1))

    def find(event: Mapping[str, Any]) -> Any:
        if name in event:
            return event[name]
        node: Any = event
        for head, rest in steps:
            node = node.get(head)
            if not isinstance(node, dict):
                return MISSING
            if rest in node:
                return node[rest]
        return MISSING

    return find


def _finder_of_two(name: str, head: str, rest: str) -> Callable[[Mapping[str, Any]], Any]:
    """Return the finder of a path of two words, the commonest, without the loop."""

    def find(event: Mapping[str, Any]) -> Any:
        if name in event:
            return event[name]
        node = event.get(head)
        return node.get(rest, MISSING) if isinstance(node, dict) else MISSING

    return find
