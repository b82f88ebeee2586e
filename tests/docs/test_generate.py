import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge.config import load
from edge.metrics import TABLE

REPOSITORY = Path(__file__).parents[2]
GENERATOR = REPOSITORY / "docs" / "generate.py"
REFERENCE = REPOSITORY / "docs" / "reference"


@pytest.fixture(scope="module")
def generator() -> dict[str, Any]:
    return runpy.run_path(str(GENERATOR))


def test_pages_are_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, str(GENERATOR), "--check"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_check_names_the_page_that_drifted_and_writes_nothing(
    generator: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generator["run"](check=False, root=tmp_path) == 0
    capsys.readouterr()
    assert generator["run"](check=True, root=tmp_path) == 0
    page = tmp_path / "docs" / "reference" / "metrics.md"
    drifted = page.read_text().replace("edge_build_info", "edge_built_info")
    page.write_text(drifted)
    assert generator["run"](check=True, root=tmp_path) == 1
    told = capsys.readouterr().err
    assert told.startswith("docs/reference/metrics.md is not what the code says; run: python docs/generate.py\n")
    assert "components.md" not in told
    assert page.read_text() == drifted


def test_output_depends_on_the_code_alone(generator: dict[str, Any], tmp_path: Path) -> None:
    again = subprocess.run(
        [sys.executable, "-c", f"import runpy; m = runpy.run_path({str(GENERATOR)!r}); print(m['generated']())"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONHASHSEED": "7", "COLUMNS": "40", "TZ": "Asia/Tokyo", "FORCE_COLOR": "1"},
        timeout=60,
    )
    assert again.stdout == f"{generator['generated']()}\n"
    text = "".join(generator["generated"]().values())
    assert str(REPOSITORY) not in text
    assert "\x1b" not in text


def test_every_metric_and_every_component_has_its_entry(registry: Any) -> None:
    metrics = (REFERENCE / "metrics.md").read_text()
    assert [row.name for row in TABLE if f"| `{row.name}` |" not in metrics] == []
    components = (REFERENCE / "components.md").read_text()
    built_in = [one.type for one in registry.all() if one.__module__.startswith("edge_plugins.")]
    assert re.findall(r"^### (\w+)$", components, re.MULTILINE) == built_in


def test_every_option_has_a_sentence() -> None:
    for name in ("components.md", "options.md", "cli.md"):
        for line in (REFERENCE / name).read_text().splitlines():
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if cells and cells[0].startswith("`") and len(cells) > 2:
                assert re.fullmatch(r".*\w.*[.;`].*", cells[-1]), f"{name}: {line}"
                assert len(cells) == 3 or cells[1], f"{name}: what it takes is not said: {line}"


def test_examples_of_the_components_page_are_configurations_that_load(registry: Any, tmp_path: Path) -> None:
    text = (REFERENCE / "components.md").read_text()
    examples = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(examples) == len(re.findall(r"^### (?!Options)", text, re.MULTILINE))
    for number, example in enumerate(examples):
        path = tmp_path / f"{number}.yaml"
        sinks = "" if example.startswith("sinks:") else "sinks: {nowhere: {type: blackhole}}\n"
        path.write_text(f"auth: {{mode: none}}\n{sinks}{example}")
        load(path, registry, {"CRM_TOKEN": "t"})


def test_generator_runs_from_anywhere(tmp_path: Path) -> None:
    assert shutil.which(sys.executable)
    done = subprocess.run(
        [sys.executable, str(GENERATOR), "--check"], cwd=tmp_path, capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0
