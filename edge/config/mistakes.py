"""Turns the errors of voluptuous into sentences: what is wrong with an option, and what to write instead."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from voluptuous import Invalid, LengthInvalid, MultipleInvalid, RangeInvalid, RequiredFieldInvalid

from edge.config.problems import Path
from edge.config.words import asked_for, key_text, known_options, schema_at

SUGGEST_FROM_CHARS = 64
SUGGEST_FROM_LEAST_CHARS = 3
"""Two letters are near too many words: ``no`` is not a slip for ``info``."""

UNKNOWN = "is not a known option"

_EXPECTED = {
    "int": ("must be a whole number", "write e.g. 10"),
    "float": ("must be a number", "write e.g. 0.5"),
    "str": ("must be text", "write it in quotes"),
    "bool": ("must be true or false", "write true or false, without quotes"),
    "boolean": ("must be true or false", "write true or false, without quotes"),
    "list": ("must be a list", "write each item on a line of its own after a dash"),
    "a list": ("must be a list", "write each item on a line of its own after a dash"),
    "dict": ("must be a mapping", "write its options on the lines below it, indented"),
    "a dictionary": ("must be a mapping", "write its options on the lines below it, indented"),
    "a URL": ("must be a URL", "write e.g. https://example.org/hook"),
}
_NOTHING_SAID = ("not a valid value", "no valid value found", "value is not valid", "extra keys not allowed")


class Mistake(Invalid):
    """One wrong value, in words that read after the option's path."""

    def __init__(self, what: str, advice: str = "", path: Path = (), *, foreign: bool = False) -> None:
        super().__init__(f"{what}; {advice}" if advice else what, list(path))
        self.what = what
        self.advice = advice
        self.foreign = foreign
        """True for the words of a component's own check, which might quote the value."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``did you mean X?`` for the nearest known word, or an empty string."""
    if len(word) < SUGGEST_FROM_LEAST_CHARS:
        return ""
    near = difflib.get_close_matches(word[:SUGGEST_FROM_CHARS], list(known), n=1)
    return f"did you mean {near[0]}?" if near else ""


def flat(error: Invalid) -> list[Invalid]:
    """Return the single errors that an error holds, each with its whole path."""
    if isinstance(error, MultipleInvalid):
        return [each for inner in error.errors for each in flat(inner)]
    return [error]


def raise_all(errors: Iterable[Invalid]) -> None:
    """Raise the errors together, if there are any."""
    found = [each for error in errors for each in flat(error)]
    if found:
        raise MultipleInvalid(found)


def translated(error: Invalid, schema: Any) -> Mistake:
    """Return an error of a mapping schema as a mistake, in the words of this file where voluptuous has its own."""
    if isinstance(error, Mistake):
        return error
    path = tuple(part if isinstance(part, int) else key_text(part) for part in error.path)
    what, advice = _sentence(error, schema, path)
    return Mistake(what, advice, path, foreign=True)


def _sentence(error: Invalid, schema: Any, path: Path) -> tuple[str, str]:
    message = error.error_message
    if isinstance(error, RequiredFieldInvalid):
        return _required(message, schema, path)
    if message == "extra keys not allowed":
        return _unknown(str(path[-1]) if path else "", known_options(schema_at(schema, path[:-1])))
    asked = _asked_at(schema, path)
    takes = f"write {asked}" if asked else ""
    if message in _NOTHING_SAID:
        return "is not a value that is allowed here", takes
    if message.startswith("expected "):
        return _expected(message.removeprefix("expected "), takes)
    if isinstance(error, RangeInvalid):
        said = message.startswith("value must")
        return (message.removeprefix("value ") if said else "must be a number"), takes
    if isinstance(error, LengthInvalid):
        empty = message == "length of value must be at least 1"
        return ("must not be empty" if empty else message.replace("length of value", "has a length that")), takes
    choices = re.fullmatch(r"value must be one of \[(.*)\]", message)
    if choices:
        return "must be one of: " + choices[1].replace("'", ""), ""
    what, _, advice = message.partition("; ")
    return (what, advice) if advice else _with_example(what, takes)


def _expected(message: str, takes: str) -> tuple[str, str]:
    if message in _EXPECTED:
        return _EXPECTED[message]
    what, _, advice = message.partition("; ")
    if not advice:
        what, advice = _with_example(message, takes)
    return f"must be {what}", advice


def _with_example(message: str, takes: str) -> tuple[str, str]:
    what, _, example = message.partition(", for example ")
    return what, f"write e.g. {example}" if example else takes


def _required(message: str, schema: Any, path: Path) -> tuple[str, str]:
    if message != "required key not provided":
        what, _, advice = message.partition("; ")
        return what, advice
    asked = _asked_at(schema, path)
    for article in ("a ", "the "):
        asked = asked.removeprefix(article)
    return "is required", f"write {path[-1]}: " + (f"<{asked}>" if asked else "<value>")


def _asked_at(schema: Any, path: Path) -> str:
    found = schema_at(schema, path)
    return "" if found is None else asked_for(found)


def _unknown(word: str, known: list[str]) -> tuple[str, str]:
    advice = did_you_mean(word, known)
    if not advice:
        advice = f"known: {', '.join(known)}" if known else "remove it"
    return UNKNOWN, advice
