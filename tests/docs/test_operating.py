"""The operator's page: what it quotes from the code must be in the code, and the other way round."""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from edge.cli import main
from edge.gateway import FIXED_AT_RELOAD
from edge.metrics import TABLE

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "operating.md").read_text()


def error_lines() -> Iterator[str]:
    """Yield every sentence that the gateway or a built-in component logs at ERROR."""
    for folder in ("edge", "plugins"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            tree = ast.parse(path.read_text())
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and _is_error_call(node.func) and node.args:
                    yield from _sentences(node.args[0], tree)


def _is_error_call(function: ast.expr) -> bool:
    return (
        isinstance(function, ast.Attribute)
        and function.attr in ("error", "exception", "critical")
        and isinstance(function.value, ast.Name)
        and function.value.id in ("log", "logger")
    )


def _sentences(argument: ast.expr, tree: ast.Module) -> Iterator[str]:
    """Yield the texts that an argument can be: itself, or what is assigned to its name."""
    sources: list[ast.expr] = [argument]
    if isinstance(argument, ast.Name):
        sources = [
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and any(ast.unparse(target) == argument.id for target in node.targets)
        ]
    for source in sources:
        for node in ast.walk(source):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_every_line_at_error_is_explained() -> None:
    lines = set(error_lines())
    assert len(lines) > 10
    explained = set(re.findall(r"^\| `([^`]+)` \|", PAGE.partition("## What each log line at ERROR")[2], re.MULTILINE))
    assert lines - explained == set()
    assert explained - lines == set()


def test_metrics_it_names_exist() -> None:
    named = set(re.findall(r"\bedge_[a-z_]+", PAGE)) - {"edge_gateway"}
    known = {row.name for row in TABLE} | {f"{row.name}_bucket" for row in TABLE if row.kind == "histogram"}
    assert named - known == set()


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^(?:\w+=\S+ )*edge [a-z].*$", PAGE, re.MULTILINE))))
def test_commands_it_shows_are_understood(line: str) -> None:
    words = shlex.split(re.split(r"\s[#>|;]", line)[0])[1:]
    command: click.Command = main
    while isinstance(command, click.Group):
        assert words[0] in command.commands, line
        command = command.commands[words.pop(0)]
    command.make_parser(click.Context(command)).parse_args(words)


def test_links_inside_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) - anchors == set()
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGE):
        assert (REPOSITORY / "docs" / target).exists(), target


def test_what_needs_a_restart_is_listed_in_full() -> None:
    section = PAGE.partition("needs a restart")[2].partition(". A change")[0]
    assert tuple(re.findall(r"`([a-z_.]+)`", section)) == FIXED_AT_RELOAD


def test_readyz_is_as_it_is_shown() -> None:
    shown = re.search(r"^curl -s localhost:4001/readyz\n(.*)$", PAGE, re.MULTILINE)
    assert shown is not None
    checks = json.loads(shown[1])["checks"]
    assert list(checks) == ["spool", "draining", "sink:archive"]
    assert set(checks["sink:archive"]) == {"status", "detail"}


def test_drop_and_loss_are_marked() -> None:
    assert "there is no way back" in PAGE
