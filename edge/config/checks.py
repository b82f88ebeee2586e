"""The building blocks of the option schemas: each checks one value, and can say in words what it takes.

They are voluptuous validators, so that schemas may mix them with voluptuous's own. What they raise is a `Mistake`,
whose two parts read after the option's path: what is wrong, what to write.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from voluptuous import PREVENT_EXTRA, Invalid, MultipleInvalid, Schema

from edge.config.addresses import AddressError
from edge.config.mistakes import Mistake, did_you_mean, flat, raise_all, translated

ID = re.compile(r"[a-z][a-z0-9_]{0,62}")

MOST_MISTAKES = 200
"""Of one mapping or list; who has more mends these first."""

Keys = Mapping[Any, Any]
"""The options of a mapping: voluptuous markers with description and default, each with what it takes."""


class Check:
    """A validator that knows its own description. Called with a value; returns what the gateway works with."""

    words: str
    """What the option takes, for the reference page: ``whole number from 1 to 1000``."""

    def __call__(self, value: Any) -> Any:
        """Return the value as the gateway works with it; `Mistake`, or several in a `MultipleInvalid`."""
        return self._take(value)

    def _take(self, value: Any) -> Any:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{self.words}>"


class Text(Check):
    """Text that is not empty, unless said otherwise; `convert` may refuse it with an `AddressError`."""

    def __init__(
        self,
        words: str = "text",
        *,
        pattern: re.Pattern[str] | None = None,
        example: str = "",
        empty: bool = False,
        convert: Callable[[str], Any] | None = None,
    ) -> None:
        self.words = words
        self._pattern = pattern
        self._example = example
        self._empty = empty
        self._convert = convert

    def _take(self, value: Any) -> Any:
        example = f"write e.g. {self._example}" if self._example else "write it in quotes"
        if not isinstance(value, str):
            raise Mistake("must be text", example)
        if not value and not self._empty:
            raise Mistake("must not be empty", example if self._example else "write a value")
        if "\0" in value:
            raise Mistake("must not hold a NUL character", "remove it")
        if value and self._pattern is not None and self._pattern.fullmatch(value) is None:
            raise Mistake(f"must be {self.words}", example)
        if self._convert is None:
            return value
        try:
            return self._convert(value)
        except AddressError as error:
            raise Mistake(error.what, error.advice) from None


class Whole(Check):
    """A whole number in a range, both ends included."""

    def __init__(self, low: int, high: int | None = None, example: int | None = None) -> None:
        self._low, self._high = low, high
        self._example = max(low, 10) if example is None else example
        self.words = f"whole number from {low} to {high}" if high is not None else f"whole number, {low} or more"

    def _take(self, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Mistake("must be a whole number", f"write e.g. {self._example}")
        if value < self._low:
            raise Mistake(f"must not be less than {self._low}", f"write e.g. {self._example}")
        if self._high is not None and value > self._high:
            raise Mistake(f"must not be more than {self._high}", f"write e.g. {self._example}")
        return value


class Number(Check):
    """A number with or without a fraction, `low` or more; `above` excludes `low` itself."""

    def __init__(self, low: float, *, above: bool = False, example: float = 10) -> None:
        self._low, self._above, self._example = low, above, example
        self.words = f"number above {low:g}" if above else f"number, {low:g} or more"

    def _take(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise Mistake("must be a number", f"write e.g. {self._example:g}")
        if value < self._low or (self._above and value == self._low):
            limit = f"more than {self._low:g}" if self._above else f"{self._low:g} or more"
            raise Mistake(f"must be {limit}", f"write e.g. {self._example:g}")
        return value


class TrueOrFalse(Check):
    """A boolean; ``yes`` and ``on`` are words, not booleans."""

    words = "true or false"

    def _take(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise Mistake("must be true or false", "write true or false, without quotes")
        return value


class Anything(Check):
    """A value that is checked elsewhere."""

    def __init__(self, words: str) -> None:
        self.words = words

    def _take(self, value: Any) -> Any:
        return value


class OneOf(Check):
    """One of a few words. `later` names those that a coming version will know, with what to write meanwhile."""

    def __init__(self, *choices: str, later: Mapping[str, str] | None = None) -> None:
        self._choices = choices
        self._later = later or {}
        self.words = "one of: " + ", ".join(choices)

    def _take(self, value: Any) -> str:
        if isinstance(value, str) and value in self._choices:
            return value
        if isinstance(value, str) and value in self._later:
            raise Mistake("is not in this version", f"write {self._later[value]}")
        near = did_you_mean(value, self._choices) if isinstance(value, str) else ""
        raise Mistake(f"must be {self.words}", near)


class OrNull(Check):
    """What another check takes, or null."""

    def __init__(self, check: Check) -> None:
        self.check = check
        self.words = f"{check.words}; or null"

    def _take(self, value: Any) -> Any:
        return None if value is None else self.check(value)


class ListOf(Check):
    """A list whose items all pass a check; every item's mistakes are told. Nothing written is an empty list."""

    def __init__(
        self,
        item: Check,
        *,
        words: str = "",
        least: int = 0,
        single: bool = False,
        check: Callable[[list[Any]], Iterable[Mistake]] | None = None,
    ) -> None:
        self.item = item
        self._least, self._single, self._check = least, single, check
        one = "one or " if single else ""
        self.words = words or f"{one}a list of: {item.words}"

    def _take(self, value: Any) -> list[Any]:
        if self._single and not isinstance(value, list):
            return [self.item(value)]
        items = [] if value is None else value
        if not isinstance(items, list):
            raise Mistake("must be a list", "write each item on a line of its own after a dash")
        if len(items) < self._least:
            raise Mistake("must not be empty", "write at least one")
        checked: list[Any] = []
        errors: list[Invalid] = []
        for index, item in enumerate(items):
            try:
                checked.append(self.item(item))
            except Invalid as error:
                error.prepend([index])
                errors.append(error)
                if len(errors) >= MOST_MISTAKES:
                    break
        if not errors and self._check is not None:
            errors.extend(self._check(checked))
        raise_all(errors)
        return checked


