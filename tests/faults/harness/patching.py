"""How changes get into the processes that a test starts: through `sitecustomize`, at run time, by name.

``at:<point>:<count>`` kills the process at a named point of its work (`harness.failpoints`); any other name is a seeded
defect (`harness.mutants`). The names in EDGE_FAULTS_MUTANT go into every process of the suite, pytest's own included.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent


def environ(patch: Sequence[str] = ()) -> dict[str, str]:
    """Return the variables of the environment that bring changes into a new Python process; none without changes."""
    names = [*patch, *filter(None, os.environ.get("EDGE_FAULTS_MUTANT", "").split(","))]
    if not names:
        return {}
    paths = [str(HERE / "startup"), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    return {"EDGE_FAULTS_PATCH": ",".join(names), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
