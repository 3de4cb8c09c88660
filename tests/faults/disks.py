"""Small disks, mounted and filled by a test that runs as root."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

_BLOCK_BYTES = 4096


@dataclass(frozen=True)
class SmallDisk:
    """A file system in memory, of a size that can be changed."""

    path: Path

    def fill(self) -> None:
        """Take all the room there is, with a file that stands in nobody's way."""
        ballast = (self.path / "ballast").open("ab", buffering=0)
        with ballast, contextlib.suppress(OSError):
            while ballast.write(bytes(_BLOCK_BYTES)):
                pass

    def grow(self) -> None:
        """Make room."""
        self._remount("size=64m")

    def protect(self) -> None:
        """Let nobody write."""
        self._remount("ro")

    def _remount(self, option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", str(self.path)], check=True)


@contextlib.contextmanager
def small_disk(path: Path, *, size_kib: int = 2048) -> Iterator[SmallDisk]:
    """Mount a small disk until the block ends; skips the test where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    path.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "none", str(path)]
    if subprocess.run(argv, check=False).returncode != 0:
        pytest.skip("this machine mounts no tmpfs")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
