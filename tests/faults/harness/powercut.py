"""A disk of our own whose power can be cut: an ext4 file system in a file, on a loop device.

The cut is the ioctl that ext4 has for testing this (EXT4_IOC_SHUTDOWN without a flush of the journal): from that
moment on not one more byte goes to the disk, what was only in memory is gone, and every call of those who still run
fails with EIO. What the file holds then is what a disk holds after a power cut; mounting it again replays the journal.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from pathlib import Path

_SHUTDOWN = 0x8004587D
"""_IOR('X', 125, __u32)"""
_NO_LOG_FLUSH = 2


def missing() -> str:
    """Return why there can be no such disk here; empty when there can."""
    if os.geteuid() != 0:
        return "needs root, to mount a file system"
    if tools := [tool for tool in ("losetup", "mkfs.ext4", "mount", "umount") if shutil.which(tool) is None]:
        return f"needs {', '.join(tools)}; apt-get install -y mount e2fsprogs"
    if not Path("/dev/loop-control").exists():
        return "needs loop devices"
    return ""


def _call(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise OSError(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


class CutDisk:
    """The disk; `path` is where it is mounted."""

    def __init__(self, base: Path, megabytes: int) -> None:
        self.path = base / "disk"
        self.path.mkdir()
        self._image = base / "disk.img"
        with self._image.open("wb") as file:
            file.truncate(megabytes << 20)
        _call("mkfs.ext4", "-q", "-F", self._image)
        self._loop = ""
        self.mount()

    def mount(self) -> None:
        """Make what the disk holds visible again; replays the journal."""
        self._loop = _call("losetup", "--find", "--show", self._image)
        try:
            _call("mount", "-t", "ext4", self._loop, self.path)
        except OSError:
            self._detach()
            raise

    def cut(self) -> None:
        """Take the power away, now."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def unmount(self) -> None:
        """Take the disk off; nobody may be using it any more."""
        if os.path.ismount(self.path):
            _call("umount", self.path)
        self._detach()

    def _detach(self) -> None:
        loop, self._loop = self._loop, ""
        if loop:
            _call("losetup", "--detach", loop)

    def remove(self) -> None:
        """Leave nothing behind, whatever state it is in."""
        if os.path.ismount(self.path):
            subprocess.run(["umount", "--lazy", str(self.path)], check=False, capture_output=True, timeout=30)
        if self._loop:
            subprocess.run(["losetup", "--detach", self._loop], check=False, capture_output=True, timeout=30)
        self._image.unlink(missing_ok=True)
