"""Folders on this machine: the journal, what dead runs left in it, MLflow's traps."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from opusclip_mlops import run_status
from opusclip_mlops.amounts import size_text
from opusclip_mlops.doctor.findings import (
    LOADING,
    Check,
    Finding,
    Subject,
    failed,
    is_web,
    note,
    ok,
    skipped,
    warning,
)
from opusclip_mlops.environment import PYTHON_ENV_FILE, WITHOUT_LINK, mlflow_environment_path
from opusclip_mlops.errors import ConfigError, OpusclipError

LEAST_FREE_BYTES = 64 * 2**20
"""One segment of a journal."""
_COMFORTABLE_BYTES = 2**30
_LEAST_FREE_FILES = 1000
_LONGEST_SYNC_S = 0.5
_OTHERS_WRITE, _OTHERS_ANY = stat.S_IWGRP | stat.S_IWOTH, stat.S_IRWXG | stat.S_IRWXO
_OVER_NETWORK = ("nfs", "cifs", "smb", "9p", "fuse.sshfs", "fuse.s3fs", "lustre", "ceph")
_IN_MEMORY = ("tmpfs", "ramfs")
_WRITTEN = bytes(64 * 1024)


def journal(subject: Subject) -> Finding:
    """Whether the journal can be written, is private, and lies on a disk of this machine."""
    folder = subject.journal_dir
    if folder.exists() and not folder.is_dir():
        return failed(f"{folder} is not a folder", "name another one in OPUSCLIP_JOURNAL_DIR")
    try:
        there = existing(folder)
        sync_s, openness = _sync_s(there), [*_openness(folder)]
    except OSError as error:
        todo = "make it writable for you, or name another one in OPUSCLIP_JOURNAL_DIR"
        return failed(f"{folder} cannot be written: {error.strerror}", todo)
    state = "" if there == folder else ", not there yet"
    kind = _file_system(there)
    found = ok(f"{folder}{state}, {kind}, a write is on disk after {sync_s * 1000:.0f} ms")
    for wrong in (*openness, *_odd_disk(kind, sync_s)):
        found = found.worsened(wrong)
    return found


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(one for one in (folder, *folder.parents) if one.exists())


def _sync_s(folder: Path) -> float:
    """How long it takes until a few bytes are on the disk; the file is gone afterwards."""
    with tempfile.TemporaryFile(dir=folder, prefix=".opusclip-doctor-") as file:
        file.write(_WRITTEN)
        file.flush()
        began_s = time.monotonic()
        os.fsync(file.fileno())
        return time.monotonic() - began_s


def _openness(folder: Path) -> Iterator[Finding]:
    """Whoever else may read or change the journals."""
    if not folder.exists():
        return
    about = folder.stat()
    if about.st_uid != os.geteuid():
        yield warning(f"it belongs to user {about.st_uid}", "use a journal folder of your own")
    if about.st_mode & _OTHERS_WRITE and not about.st_mode & stat.S_ISVTX:
        mode = f"{stat.S_IMODE(about.st_mode):o}"
        yield warning(f"others may write it (mode {mode})", f"chmod go-w {folder}")
    runs = [one for one in folder.iterdir() if not one.name.startswith(".") and one.is_dir()]
    if is_open := [one for one in runs if _mode(one) & _OTHERS_ANY]:
        seen = f"others may enter {len(is_open)} of its {len(runs)} runs"
        yield warning(seen, f"chmod -R go-rwx {folder}")


def _mode(folder: Path) -> int:
    """Who may enter a run's folder; nobody where it was delivered meanwhile, and is gone."""
    try:
        return folder.stat().st_mode
    except FileNotFoundError:
        return 0


def _file_system(folder: Path) -> str:
    """The kind of file system a folder is on, `unknown` where the machine does not say."""
    resolved = folder.resolve()
    parts = [one for one in psutil.disk_partitions(all=True) if resolved.is_relative_to(
        one.mountpoint
    )]  # fmt: skip
    return max(parts, key=lambda one: len(one.mountpoint)).fstype if parts else "unknown"


