"""Stands in for the recorder of the attack suite until the real one is merged: same fixtures, nothing is kept."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, Self

import pytest


class Row:
    """What one row of the matrix has tried and found."""

    def __init__(self, id: str, what: str, unit: str) -> None:
        self.id, self.what, self.unit = id, what, unit
        self.tried = self.losses = self.corrupt = self.duplicates = 0
        self.bound = ""
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def skip(self, reason: str) -> None:
        pytest.skip(reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        state = "passed" if kind is None else "failed"
        line = (f"{self.id} {state}: {self.tried} {self.unit}, {self.losses} lost, {self.corrupt} corrupt", *self.notes)
        sys.stdout.write(" ".join(line) + "\n")


@pytest.fixture
def scale() -> Callable[[int, int], int]:
    return lambda pr, full: full if os.environ.get("EDGE_FAULTS") == "full" else pr


@pytest.fixture
def row() -> Callable[..., Any]:
    return lambda name, *, what, unit: Row(name, what, unit)
