"""What some rows need of the machine. Where it is missing the row is left out, and says what would bring it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from harness.record import Row

INSTALL = {
    "strace": "apt-get install -y strace",
    "prlimit": "apt-get install -y util-linux",
    "setpriv": "apt-get install -y util-linux",
    "losetup": "apt-get install -y mount",
    "mkfs.ext4": "apt-get install -y e2fsprogs",
    "faketime": "apt-get install -y faketime",
    "promtool": "apt-get install -y prometheus",
}


def tool(row: Row, *names: str) -> None:
    """Leave the row out unless these programs are there."""
    for name in names:
        if shutil.which(name) is None:
            row.skip(f"{name} is missing: {INSTALL[name]}")


def root(row: Row) -> None:
    """Leave the row out unless it may mount things."""
    if os.geteuid() != 0:
        row.skip("only root may mount a file system: run make faults as root")


def loop_devices(row: Row) -> None:
    """Leave the row out unless files can be mounted as disks."""
    root(row)
    tool(row, "losetup", "mkfs.ext4")
    if not Path("/dev/loop-control").exists():
        row.skip("there are no loop devices: modprobe loop")
