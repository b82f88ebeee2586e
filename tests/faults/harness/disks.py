"""Disks of a test's own, small enough to be filled, and what takes their room. They are unmounted whatever happens."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MIB = 1 << 20


@contextmanager
def tmpfs(at: Path, n_bytes: int) -> Iterator[Path]:
    """Mount a file system in memory that holds `n_bytes`; only for root."""
    at.mkdir(parents=True, exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", f"size={n_bytes},nosuid,nodev", "edge-faults", str(at))
    try:
        yield at
    finally:
        unmount(at)


@contextmanager
def ext4(at: Path, n_bytes: int) -> Iterator[Path]:
    """Mount an image file with ext4; only for root, where there are loop devices."""
    image = at.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(n_bytes)
    # No blocks are kept for root: a disk that is full for everybody is full for a test that runs as root too.
    run("mkfs.ext4", "-q", "-m", "0", str(image))
    at.mkdir(parents=True, exist_ok=True)
    _mount_image(at)
    try:
        yield at
    finally:
        unmount(at)


def break_ext4(at: Path) -> None:
    """Have a mounted image meet an error, whereupon it lets nobody write any more, as disks do that fail."""
    device = at.stat().st_dev
    name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
    Path(f"/sys/fs/ext4/{name}/trigger_fs_error").write_text("1")


def repair_ext4(at: Path) -> None:
    """Unmount a broken image that nobody uses any more, repair it, and mount it again."""
    run("umount", str(at))
    done = subprocess.run(["e2fsck", "-fy", str(at.with_suffix(".img"))], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout
    _mount_image(at)


def _mount_image(at: Path) -> None:
    run("mount", "-o", "loop,nosuid,nodev,errors=remount-ro", str(at.with_suffix(".img")), str(at))


def unmount(at: Path) -> None:
    """Unmount; what is still in use goes with its last user."""
    if os.path.ismount(at):
        with suppress(subprocess.CalledProcessError):
            run("umount", str(at))
    if os.path.ismount(at):
        run("umount", "--lazy", str(at))


def run(*command: str) -> None:
    """Run a program; raises `CalledProcessError` with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)


def free_bytes(at: Path) -> int:
    """Return the room that anybody may still take."""
    status = os.statvfs(at)
    return status.f_bavail * status.f_frsize


class Filler:
    """Somebody else who takes the room of a disk: a process other than the gateway, which is all that matters."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        self._size = 0

    def top_up(self) -> int:
        """Take what is free, down to the last block if the others leave it; returns the bytes left."""
        step = free_bytes(self._path)
        while step >= 4096:
            try:
                os.posix_fallocate(self._fd, self._size, step)
            except OSError:
                step //= 2
            else:
                self._size += step
        return free_bytes(self._path)

    def hold(self, secs: float) -> None:
        """Keep the disk full for a while, also when the gateway gives room back."""
        end = time.monotonic() + secs
        while time.monotonic() < end:
            self.top_up()
            time.sleep(0.01)

    def release(self) -> None:
        """Give all of it back."""
        os.ftruncate(self._fd, 0)
        self._size = 0

    def close(self) -> None:
        """Go away for good."""
        os.close(self._fd)
        self._path.unlink()
