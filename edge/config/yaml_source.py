"""Reads YAML into plain data and remembers the line of everything; refuses what YAML has beyond plain data.

Refused: anchors and aliases (a few lines of them expand to gigabytes), tags, duplicate keys, a second document. Only
``true`` and ``false`` are booleans; dates, ``yes``, ``0x1F`` and ``1:30`` are text. References are expanded inside
values, never in keys, after YAML has been read: what a variable holds cannot add options.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import yaml

from edge.config.problems import ConfigError, Path, Problem, path_text
from edge.config.references import BrokenReferenceError, FileReference, expand
from edge.config.scalars import resolve_plain
from edge.config.secret import Secret

FILE_BYTES = 1024 * 1024
DEPTH = 32
VALUES = 20_000

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(slots=True)
class Source:
    """A configuration file as plain data, with what is needed to speak of it."""

    file: str
    data: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    broken: set[Path] = field(default_factory=set)
    """Paths whose value could not be made out. A problem tells of each; what the schema says of them is noise."""
    secrets: set[str] = field(default_factory=set)
    """Texts that must not be in any message."""

    def line(self, path: Path) -> int:
        """Return the line of a path, or of the nearest thing around it that is written in the file."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return self.lines.get((), 1)

    def add(self, path: Path, what: str, advice: str = "", line: int | None = None) -> None:
        """Add a problem at a path."""
        self.problems.append(Problem(self.file, line or self.line(path), path_text(path), what, advice))

    def is_broken(self, path: Path) -> bool:
        """Tell whether the value at a path, or one around it, could not be made out."""
        return any(path[:end] in self.broken for end in range(len(path) + 1))


def read(path: FilePath, environ: Mapping[str, str]) -> Source:
    """Return the file's data; `ConfigError` when it cannot be read or is no YAML. Other mistakes are in `problems`."""
    source = Source(str(path))
    text = _text(source, path)
    events = _events(source, text)
    _Reader(source, events, path.parent, environ).document()
    return source


def _text(source: Source, path: FilePath) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES + 1)
    except OSError as error:
        raise _fatal(source, 1, f"cannot be read: {error.strerror}", "write one with edge init") from error
    if len(content) > FILE_BYTES:
        raise _fatal(source, 1, f"is larger than {FILE_BYTES} bytes", "write one configuration, without data")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _fatal(source, line, "is not UTF-8", "save the file as UTF-8") from None


def _events(source: Source, text: str) -> Iterator[Any]:
    try:
        yield from yaml.parse(text, Loader=_LOADER)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _fatal(source, line, "has a control character, which YAML does not allow", "remove it") from None
    except yaml.MarkedYAMLError as error:
        line = int(getattr(error.problem_mark, "line", 0)) + 1
        if "nesting depth" in str(error.problem):  # libyaml has a limit of its own, and looks ahead of the reader
            raise _too_deep(source, line) from None
        what = f"is not YAML: {error.problem or error.context or 'cannot be read'}"
        advice = "check the indentation (spaces, no tabs), and write text with special characters in quotes"
        raise _fatal(source, line, what, advice) from None


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _fatal(source: Source, line: int, what: str, advice: str) -> ConfigError:
    return ConfigError([*source.problems, Problem(source.file, line, "", what, advice)])


def _too_deep(source: Source, line: int) -> ConfigError:
    return _fatal(source, line, f"is nested deeper than {DEPTH} levels", "write it flatter")


