"""The guard against getting slower unnoticed, where instructions can be counted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SKIPPED = 2


def guard(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.instructions", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_an_event_takes_no_more_instructions_than_recorded() -> None:
    done = guard()
    if done.returncode == SKIPPED:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr


def test_another_python_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    recorded = tmp_path / "instructions.json"
    recorded.write_text(json.dumps({"CPython 2.7 pdp11": {"single": 1.0, "batch": 1.0}}))
    done = guard("--recorded", str(recorded))
    assert done.returncode == SKIPPED
    assert "there are no figures of" in done.stderr
