"""References out of a configuration: ``${NAME}``, ``${NAME:-default}`` and ``file:path``."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

FILE_BYTES = 64 * 1024

_REFERENCE = re.compile(r"\$\$\{|\$\{(?P<inside>[^{}]*)\}|\$\{")
_INSIDE = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<has_default>:-(?P<default>.*))?", re.DOTALL)


class BrokenReferenceError(Exception):
    """A reference that leads nowhere; never holds what another reference expanded to."""

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(f"{what}; {advice}")
        self.what = what
        self.advice = advice


@dataclass(frozen=True, slots=True)
class Expanded:
    """Text with its references expanded."""

    text: str
    has_references: bool


def expand(text: str, environ: Mapping[str, str]) -> Expanded:
    """Return the text with ``${NAME}`` replaced by variables; ``$${`` stands for a literal ``${``.

    The default after ``:-`` stands in for a variable that is missing or empty. What a variable holds is not expanded
    again. `BrokenReferenceError` for a variable that is missing and has no default.
    """
    if "${" not in text:
        return Expanded(text, has_references=False)
    found = False

    def replace(match: re.Match[str]) -> str:
        nonlocal found
        if match.group() == "$${":
            return "${"
        found = True
        return _value(match["inside"], environ)

    return Expanded(_REFERENCE.sub(replace, text), found)


def _value(inside: str | None, environ: Mapping[str, str]) -> str:
    match = _INSIDE.fullmatch(inside) if inside is not None else None
    if match is None:
        raise BrokenReferenceError(
            "has a reference that cannot be read", "write ${NAME} or ${NAME:-default}, or $${ for a plain ${"
        )
    name = match["name"]
    value = environ.get(name)
    if match["has_default"] and not value:
        return match["default"] or ""
    if value is None:
        raise BrokenReferenceError(
            f"needs the environment variable {name}, which is not set", f"set it, or write ${{{name}:-default}}"
        )
    if not value.isprintable() and any(0xD800 <= ord(character) <= 0xDFFF for character in value):
        raise BrokenReferenceError(
            f"needs the environment variable {name}, which is not UTF-8", "set it to text in UTF-8"
        )
    return value


@dataclass(frozen=True, slots=True)
class Content:
    """What a file reference led to."""

    text: str
    warning: str
    """A sentence for the operator, or empty."""


@dataclass(frozen=True, slots=True)
class FileReference:
    """A scalar that stands for the content of another file."""

    written: str
    """The path as it is in the configuration, with its own references not expanded."""

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the reference that a scalar is, or None: an address such as ``file:///x`` is plain text."""
        path = text.removeprefix("file:")
        if path == text or not path or path[0].isspace() or path.startswith("//"):
            return None
        return cls(path)

    def read(self, directory: Path, environ: Mapping[str, str]) -> Content:
        """Return the file's text without the newline at its end. A relative path starts at `directory`."""
        path = directory / expand(self.written, environ).text
        try:
            # A FIFO must not stop the start, nor a device fill the memory.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise BrokenReferenceError(
                        f"refers to {self.written}, which is not a file", "write the path of a file"
                    )
                content = file.read(FILE_BYTES + 1)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a path"
            raise BrokenReferenceError(
                f"refers to the file {self.written}, which cannot be read: {reason}",
                "write a path relative to this YAML file, or an absolute one",
            ) from None
        if len(content) > FILE_BYTES:
            raise BrokenReferenceError(
                f"refers to {self.written}, which is larger than {FILE_BYTES} bytes", "write less"
            )
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            raise BrokenReferenceError(f"refers to {self.written}, which is not UTF-8", "write text in UTF-8") from None
        warning = ""
        if status.st_mode & stat.S_IROTH:
            warning = f"everybody on this machine can read {self.written}; run chmod o-r on it"
        return Content(text.removesuffix("\n").removesuffix("\r"), warning)
