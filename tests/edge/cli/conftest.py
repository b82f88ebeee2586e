"""The command as tests call it: in this process, in a directory of its own, with stdout that is no terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edge.cli import main

Edge = Callable[..., Result]


@pytest.fixture
def edge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Edge:
    """Run `edge` with these arguments; an exception other than an exit fails the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EDGE_CONFIG", raising=False)

    def run(*args: Any, stdin: str | bytes | None = None) -> Result:
        result = CliRunner().invoke(main, [str(arg) for arg in args], input=stdin, prog_name="edge")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert "\x1b" not in result.stdout
        return result

    return run


@pytest.fixture
def event_file(tmp_path: Path, example_event: dict[str, Any]) -> Callable[..., Path]:
    """Write the example event, with changes, to a file and return its path."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "event.json"
        path.write_text(json.dumps({**example_event, **changes}))
        return path

    return write
