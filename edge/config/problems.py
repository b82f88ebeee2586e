"""What is wrong with a configuration file, told so that it can be mended: where, what, and what to write instead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edge.api import EdgeError

Path = tuple[str | int, ...]
"""Where something is in the configuration: keys of mappings and indexes of lists, from the root."""

MOST_PROBLEMS = 200
"""More of them are not listed."""


def path_text(path: Iterable[str | int]) -> str:
    """Return a path as operators read it: ``pipeline[2].rate``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            # A key may be any text; what does not print is shown escaped, and nothing makes a line endless.
            word = part[:64].encode("unicode_escape").decode("ascii") if not part.isprintable() else part[:64]
            text += f".{word}" if text else word
    return text


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake. `what` and `advice` read after the path and never hold the value of an option."""

    file: str
    line: int
    """Counted from 1."""
    path: str
    """Empty when the file as a whole is meant."""
    what: str
    advice: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " + (f"{self.path}: " if self.path else "")
        return f"{where}{self.what}; {self.advice}" if self.advice else f"{where}{self.what}"


class ConfigError(EdgeError):
    """A configuration that cannot be used; `problems` has every mistake that was found, in the order of lines."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        found = sorted(problems, key=lambda problem: problem.line)
        self.problems = found[:MOST_PROBLEMS]
        if len(found) > MOST_PROBLEMS:
            rest = found[MOST_PROBLEMS]
            self.problems.append(
                Problem(rest.file, rest.line, "", "has more problems from here on", "mend these first")
            )
        super().__init__("\n".join(map(str, self.problems)))
