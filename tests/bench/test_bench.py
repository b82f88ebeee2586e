"""The benchmark in a short form: its code runs, and what it writes is there. How fast anything is, nobody asserts."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.servers import KINDS

REPOSITORY = Path(__file__).parents[2]
PEERS_PYTHON = REPOSITORY / ".venv-bench" / "bin" / "python"
PEERS = ("fastapi", "fastapi_fsync", "litestar", "tornado", "aiohttp", "nginx")


def bench(out: Path, *arguments: str) -> Path:
    command = [sys.executable, "-m", "bench.run", "--rounds", "1", "--secs", "0.1", "--out", str(out), *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def figures_in(out: Path) -> list[dict[str, float]]:
    return [row["figures"][0] for row in json.loads((out / "figures.json").read_text())["points"]]


def test_every_kind_of_point_is_measured(tmp_path: Path) -> None:
    figures = figures_in(bench(tmp_path, "--only", "smoke"))
    assert len(figures) == 2
    for row in figures:
        assert row["per_sec"] > 0
        assert row["cpu_us"] > 0
        assert 0 < row["p50_ms"] <= row["p99_ms"] <= row["p999_ms"]
        assert row["rss_start_bytes"] > 10_000_000
    assert figures[1]["bytes_per_idle_connection"] >= 0
    assert [path.name for path in tmp_path.glob("run-*")] == []


@pytest.mark.parametrize("peer", PEERS)
def test_peers_take_the_same_requests(tmp_path: Path, peer: str) -> None:
    if not PEERS_PYTHON.exists() or not KINDS[peer].is_installed:
        pytest.skip("the peers are not installed: make bench")
    figures = figures_in(bench(tmp_path, "--only", "single hundred", "--servers", peer))
    assert [row["cpu_us"] > 0 for row in figures] == [True, True]


def page_of(points: Sequence[dict[str, object]], folder: Path) -> str:
    """Return the page that the benchmark makes of made-up figures."""
    facts = {
        "date": "2026-01-02 03:04 UTC", "commit": "abc1234", "processor": "some", "cores": 2, "kernel": "6.1",
        "python": "3.11.7", "memory_gib": 4.0, "file_system": "ext4", "fdatasync_p50_ms": 0.2, "fdatasync_p99_ms": 0.5,
        "first_use_ms": 2.0, "next_use_ms": 0.1, "load_average": 0.1, "versions": {"fastapi": "1.2.3"},
    }  # fmt: skip
    axes = [
        "single",
        "hundred",
        "batch",
        "components",
        "sinks",
        "connections",
        "idle",
        "durability",
        "workers",
        "heads",
    ]
    backlog = [{"batch_events": 100, "events": 5000, "taken_per_sec": 200_000.0, "delivered_per_sec": 500_000.0}]
    kept = {
        "facts": facts, "load": "load.c", "used_memory": True, "rounds": 3, "secs": 4.0, "axes": axes, "points": points,
        "backlog": backlog,
    }  # fmt: skip
    (folder / "figures.json").write_text(json.dumps(kept))
    command = [sys.executable, "-m", "bench.report", str(folder / "figures.json"), str(folder)]
    subprocess.run(command, cwd=REPOSITORY, timeout=60, check=True)
    return (folder / "benchmarks.md").read_text()


def measured(cpu_us: Sequence[float], **point: object) -> dict[str, object]:
    names = (
        "start_secs", "rss_start_bytes", "rss_loaded_bytes", "bytes_per_idle_connection", "per_sec", "delivery_secs",
        "p50_ms", "p99_ms", "p999_ms", "unfinished", "generator_share",
    )  # fmt: skip
    return {"point": point, "figures": [{**dict.fromkeys(names, 0.5), "cpu_us": cpu} for cpu in cpu_us]}


def test_page_shows_medians_and_ratios_to_fastapi(tmp_path: Path) -> None:
    points = [
        measured([40, 50, 900], server="ours"),
        measured([100, 125, 130], server="fastapi"),
        measured([400, 500, 600], server="ours", batch_events=100),
        measured([60, 70, 80], server="ours", components=20),
        measured([30, 31, 32], server="ours", connections=128, workers=2, shares_cores=True),
        measured([80, 90, 95], server="ours", head="new"),
    ]
    page = page_of(points, tmp_path)
    single = next(line for line in page.splitlines() if line.startswith("| ours | 0 |"))
    assert "| 50.0 | 40.0 - 900.0 | 0.40 |" in single
    assert "| 5.00 | 4.0 - 6.0 |" in page
    assert "| 2 shared | 0 | 0 | 31.0 | 31.0 |" in page
    assert "The free memory was filled" in page
    assert "takes 2.00 ms of processor time the first time, 0.10 ms again" in page
    assert "| new | ours | 0 | 0 | 90.0 | 90.0 |" in page
    assert "| 100 | 5,000 | 200,000 | 500,000 | 2.5 |" in page
    assert "| 20 | 0 | 0 | 70.0 | 70.0 | 0.60 |" in page  # 60 / 100, 70 / 125, 80 / 130
    assert "fastapi 1.2.3" in page
    assert "do not trust" not in page
