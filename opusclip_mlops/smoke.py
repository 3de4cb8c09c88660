"""The smoke test: a version is loaded and answers its own input example, in a process of its own.

The process works in a private folder, and its time is limited. When that is over, or an answer is
there, or the process that asked is gone, it is ended with all that it started. What it runs is the
model's own code, with the rights of who asks, but without the passwords, keys and tokens in its
environment: what is in files, or in other processes of that user, it may read. The process is no
fence against a model that means harm.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from opusclip_mlops.errors import RegistryError
from opusclip_mlops.redaction import one_line

_WORKER = "opusclip_mlops.smoke_worker"
_GRACE_S = 20.0
_MOST_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class SmokeResult:
    """Whether a version answered, why not, and how long it took in seconds."""

    passed: bool
    reason: str
    duration_s: float


def smoke_test(
    uri: str,
    *,
    timeout_s: float,
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
) -> SmokeResult:
    """Load a model with MLflow and let it answer its stored input example.

    It passes when the answer is not empty. Fetching, loading and answering all count. What the
    model prints is read and thrown away, but for the last line before it died.

    Args:
        uri: What MLflow loads: "models:/clip-generator/7".
        timeout_s: How long all of it may take, above 0.
        tracking_uri: Where runs are, MLflow's default when None.
        registry_uri: Where models are, the tracking server when None.

    Raises:
        RegistryError: The time is no such number, or no process can be started.
    """
    if not (math.isfinite(timeout_s) and timeout_s > 0):
        raise RegistryError(f"the time of a smoke test must be above 0 s, not {timeout_s}")
    started_s = time.monotonic()
    task = {
        "uri": uri,
        "timeout_s": timeout_s,
        "tracking_uri": tracking_uri,
        "registry_uri": registry_uri,
    }
    try:
        with _private_folder() as folder:
            passed, reason = _told({**task, "folder": folder}, timeout_s)
    except OSError as error:
        raise RegistryError(one_line(f"no smoke test of {uri}: {error}")) from error
    return SmokeResult(passed, reason, time.monotonic() - started_s)


@contextlib.contextmanager
def _private_folder() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="opusclip-smoke-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _told(task: dict[str, object], timeout_s: float) -> tuple[bool, str]:
    # A URI may hold a password: what is written to a pipe is in no list of processes.
    with subprocess.Popen(
        [sys.executable, "-P", "-m", _WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        bufsize=0,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(task).encode() + b"\n")
            line = _line(process.stdout, time.monotonic() + timeout_s + _GRACE_S)
        finally:
            _end(process)
    return _understood(line)


def _line(pipe: IO[bytes], deadline_s: float) -> bytes:
    """What comes before the pipe's end, or the deadline."""
    text = b""
    while len(text) < _MOST_BYTES and not text.endswith(b"\n"):
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 or not select.select([pipe], [], [], left_s)[0]:
            break
        read = os.read(pipe.fileno(), _MOST_BYTES)
        if not read:
            break
        text += read
    return text


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close its stdin, by which it ends all that it started; kill it where it does not."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _understood(line: bytes) -> tuple[bool, str]:
    try:
        content = json.loads(line)
        return content["passed"] is True, one_line(str(content["reason"]))
    except (ValueError, KeyError, TypeError):
        return False, "the process that watches the test was ended"
