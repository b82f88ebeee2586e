"""Fixtures of the attack suite, and the table it prints at its end.

``make test`` runs a small figure of every row, ``make faults`` (EDGE_FAULTS=full) the whole one; the latter keeps the
counts of all its runs in ``docs/faults.json`` and writes ``docs/faults.md`` from them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import mutants, report
from harness.record import Row, as_data
from harness.rig import Rig

ROWS = pytest.StashKey[list[dict[str, Any]]]()
IS_FULL = os.environ.get("EDGE_FAULTS") == "full"


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []
    for name in filter(None, os.environ.get("EDGE_FAULTS_MUTANT", "").split(",")):
        mutants.install(name)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the rows that only `make faults` runs out of `make test`."""
    if IS_FULL:
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("full")]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if not rows:
        return
    terminalreporter.section("faults")
    for line in report.table(rows):
        terminalreporter.write_line(line)
    if IS_FULL and not os.environ.get("EDGE_FAULTS_MUTANT"):
        report.keep(rows, Path(config.rootpath) / "docs")


@pytest.fixture
def scale() -> Callable[[int, int], int]:
    """Return a function that picks the figure of this run: that of `make test` or that of `make faults`."""
    return lambda pr, full: full if IS_FULL else pr


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Callable[..., Row]:
    """Return a function that begins a row of the matrix."""
    rows = request.config.stash[ROWS]

    def begin(id: str, *, what: str, unit: str, bound: str = "0 lost") -> Row:
        return Row(id, what, unit, bound=bound, keep=lambda row: rows.append(as_data(row)))

    return begin


@pytest.fixture
def rig(tmp_path: Path, config_path: Callable[..., Path]) -> Any:
    """Return a gateway's surroundings: targets, load, ledgers; all processes end with the test."""
    with Rig(tmp_path, config_path) as rig:
        yield rig
