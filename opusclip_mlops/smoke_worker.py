"""The process of a smoke test: it starts others, the last with the model in it, and watches them.

`smoke` writes the task to its stdin and reads what came of it from its stdout. It goes on no longer
than its stdin is open. The first one that it starts fetches the model's files, with the credentials
of who asks. The second one, whose environment names no secret, loads the model and asks it.
Processes that the model starts and leaves behind become children of the watcher, whatever session
they are in, so that they are found and ended too.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from opusclip_mlops.launch import children_of
from opusclip_mlops.lean_mlflow import load_mlflow
from opusclip_mlops.redaction import one_line, redacted

_COMMAND = (sys.executable, "-P", "-m", "opusclip_mlops.smoke_worker")
_FETCHED = "fetched"
_SECRET = re.compile(
    r"PASSW|PASSPHRASE|_PWD|SECRET|CREDENTIAL|CONNECTION_STRING|(?:TOKENS?|KEYS?)(?:_|$)",
    re.IGNORECASE,
)
_SET_DEATH_SIGNAL, _SET_SUBREAPER = 1, 36
_END_S = 10.0
_TAIL_BYTES = 4096
_READ_BYTES = 65536
_MOST_CHARACTERS = 10_000


def main() -> None:
    """Watch the task on stdin, or do the part of it that the watcher has started this for."""
    if len(sys.argv) == 1:
        _watch(json.loads(sys.stdin.readline()))
        return
    part, saying = sys.argv[1:]
    voice = _Voice(int(saying))
    sys.excepthook = voice.failed
    _PARTS[part](json.loads(sys.stdin.read()), voice)


def _watch(task: dict[str, Any]) -> None:
    """Have the files fetched, then the model loaded and asked, by one process each."""
    folder, timeout_s = Path(task["folder"]), task["timeout_s"]
    deadline_s = time.monotonic() + timeout_s
    ctypes.CDLL(None).prctl(_SET_SUBREAPER, 1, 0, 0, 0)
    try:
        environment = _environment(folder)
        came = _came("fetch", task, environment, deadline_s)
        if came.passed:
            known = without_secrets(environment)
            came = _came("answer", {"folder": str(folder)}, known, deadline_s)
        reason = came.reason or f"no answer within {timeout_s:g} s, while {came.doing}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.write(json.dumps({"passed": came.passed, "reason": one_line(reason)}) + "\n")


def _environment(folder: Path) -> dict[str, str]:
    temporary = folder / "tmp"
    temporary.mkdir()
    ours = {"TMPDIR": str(temporary), "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    return {**os.environ, **ours}


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables whose name names no secret, and whose value is no URI with a password."""
    return {
        name: value
        for name, value in environment.items()
        if not _SECRET.search(name) and not ("://" in value and redacted(value) != value)
    }


def _came(
    part: str, task: dict[str, Any], environment: Mapping[str, str], deadline_s: float
) -> _Watch:
    """What comes of a process for a part of the task; it is ended with all that it started."""
    (words, saying), (output, printing), (reading, telling) = (os.pipe() for _ in range(3))
    watcher = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            _become_another(watcher, reading, printing)
            os.set_inheritable(saying, True)
            os.execve(sys.executable, [*_COMMAND, part, str(saying)], environment)
        finally:
            os._exit(1)
    try:
        os.write(telling, json.dumps(task).encode())
        for pipe in (saying, printing, reading, telling):
            os.close(pipe)
        return _Watch(child, words, output).until(deadline_s)
    finally:
        _end_children()
        os.close(words)
        os.close(output)


@dataclass
class _Watch:
    """Listens to the model's process until it has answered, is gone, or its time is over."""

    child: int
    words: int
    output: int
    passed: bool = False
    reason: str = ""
    doing: str = "MLflow was loading"
    _heard: bytes = b""
    _tail: bytes = b""
    _open: list[int] = field(default_factory=list)

    def until(self, deadline_s: float) -> _Watch:
        """Wait; `reason` is empty when the time is over."""
        alive = os.pidfd_open(self.child)
        self._open = [0, self.words, self.output, alive]
        while not self.reason and (left_s := deadline_s - time.monotonic()) > 0:
            ready = select.select(self._open, [], [], left_s)[0]
            self._hear([one for one in ready if one in (self.words, self.output)])
            if not self.reason and 0 in ready:
                self.reason = "nobody waits for it any more"
            if not self.reason and alive in ready:
                self._hear_rest()
                self.reason = self.reason or self._death()
        return self

    def _hear(self, pipes: list[int]) -> None:
        for pipe in pipes:
            read = os.read(pipe, _READ_BYTES)
            if not read:
                self._open.remove(pipe)
            elif pipe == self.output:
                self._tail = (self._tail + read)[-_TAIL_BYTES:]
            else:
                self._understand(read)

    def _hear_rest(self) -> None:
        pipes = [one for one in (self.words, self.output) if one in self._open]
        while ready := select.select(pipes, [], [], 0)[0]:
            self._hear(ready)
            pipes = [one for one in pipes if one in self._open and not self.reason]

    def _understand(self, read: bytes) -> None:
        *lines, self._heard = (self._heard + read).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                said = json.loads(line)
                self.doing = str(said.get("doing", self.doing))
                self.passed, self.reason = said["passed"] is True, str(said["reason"])

    def _death(self) -> str:
        code = os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])
        how = f"ended with exit code {code}" if code >= 0 else f"was ended by {_signal_name(-code)}"
        lines = self._tail.decode(errors="replace").strip().splitlines()
        last = f": {lines[-1]}" if lines else ""
        return f"its process {how}, while {self.doing}{last}"


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def _end_children() -> None:
    """Kill all children, and those that become children when these are gone."""
    deadline_s = time.monotonic() + _END_S
    while (pids := children_of(os.getpid())) and time.monotonic() < deadline_s:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                _kill(pid)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.005)


