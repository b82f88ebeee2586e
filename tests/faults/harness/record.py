"""What a row of the matrix did and found, for the table that `make faults` prints and the page it writes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, NoReturn, Self

import pytest


@dataclass
class Row:
    """One row while it runs. Used as a context manager: left without an exception it is passed."""

    id: str
    what: str
    unit: str
    """What `tried` counts."""
    tried: int = 0
    losses: int = 0
    corrupt: int = 0
    duplicates: int = 0
    bound: str = ""
    """The figure that has to hold."""
    notes: list[str] = field(default_factory=list)
    verdict: str = ""
    """``passed``, ``failed`` or ``skipped``."""
    secs: float = 0.0
    keep: Callable[[Row], None] = lambda row: None

    def note(self, text: str) -> None:
        """Add something that was seen."""
        self.notes.append(text)

    def skip(self, reason: str) -> NoReturn:
        """Leave the row out for a reason; a row that is left out never counts as passed."""
        self.notes.append(reason)
        pytest.skip(f"{self.id}: {reason}")

    def __enter__(self) -> Self:
        self.secs = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.secs = round(time.monotonic() - self.secs, 1)
        skipped = isinstance(error, pytest.skip.Exception)
        self.verdict = "passed" if error is None else "skipped" if skipped else "failed"
        if error is None and (not self.tried or self.losses or self.corrupt):
            self.verdict = "failed"
            self.keep(self)
            raise AssertionError(f"{self.id}: {self.tried} tried, {self.losses} lost, {self.corrupt} corrupt")
        self.keep(self)


def as_data(row: Row) -> dict[str, Any]:
    """Return a row as plain data."""
    data = asdict(row)
    del data["keep"]
    return data


def merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one entry for each id, in order of the matrix: parts of one row are added up."""
    result: dict[str, dict[str, Any]] = {}
    for row in rows:
        first = result.get(row["id"])
        if first is None:
            result[row["id"]] = {**row, "notes": list(row["notes"])}
            continue
        for name in ("tried", "losses", "corrupt", "duplicates", "secs"):
            first[name] += row[name]
        first["notes"] += row["notes"]
        first["what"] += f"; {row['what']}" if row["what"] not in first["what"] else ""
        first["bound"] += f"; {row['bound']}" if row["bound"] not in first["bound"] else ""
        first["unit"] += f", {row['unit']}" if row["unit"] not in first["unit"] else ""
        first["verdict"] = max(first["verdict"], row["verdict"], key=("passed", "skipped", "failed").index)
    return sorted(result.values(), key=lambda row: (row["id"][0], int(row["id"][1:])))
