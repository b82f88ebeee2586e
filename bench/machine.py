"""What of the machine and the code the figures depend on."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bench.servers import KINDS
from bench.used_memory import costs_ms

SYNCS: Final = 200
SYNC_BYTES: Final = 4096


def facts(folder: Path, peers_python: Path | None) -> dict[str, Any]:
    """Return what the page says about where it ran; `folder` lies on the disk that is written to."""
    sync_ms = sorted(_sync_latencies_ms(folder))
    first_use_ms, next_use_ms = costs_ms(folder)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _first_line("git", "rev-parse", "--short", "HEAD")
        + (" with changes" if _first_line("git", "status", "--porcelain", "--untracked-files=no") else ""),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": sys.version.split()[0],
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "file_system": file_system(folder),
        "first_use_ms": first_use_ms,
        "next_use_ms": next_use_ms,
        "fdatasync_p50_ms": sync_ms[len(sync_ms) // 2],
        "fdatasync_p99_ms": sync_ms[int(len(sync_ms) * 0.99)],
        "load_average": round(os.getloadavg()[0], 2),
        "versions": _versions(peers_python) if peers_python is not None else {},
    }


def _sync_latencies_ms(folder: Path) -> list[float]:
    path = folder / "fdatasync"
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    latencies = []
    try:
        for _ in range(SYNCS):
            os.write(file, b"x" * SYNC_BYTES)
            started = time.perf_counter()
            os.fdatasync(file)
            latencies.append((time.perf_counter() - started) * 1e3)
    finally:
        os.close(file)
        path.unlink()
    return latencies


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def file_system(folder: Path) -> str:
    """Return the type of the file system that holds the folder: that of the longest mount point above it."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    above = [(point, kind) for _, point, kind, *_ in mounts if folder.resolve().is_relative_to(point)]
    return max(above, key=lambda mount: len(mount[0]))[1] if above else "unknown"


def _versions(peers_python: Path) -> dict[str, str]:
    """Return the versions of the packages that the peers stand on."""
    names = [name for kind in KINDS.values() for name in kind.packages]
    code = "import sys, importlib.metadata as m; print(*(m.version(name) for name in sys.argv[1:]))"
    return dict(zip(names, _first_line(str(peers_python), "-c", code, *names).split(), strict=True))


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own commands
    except OSError:
        return ""
    return done.stdout.partition("\n")[0].strip() if done.returncode == 0 else ""