def _kill(pid: int) -> None:
    """Kill a process with its group, at one blow: one by one, they would fork faster than that."""
    group = os.getpgid(pid)
    if group != os.getpgrp():
        os.killpg(group, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)


# In the processes that fetch and answer


def _become_another(watcher: int, reading: int, printing: int) -> None:
    """A session of its own, all output to the watcher; it dies when the watcher does."""
    os.setsid()
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != watcher:
        os._exit(1)
    with contextlib.suppress(OSError):
        # Where memory runs out, it goes before all others.
        Path("/proc/self/oom_score_adj").write_text("1000")
    for number, descriptor in enumerate((reading, printing, printing)):
        os.dup2(descriptor, number)


@dataclass
class _Voice:
    """Tells the watcher what is done, and in the end what came of it."""

    pipe: int
    doing: str = "MLflow was loading"

    def doing_now(self, what: str) -> None:
        """Say what begins."""
        self.doing = what
        self._say({"doing": what})

    def end(self, passed: bool, reason: str) -> None:
        """Say what came of it."""
        self._say({"passed": passed, "reason": one_line(reason)})

    def failed(
        self, kind: type[BaseException], error: BaseException, _: TracebackType | None
    ) -> None:
        """Say which error nobody caught."""
        self.end(False, f"{kind.__name__} while {self.doing}: {str(error)[:_MOST_CHARACTERS]}")

    def _say(self, content: dict[str, Any]) -> None:
        os.write(self.pipe, json.dumps(content).encode() + b"\n")


def _fetch(task: dict[str, Any], voice: _Voice) -> None:
    """Fetch the version's files, with the credentials of who asks; nothing of it is run."""
    load_mlflow()
    import mlflow
    import mlflow.artifacts

    if task["tracking_uri"]:
        mlflow.set_tracking_uri(task["tracking_uri"])
    if task["registry_uri"]:
        mlflow.set_registry_uri(task["registry_uri"])
    voice.doing_now("its files were fetched")
    folder = Path(task["folder"])
    model = folder / "model"
    model.mkdir()
    path = mlflow.artifacts.download_artifacts(task["uri"], dst_path=str(model))
    (folder / _FETCHED).write_text(str(path))
    voice.end(True, "its files were fetched")


def _answer(task: dict[str, Any], voice: _Voice) -> None:
    """Load what was fetched, and have it answer its input example."""
    folder = Path(task["folder"])
    path = (folder / _FETCHED).read_text()
    work = folder / "work"
    work.mkdir()
    os.chdir(work)
    import mlflow.pyfunc

    voice.doing_now("its input example was read")
    example, params = _example(path)
    if example is None:
        voice.end(False, "it has no input example: register it with one")
        return
    voice.doing_now("it was loading")
    model = mlflow.pyfunc.load_model(path)
    voice.doing_now("it was answering")
    answer = model.predict(example, params=params) if params else model.predict(example)
    kind = type(answer).__name__
    empty = is_empty(answer)
    voice.end(not empty, f"its answer ({kind}) is empty" if empty else f"it answered ({kind})")


def _example(path: str) -> tuple[Any, dict[str, Any] | None]:
    from mlflow.models import Model

    about = Model.load(path)
    return about.load_input_example(path), about.load_input_example_params(path)


def is_empty(answer: Any) -> bool:
    """Whether nothing was answered: no value, or one without elements."""
    if isinstance(answer, Iterator):
        return next(answer, None) is None
    size = getattr(answer, "size", None)
    if answer is None or isinstance(size, int):
        return not size
    try:
        return isinstance(answer, Sized) and len(answer) == 0
    except TypeError:
        return False


_PARTS = {"fetch": _fetch, "answer": _answer}

if __name__ == "__main__":
    main()
