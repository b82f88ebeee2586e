"""Runs a check over a part of the file and tells what is wrong, with lines, without secrets."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from voluptuous import Invalid

from edge.config.checks import Check
from edge.config.mistakes import UNKNOWN, Mistake, flat
from edge.config.problems import Path
from edge.config.scalars import resolve_plain
from edge.config.secret import MASK, Secret
from edge.config.yaml_source import Source

REDACTED_CHARS = 4
"""Secrets shorter than this are only looked for in what a component says of the very option that holds one."""


class Failed(Exception):  # noqa: N818 - not an error to anybody: the problems are in the source
    """A part of the file has problems; they were added to the source."""


def checked(
    source: Source, check: Check, data: Any, path: Path, *, lenient: bool = False, elsewhere: Sequence[str] = ()
) -> Any:
    """Return a part of the file as the check makes it; `Failed` once its problems were added to `source`.

    What a reference expanded to is text. Where the check refuses that text, it is tried again as what it would be if
    it were written out: ``workers: ${N:-1}`` is a number, and a key of digits stays text. `lenient` ignores unknown
    options, for a component whose type is unknown; `elsewhere` lists paths to suggest for them.
    """
    first_errors: dict[Path, Mistake] = {}
    while True:
        errors = _errors_or_value(check, data)
        if not isinstance(errors, list):
            return errors[0]
        retry = {}
        for error in errors:
            value = _get(data, _path(error))
            if isinstance(value, Secret) and not isinstance(resolve_plain(value), str):
                retry[_path(error)] = error
        if not retry:
            break
        first_errors.update(retry)
        data = _resolved(data, (), retry)
    for error in errors:
        first = first_errors.get(_path(error))
        # The text was refused for something else than for being text.
        _report(source, first if first and error.what == "must be text" else error, path, lenient, elsewhere)
    raise Failed


def _errors_or_value(check: Check, data: Any) -> tuple[Any] | list[Mistake]:
    try:
        return (check(data),)
    except Invalid as error:
        return [each if isinstance(each, Mistake) else Mistake(each.error_message) for each in flat(error)]
    except Exception as error:  # noqa: BLE001 - a component's own check may raise anything; what it says may hold a value
        return [Mistake(f"cannot be checked: {type(error).__name__} in the component", "write another value")]


def _report(source: Source, error: Mistake, path: Path, lenient: bool, elsewhere: Sequence[str]) -> None:
    full = (*path, *_path(error))
    if source.is_broken(full) or (lenient and error.what == UNKNOWN and len(error.path) == 1):
        return
    advice = error.advice
    if error.what == UNKNOWN and not advice.startswith("did you mean"):
        word = str(full[-1])
        places = [place for place in elsewhere if place.rpartition(".")[2] == word]
        advice = f"did you mean {places[0]}?" if places else advice
    hidden: set[str] = set()
    if error.foreign:
        hidden = {secret for secret in source.secrets if len(secret) >= REDACTED_CHARS}
        own = _get(source.data, full)
        hidden |= {own} if isinstance(own, Secret) and own else set()
    source.add(full, _redacted(error.what, hidden), _redacted(advice, hidden))


def _redacted(text: str, secrets: set[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


def _path(error: Invalid) -> Path:
    return tuple(part if isinstance(part, int) else str(part) for part in error.path)


def _get(data: Any, path: Path) -> Any:
    for part in path:
        if isinstance(part, int) and isinstance(data, list) and part < len(data):
            data = data[part]
        elif isinstance(data, dict):
            data = data.get(part)
        else:
            return None
    return data


def _resolved(data: Any, path: Path, paths: Container[Path]) -> Any:
    """Return a copy of the data in which the expanded values at some paths are what they look like."""
    if path in paths:
        return resolve_plain(data)
    if isinstance(data, list):
        return [_resolved(item, (*path, index), paths) for index, item in enumerate(data)]
    if isinstance(data, dict):
        return {key: _resolved(item, (*path, key), paths) for key, item in data.items()}
    return data
