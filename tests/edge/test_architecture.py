"""The direction of imports, read from the sources."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LAYERS = [
    {"edge"},
    {"edge.lines"},
    {"edge.acceptor", "edge.api", "edge.board", "edge.clock", "edge.example", "edge.near_names", "edge.tallies"},
    {"edge.columns", "edge.event", "edge.outcomes", "edge.hookspecs", "edge.logs", "edge.patterns"},
    {"edge.registry", "edge.conditions", "edge.validation", "edge.spool"},
    {"edge.config", "edge.json_body", "edge.dedup_tail"},
    {"edge.binding", "edge.dedup"},
    {"edge.exits", "edge.heap", "edge.pipeline", "edge.metrics"},
    {"edge.judging"},
    {"edge.door", "edge.delivery", "edge.scrape"},
    {"edge.books", "edge.testing", "edge.workers"},
    {"edge.roles", "edge.room"},
    {"edge.shards"},
    {"edge.gateway"},
    {"edge.peers"},
    {"edge.http"},
    {"edge.process"},
    {"edge.supervisor"},
    {"edge.runtime"},
    {"edge.cli"},
]


def room_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2])


def level_of(room: str) -> int:
    for level, rooms in enumerate(LAYERS):
        if room in rooms:
            return level
    raise AssertionError(f"{room} has no place in the layers: add it to this test and to docs/architecture.md")


def module_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.extend(f"{node.module}.{alias.name}" for alias in node.names)
    return names


SOURCES = sorted((ROOT / "edge").rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=[module_of(path) for path in SOURCES])
def test_module_imports_only_from_lower_rooms(path: Path) -> None:
    room = room_of(module_of(path))
    for name in imports_of(path):
        assert not name.startswith(("edge_plugins", "plugins")), f"{path}: the gateway never imports a plugin"
        if name.startswith("edge."):
            imported = room_of(name)
            if imported not in {room, "edge.__version__"}:
                assert level_of(imported) < level_of(room), f"{room} must not import {imported}"


def test_pipeline_imports_neither_tornado_nor_asyncio() -> None:
    assert not [name for name in imports_of(ROOT / "edge/pipeline.py") if name.startswith(("tornado", "asyncio"))]


@pytest.mark.parametrize("path", sorted((ROOT / "plugins").rglob("*.py")), ids=lambda path: path.stem)
def test_built_in_plugin_imports_only_the_plugin_api(path: Path) -> None:
    ours = [name for name in imports_of(path) if name.split(".")[0] in ("edge", "edge_plugins", "plugins")]
    assert all(name.startswith("edge.api.") or name == "edge.__version__" for name in ours), ours


def test_delivery_and_spool_and_door_know_no_http() -> None:
    for room in ("spool", "delivery"):
        for path in (ROOT / "edge" / room).glob("*.py"):
            assert not [name for name in imports_of(path) if name.startswith("tornado")], path
    assert not [name for name in imports_of(ROOT / "edge/door.py") if name.startswith(("tornado", "edge.http"))]
