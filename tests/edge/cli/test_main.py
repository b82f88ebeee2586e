import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

import edge
from edge.cli import main

REPOSITORY = Path(__file__).parents[3]


def commands(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path]
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            found += commands(child, (*path, name))
    return found


@pytest.mark.parametrize("path", commands(main), ids=" ".join)
def test_every_command_and_option_has_help(edge: Any, path: tuple[str, ...]) -> None:
    result = edge(*path, "--help")
    assert result.exit_code == 0
    command: click.Command = main
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    assert command.help
    assert [one.name for one in command.params if isinstance(one, click.Option) and not one.help] == []


def test_version_is_the_installed_one() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edge.cli", "--version"], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == f"edge {edge.__version__}\n"


def test_help_loads_neither_server_nor_configuration() -> None:
    heavy = "'tornado', 'yaml', 'voluptuous', 'uvloop'"
    code = f"import sys, edge.cli; print([name for name in ({heavy}) if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "[]\n"


def test_a_plugin_that_cannot_be_loaded_is_one_line_and_78(tmp_path: Path) -> None:
    info = tmp_path / "broken_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edge.plugins]\nbroken = broken_plugin\n")
    (tmp_path / "broken_plugin.py").write_text("import no_such_library\n")
    done = subprocess.run(
        [sys.executable, "-m", "edge.cli", "plugins"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (78, "")
    [line] = done.stderr.splitlines()
    assert "broken" in line
    assert "no_such_library" in line


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = f"{sys.executable} -m edge.cli plugins | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=30)
    assert done.stdout.startswith("kind\t")
    assert done.stderr == ""


def test_run_prints_where_it_listens_and_drains_on_ctrl_c(config_path: Any, tmp_path: Path) -> None:
    import signal

    process = subprocess.Popen(
        [sys.executable, "-m", "edge.cli", "run", "-c", str(config_path())],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "Ctrl-C" in line:
                break
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    text = "".join(lines)
    assert re.search(r"listening on\s+http://127\.0\.0\.1:[1-9]\d*\n", text)
    assert f"{tmp_path}/events  (archive)" in text
    assert 'X-API-Key: $EDGE_KEY"' in text
    assert "\x1b" not in text
