"""Plugins of a test: a directory that looks like an installed distribution, for the PYTHONPATH of a gateway."""

from __future__ import annotations

from pathlib import Path


def install(folder: Path, name: str, source: str) -> Path:
    """Write the module `name` and its entry point below `folder`; return the directory for ``rig.start(plugins=…)``.

    `source` registers its components like any plugin, with `edge_register_components`; it may import the harness.
    """
    directory = folder / f"plugin-{name}"
    about = directory / f"{name}-1.0.dist-info"
    about.mkdir(parents=True)
    (directory / f"{name}.py").write_text(source)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[edge.plugins]\n{name} = {name}\n")
    return directory
