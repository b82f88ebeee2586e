"""Seeded defects, put into the code at run time: the suite has to notice each of them."""

from __future__ import annotations

from collections.abc import Callable

MUTANTS: dict[str, Callable[[], None]] = {}


def install(name: str) -> None:
    """Put one defect in."""
    MUTANTS[name]()
