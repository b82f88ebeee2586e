"""A plugin that is not ours: built as a distribution, installed beside the gateway's wheel, enabled in YAML, fed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SETUP = """
from setuptools import setup
setup(
    name="edge-teapot",
    version="1.2.3",
    py_modules=["teapot_plugin"],
    entry_points={"edge.plugins": ["teapot = teapot_plugin"]},
)
"""

PLUGIN = '''
from pathlib import Path
from voluptuous import All, Coerce, Optional, Range, Required
from edge.api import Sink, hookimpl


class TeapotSink(Sink):
    """Hand each batch to the teapot."""

    type = "teapot"
    options = {
        Required("spout", description="File that receives the lines."): str,
        Optional("sugar", default=1, description="Lumps per batch."): All(Coerce(int), Range(min=0, max=5)),
    }

    @hookimpl
    async def edge_deliver(self, batch):
        with Path(self.options["spout"]).open("ab") as spout:
            for line in batch.lines:
                spout.write(line + b"\\n")


@hookimpl
def edge_register_components(registry):
    registry.add(TeapotSink)
'''

CONFIG = """
server: {{listen: 127.0.0.1:{port}}}
admin: {{listen: 127.0.0.1:0}}
auth: {{mode: none}}
sinks:
  tea:
    type: teapot
    spout: tea.ndjson
log: {{format: json}}
"""


@pytest.mark.slow
def test_foreign_sink_receives_events_in_a_fresh_environment(
    tmp_path: Path, free_port: int, example_event: dict[str, object]
) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "dist", ROOT],
        check=True,
        capture_output=True,
        timeout=120,
    )
    source = tmp_path / "edge-teapot"
    source.mkdir()
    (source / "setup.py").write_text(SETUP)
    (source / "teapot_plugin.py").write_text(PLUGIN)
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True, timeout=120)
    wheel = next((tmp_path / "dist").glob("edge_gateway-*.whl"))
    subprocess.run(
        [environment / "bin/python", "-m", "pip", "install", "--quiet", wheel, source],
        check=True,
        timeout=300,
        capture_output=True,
    )
    work = tmp_path / "work"
    work.mkdir()
    (work / "edge.yaml").write_text(CONFIG.format(port=free_port))
    edge = environment / "bin/edge"
    shown = subprocess.run([edge, "plugins"], cwd=work, check=True, capture_output=True, text=True, timeout=60).stdout
    assert "teapot" in shown
    assert "edge-teapot 1.2.3" in shown
    process = subprocess.Popen([edge, "run", "-c", "edge.yaml"], cwd=work, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "the gateway is listening" in line:
                break
        request = urllib.request.Request(
            f"http://127.0.0.1:{free_port}/ingest",
            json.dumps(example_event).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            assert response.status == 200
        deadline = time.monotonic() + 5
        while not (work / "tea.ndjson").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.terminate()
        assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert [json.loads(line) for line in (work / "tea.ndjson").read_text().splitlines()] == [example_event]