def _odd_disk(kind: str, sync_s: float) -> Iterator[Finding]:
    if kind.startswith(_OVER_NETWORK):
        todo = "put the journal on a local disk: OPUSCLIP_JOURNAL_DIR"
        yield warning("that is a network file system, whose locks and writes may be lost", todo)
    if kind in _IN_MEMORY:
        todo = "put the journal on a disk: OPUSCLIP_JOURNAL_DIR"
        yield warning("that is memory, and gone after a restart", todo)
    if sync_s > _LONGEST_SYNC_S:
        yield warning("that is slow", "a power cut may take more than a second of what was logged")


def room(subject: Subject) -> Finding:
    """How much room the journal's disk has."""
    return room_in(subject.journal_dir)


def room_in(folder: Path) -> Finding:
    """How much room a folder's disk has, in bytes and in files."""
    try:
        about = os.statvfs(existing(folder))
    except OSError as error:
        return failed(f"{folder}: {error.strerror}", "mount it, or name another folder")
    free_bytes = about.f_bavail * about.f_frsize
    seen = f"{size_text(free_bytes)} free for {folder}"
    if free_bytes < LEAST_FREE_BYTES:
        return failed(seen, "make room: what is logged finds none")
    if free_bytes < _COMFORTABLE_BYTES:
        return warning(seen, "make room: a long outage of a server fills it")
    if about.f_files and about.f_favail < _LEAST_FREE_FILES:
        return warning(f"{seen}, but {about.f_favail} files only", "remove files: inodes run out")
    return ok(seen)


def leftovers(subject: Subject) -> Finding:
    """Runs that ended here and have not been delivered whole."""
    try:
        runs = run_status.status(journal_dir=subject.journal_dir)
    except OpusclipError as error:
        return failed(str(error), "make it readable for you")
    idle = [one for one in runs if one.state != "training" and not one.is_shipped]
    going = f"{len(runs) - len(idle)} on their way"
    if not idle:
        return ok(f"no run was left behind, {going}")
    left_bytes = sum(one.backlog_bytes for one in idle)
    several = "s" if len(idle) > 1 else ""
    seen = f"{len(idle)} run{several} left behind with {size_text(left_bytes)}, {going}"
    return warning(seen, f"opusclip recover --all --journal-dir {subject.journal_dir}")


def store(subject: Subject) -> Finding:
    """Whether a folder of MLflow's old file store stands where its default looks first."""
    folder = subject.folder / "mlruns"
    stray = next(iter(sorted(folder.glob("[0-9]*/meta.yaml"))), None)
    if stray is None:
        return ok(f"no old file store in {subject.folder}")
    seen = f"{stray} turns MLflow's default to the old file store, which it refuses"
    todo = f"mlflow migrate-filestore, or move {stray.parent} away; or set MLFLOW_TRACKING_URI"
    return note(seen, todo) if is_web(subject.tracking_uri) else warning(seen, todo)


def environment(subject: Subject) -> Finding:
    """Whether a plain `mlflow run` finds an environment for the project in the folder."""
    if not (subject.folder / PYTHON_ENV_FILE).is_file():
        return skipped(f"no {PYTHON_ENV_FILE} in {subject.folder}")
    try:
        with LOADING:
            link = mlflow_environment_path(subject.folder)
    except ConfigError as error:
        return warning(str(error), WITHOUT_LINK)
    if not link.exists():
        broken = "a link to nowhere" if link.is_symlink() else "not there"
        return note(f"mlflow run would build {link}: {broken}", "opusclip link-env")
    target = link.resolve()
    if target != Path(sys.prefix).resolve():
        return note(f"mlflow run uses {target}, not {sys.prefix}", "opusclip link-env")
    return ok(f"mlflow run uses {target}")


CHECKS = (
    Check(name="journal.folder", look=journal),
    Check(name="journal.room", look=room),
    Check(name="journal.leftovers", look=leftovers),
    Check(name="mlflow.store", look=store),
    Check(name="mlflow.environment", look=environment),
)
"""In the order they are told in."""