class MappingOf(Check):
    """A mapping of names the operator chooses to values that pass a check."""

    def __init__(self, item: Check, *, words: str, name: Check, least: int = 0) -> None:
        self.item = item
        self.words = words
        self._name, self._least = name, least

    def _take(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise Mistake("must be a mapping of names to options", "write each name on a line of its own")
        if len(value) < self._least:
            raise Mistake("must not be empty", "write at least one")
        checked: dict[str, Any] = {}
        errors: list[Invalid] = []
        for name, item in value.items():
            try:
                checked[self._name(name)] = self.item(item)
            except Invalid as error:
                error.prepend([name])
                errors.append(error)
        raise_all(errors)
        return checked


class Options(Check):
    """A mapping with known options, each a marker with description and default. Nothing written means all defaults.

    `check` is called with the options that passed and yields what is wrong with them together. An `open` mapping is
    passed on as it is: its options depend on the component's type and are checked by `edge.config.components`.
    """

    words = "mapping"

    def __init__(
        self,
        keys: Keys,
        *,
        check: Callable[[dict[str, Any]], Iterable[Mistake]] | None = None,
        open: bool = False,
    ) -> None:
        self.keys = dict(keys)
        self._check = check
        self._open = open
        self._schema = Schema(self.keys, extra=PREVENT_EXTRA)

    def replaced(self, keys: Keys) -> Options:
        """Return the same mapping with other options."""
        return Options(keys, check=self._check, open=self._open)

    def _take(self, value: Any) -> dict[str, Any]:
        written = {} if value is None else value
        if not isinstance(written, dict):
            raise Mistake("must be a mapping", "write its options on the lines below it, indented")
        if self._open:
            return written
        try:
            result: dict[str, Any] = self._schema(written)
        except MultipleInvalid as error:
            raise MultipleInvalid([translated(each, self.keys) for each in flat(error)[:MOST_MISTAKES]]) from None
        # Voluptuous adds defaults in no particular order.
        result = {str(key): result[str(key)] for key in self.keys if str(key) in result}
        if self._check is not None:
            raise_all(list(self._check(result)))
        return result
