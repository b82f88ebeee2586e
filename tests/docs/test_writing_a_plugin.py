"""The code of docs/writing-a-plugin.md, run as a reader would run it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pluggy
import pytest
import yaml

from edge.registry import Registry
from edge.testing import build

PAGE = Path(__file__).parents[2] / "docs" / "writing-a-plugin.md"
HOST_KEYS = {"type", "id", "when", "batch", "retry", "timeout_secs", "dead_letter", "required"}


def files_of_the_page():
    """The code blocks by the file name in their first line, the parts of one file put together."""
    files = {}
    for code in re.findall(r"^```(?:python|yaml)\n(# .*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        name = re.match(r"# ([\w.]+)", code)[1]
        files[name] = files.get(name, "") + code + "\n\n"
    return files


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The folder of the plugin as the page describes it."""
    for name, code in files_of_the_page().items():
        (tmp_path / name).write_text(code)
    return tmp_path


@pytest.fixture
def registry(plugin, monkeypatch):
    """The components that the page's module registers."""
    monkeypatch.syspath_prepend(plugin)
    monkeypatch.delitem(sys.modules, "teapot_plugin", raising=False)
    module = __import__("teapot_plugin")
    registry = Registry()
    registry.register_module(pluggy.PluginManager("edge"), module, "teapot")
    yield registry
    del sys.modules["teapot_plugin"]


def test_page_has_the_files_it_names():
    assert set(files_of_the_page()) == {"teapot_plugin.py", "setup.py", "edge.yaml", "test_teapot.py"}


def test_tests_of_the_page_pass(plugin):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-W",
        "error::DeprecationWarning:teapot_plugin",
    ]
    done = subprocess.run(
        [*command, "test_teapot.py"],
        check=False,
        cwd=plugin,
        env={"PYTHONPATH": str(plugin), "PYTHONDONTWRITEBYTECODE": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    n_tests = files_of_the_page()["test_teapot.py"].count("def test_")
    assert f"{n_tests} passed" in done.stdout


def test_setup_of_the_page_names_the_module(plugin):
    (call,) = (
        node.value
        for node in ast.parse((plugin / "setup.py").read_text()).body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    )
    given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    assert given["entry_points"] == {"edge.plugins": ["teapot = teapot_plugin"]}
    assert given["py_modules"] == ["teapot_plugin"]
    assert given["install_requires"] == ["edge-gateway"]


def test_configuration_of_the_page_fits_the_components(plugin, registry):
    config = yaml.safe_load((plugin / "edge.yaml").read_text())
    kinds = {"brewed_at": "enricher", "cool_down": "filter", "teapot": "sink"}
    entries = [*config["pipeline"], *config["sinks"].values()]
    assert {entry["type"] for entry in entries} == set(kinds)
    for entry in entries:
        component = registry.get(kinds[entry["type"]], entry["type"])
        assert build(component, **{name: value for name, value in entry.items() if name not in HOST_KEYS})


def test_components_of_the_page_are_documented(registry):
    assert len(registry.all()) == 3
    for component in registry.all():
        assert component.__doc__
        assert all(key.description for key in component.options)


def test_page_imports_only_the_api_and_the_helpers_of_the_gateway():
    for name, code in files_of_the_page().items():
        if name.endswith(".py"):
            imported = {node.module for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)}
            assert {module for module in imported if module.startswith("edge")} <= {"edge.api", "edge.testing"}, name
