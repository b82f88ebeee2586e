"""The guard against getting slower unnoticed: counts the instructions of a fixed work, where seconds would be noise.

``python -m bench.instructions`` compares with what `instructions.json` has for this Python. It ends with 1 when a
figure has grown beyond the tolerance, with 2 when nothing can be compared here (no valgrind, no compiler, no figures of
this Python). ``--record`` writes the figures of this Python into that file.

A figure is instructions of one event, as a multiple of a reference work that is not ours: it stays within a percent
from run to run on a busy machine. `perf stat` would do as well, but most virtual machines do not let it count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from bench.workload import BATCH_EVENTS, BATCHES, REFERENCES, SINGLES

HERE: Final = Path(__file__).parent
RECORDED: Final = HERE / "instructions.json"
TOLERANCE: Final = 0.10
"""Room for another build of the same Python and other releases of what ours stands on; a real loss is larger."""
UNITS: Final = {"reference": REFERENCES, "single": SINGLES, "new_head": SINGLES, "batch": BATCHES * BATCH_EVENTS}
TIMEOUT_SECS: Final = 600

EXIT_GROWN, EXIT_SKIPPED = 1, 2


class CannotCountError(Exception):
    """Instructions cannot be counted here; says why, and what would help."""


def count() -> dict[str, float]:
    """Return the instructions of one event, in units of the reference work, for single events and for batches."""
    valgrind, compiler = shutil.which("valgrind"), shutil.which("cc") or shutil.which("gcc")
    if valgrind is None or compiler is None:
        raise CannotCountError("valgrind or a C compiler is missing: apt-get install -y valgrind gcc")
    with tempfile.TemporaryDirectory(prefix="edge-count-") as name:
        folder = Path(name)
        library = _library(compiler, folder)
        out = folder / "counts"
        command = [
            valgrind, "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}",
            sys.executable, "-m", "bench.workload", str(library),
        ]  # fmt: skip
        # A fixed seed: the order of sets and the collisions of dicts are then the same in every run.
        environ = {**os.environ, "PYTHONHASHSEED": "0"}
        done = subprocess.run(  # noqa: S603 - our own command
            command, cwd=HERE.parent, env=environ, capture_output=True, text=True, timeout=TIMEOUT_SECS, check=False
        )
        if done.returncode != 0:
            raise CannotCountError(f"valgrind cannot run this Python: {done.stderr[-2000:]}")
        counted = _totals(folder)
    costs = {kind: counted[kind] / units for kind, units in UNITS.items()}
    return {kind: round(costs[kind] / costs["reference"], 3) for kind in UNITS if kind != "reference"}


def _library(compiler: str, folder: Path) -> Path:
    library = folder / "counted.so"
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(HERE / "counted.c")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    if done.returncode != 0:
        raise CannotCountError(f"the headers of valgrind are missing: {done.stderr.strip()[-500:]}")
    return library


def _totals(folder: Path) -> dict[str, int]:
    """Return the instructions of each part that was counted, out of callgrind's files."""
    totals = {}
    for path in folder.glob("counts.*"):
        text = path.read_text()
        name = re.search(r"^desc: Trigger: Client Request: (\w+)$", text, re.MULTILINE)
        total = re.search(r"^totals: (\d+)$", text, re.MULTILINE)
        if name and total:
            totals[name[1]] = int(total[1])
    if totals.keys() != UNITS.keys():
        raise CannotCountError(f"callgrind counted {sorted(totals)} instead of {sorted(UNITS)}")
    return totals


def _key() -> str:
    """Return what the figures depend on most: the Python and the processor's kind."""
    return f"{platform.python_implementation()} {sys.version_info[0]}.{sys.version_info[1]} {platform.machine()}"


def main() -> None:
    """Compare, or record."""
    parser = argparse.ArgumentParser(prog="python -m bench.instructions", description="Count instructions.")
    parser.add_argument("--record", action="store_true", help="write the figures of this Python into instructions.json")
    parser.add_argument("--recorded", type=Path, default=RECORDED, help="the file to compare with")
    options = parser.parse_args()
    recorded = json.loads(options.recorded.read_text()) if options.recorded.exists() else {}
    known = recorded.get(_key())
    if known is None and not options.record:
        print(f"there are no figures of {_key()}: python -m bench.instructions --record", file=sys.stderr)
        sys.exit(EXIT_SKIPPED)
    try:
        counted = count()
    except CannotCountError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_SKIPPED)
    if options.record:
        recorded[_key()] = counted
        options.recorded.write_text(json.dumps(recorded, indent=2, sort_keys=True) + "\n")
        print(f"recorded for {_key()}: {counted}")
        return
    assert known is not None  # noqa: S101 - tells mypy what was left above
    grown = [kind for kind, figure in counted.items() if figure > known.get(kind, figure) * (1 + TOLERANCE)]
    for kind, figure in counted.items():
        print(f"{kind:8} {figure:8.3f} of the reference work an event, recorded {known.get(kind, figure):8.3f}")
    if grown:
        print(
            f"more than {TOLERANCE:.0%} above what is recorded: {', '.join(grown)}. If that is worth it: "
            "python -m bench.instructions --record"
        )
        sys.exit(EXIT_GROWN)


if __name__ == "__main__":
    main()