class _Reader:
    """Builds data out of the parser's events, which name every anchor and alias and cost no expansion."""

    def __init__(self, source: Source, events: Iterator[Any], directory: FilePath, environ: Mapping[str, str]) -> None:
        self._source = source
        self._events = events
        self._directory = directory
        self._environ = environ
        self._values = 0

    def document(self) -> None:
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                line = _line(event)
                if documents == 1:
                    self._source.data = self._node(next(self._events), (), 0)
                else:
                    raise _fatal(self._source, line, "has a second document", "write one, without a line ---")
        if not documents or (self._source.data is None and not self._source.problems):
            raise _fatal(self._source, 1, "is empty", "write at least auth and sinks, or start from edge init")

    def _node(self, event: Any, path: Path, depth: int) -> Any:
        line = _line(event)
        self._source.lines.setdefault(path, line)
        self._values += 1
        if depth > DEPTH:
            raise _too_deep(self._source, line)
        if self._values > VALUES:
            raise _fatal(self._source, line, f"has more than {VALUES} values", "write fewer")
        if self._refused(event, path, line):
            self._source.broken.add(path)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(path, depth)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(path, depth)
        if isinstance(event, yaml.ScalarEvent) and path not in self._source.broken:
            return self._scalar(event, path, line)
        return None

    def _refused(self, event: Any, path: Path, line: int) -> bool:
        """Add a problem for an alias, an anchor or a tag."""
        if isinstance(event, yaml.AliasEvent):
            self._source.add(path, "is an alias, which is not supported", "write the value out here", line)
            return True
        if getattr(event, "tag", None) is not None:
            advice = "remove the word that begins with !; write text in quotes"
            self._source.add(path, "has a tag, which is not supported", advice, line)
            return True
        if getattr(event, "anchor", None) is not None:
            advice = "remove the word that begins with &, and write the value out where it is needed"
            self._source.add(path, "has an anchor, which is not supported", advice, line)
        return False

    def _mapping(self, path: Path, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for event in self._events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            line = _line(event)
            key = self._key(event, path, depth)
            here = (*path, key)
            if key in result:
                first = self._source.line(here)
                self._source.add(here, f"is written twice, first on line {first}", "remove one of the two", line)
                self._skip(next(self._events), depth)
                continue
            self._source.lines[here] = line
            result[key] = self._node(next(self._events), here, depth + 1)
        return result

    def _key(self, event: Any, path: Path, depth: int) -> str:
        """Return a key as the text it is written in, whatever it would mean as a value."""
        line = _line(event)
        if isinstance(event, yaml.ScalarEvent):
            here = (*path, str(event.value))
            if self._refused(event, here, line):
                self._source.broken.add(here)
            return str(event.value)
        if not self._refused(event, path, line):
            self._source.add(path, "has a key that is not a word", "write a name as the key", line)
        self._source.broken.add(path)
        self._skip(event, depth)
        return f"?{line}"

    def _skip(self, event: Any, depth: int) -> None:
        """Read past a node whose content does not matter; its mistakes do not matter either."""
        spare = Source(self._source.file)
        self._source, kept = spare, self._source
        try:
            self._node(event, (), depth + 1)
        except ConfigError as error:
            raise ConfigError([*kept.problems, *error.problems]) from error
        finally:
            self._source = kept

    def _sequence(self, path: Path, depth: int) -> list[Any]:
        result: list[Any] = []
        for event in self._events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            result.append(self._node(event, (*path, len(result)), depth + 1))
        return result

    def _scalar(self, event: Any, path: Path, line: int) -> Any:
        written = str(event.value)
        try:
            reference = FileReference.parse(written)
            if reference is not None:
                content = reference.read(self._directory, self._environ)
                if content.warning:
                    self._source.warnings.append(f"{self._source.file}:{line}: {path_text(path)}: {content.warning}")
                return self._secret(content.text)
            expanded = expand(written, self._environ)
        except BrokenReferenceError as error:
            self._source.broken.add(path)
            self._source.add(path, error.what, error.advice, line)
            return Secret("")
        if expanded.has_references:
            return self._secret(expanded.text)
        is_plain = event.implicit[0]
        return resolve_plain(written) if is_plain and expanded.text == written else expanded.text

    def _secret(self, text: str) -> Secret:
        if text:
            self._source.secrets.add(text)
        return Secret(text)
