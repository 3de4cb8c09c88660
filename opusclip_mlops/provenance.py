"""Where a run comes from: the code's commit, the libraries, the user and the machine."""

import functools
import getpass
import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

LIBRARIES = ("opusclip-mlops", "mlflow", "torch", "numpy", "av", "torchmetrics", "safetensors")


def git_commit(folder: Path) -> str | None:
    """The commit that was checked out there when first asked, None outside a repository."""
    return _git(folder.absolute(), "rev-parse", "--verify", "HEAD")


def git_dirty(folder: Path) -> bool | None:
    """Whether tracked files differed from it when first asked, None outside a repository."""
    status = _git(folder.absolute(), "status", "--porcelain", "--untracked-files=no")
    return None if status is None else bool(status)


@functools.cache
def library_versions() -> Mapping[str, str]:
    """Versions of the libraries a training run depends on, those that are installed."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def run_tags(folder: Path) -> dict[str, str]:
    """Tags that say where a run comes from, under MLflow's own names where it has them."""
    commit = git_commit(folder)
    tags = {
        "mlflow.source.name": sys.argv[0] or sys.executable,
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
        "opusclip.host": socket.gethostname(),
        **{f"opusclip.library.{name}": version for name, version in library_versions().items()},
    }
    if commit:
        tags |= {
            "mlflow.source.git.commit": commit,
            "opusclip.git_dirty": str(git_dirty(folder)).lower(),
        }
    return tags


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


@functools.cache
def _git(folder: Path, *arguments: str) -> str | None:
    # Without optional locks, so that no `git commit` of the user's finds the index taken.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
