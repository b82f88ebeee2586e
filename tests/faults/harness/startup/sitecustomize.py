"""Makes the changes that EDGE_FAULTS_PATCH names in a process that the suite starts; Python imports this by itself.

Nothing of it is in the shipped code: a process gets here only with this directory on its PYTHONPATH.
"""

import os

if os.environ.get("EDGE_FAULTS_PATCH"):
    from harness import failpoints, mutants

    for _name in os.environ["EDGE_FAULTS_PATCH"].split(","):
        if _name.startswith("at:"):
            failpoints.install(_name)
        else:
            mutants.install(_name)
