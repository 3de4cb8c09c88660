"""Worker processes: asked by a line of JSON, answering with one; paused while others are timed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import psutil

HERE = Path(__file__).resolve().parent
PEERS_PYTHON = HERE / ".venv" / "bin" / "python"
MARK = "OPUSCLIP_BENCHMARK"
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # A benchmark stops sinks for longer than they are stopped elsewhere.
    "OPUSCLIP_HUNG_S": "3600",
    MARK: str(os.getpid()),
}
"""What keeps libraries from asking the network, measuring the machine and using two cores."""


class Worker:
    """A script in a process of its own; all that it starts is paused and ended with it."""

    def __init__(
        self, script: str, *arguments: str, folder: Path, python: Path = Path(sys.executable)
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._name = " ".join((script, *arguments))
        self._log = folder / "worker.log"
        self._seen: dict[int, psutil.Process] = {}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(python), "-P", str(HERE / script), *arguments],
                cwd=folder,
                env={**os.environ, **QUIET, "PYTHONPATH": str(HERE.parent)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self.answer()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        self.send(**request)
        return self.answer()

    def send(self, **request: Any) -> None:
        """Send a request; its answer is to be fetched later."""
        asking = _open(self._process.stdin)
        asking.write(json.dumps(request).encode() + b"\n")
        asking.flush()

    def answer(self) -> dict[str, Any]:
        """Wait for an answer.

        Raises:
            RuntimeError: the worker ended instead; what it printed is shown.
        """
        line = _open(self._process.stdout).readline()
        if not line:
            told = self._log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"worker {self._name} ended early:\n{told}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def processes(self) -> list[psutil.Process]:
        """The worker and all that it has started and still runs."""
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(self._process.pid)
            self._seen |= {one.pid: one for one in (top, *top.children(recursive=True))}
        return [one for one in self._seen.values() if one.is_running()]

    def children_cpu_s(self) -> float:
        """The processor time of all that the worker has started."""
        every = [one for one in self.processes() if one.pid != self._process.pid]
        return sum(_cpu_s(one) for one in every)

    def pause(self) -> None:
        """Stop the worker and all that it has started, until `resume`."""
        _signal(self.processes(), signal.SIGSTOP)

    def resume(self) -> None:
        """Let everything go on; the watched before their watchers."""
        _signal(self.processes()[::-1], signal.SIGCONT)

    def stop(self) -> None:
        """End the worker and all that it has started, at once."""
        for _ in range(3):
            _signal(self.processes(), signal.SIGKILL)
            time.sleep(0.02)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            _open(pipe).close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


@contextlib.contextmanager
def running(worker: Worker) -> Iterator[Worker]:
    """Let a paused worker run for as long as the block lasts."""
    worker.resume()
    try:
        yield worker
    finally:
        worker.pause()


def _cpu_s(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def _open(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _signal(processes: Sequence[psutil.Process], which: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(which)


def end_tree(pid: int) -> None:
    """End a process and all that it has started, at once."""
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        _signal([top, *top.children(recursive=True)], signal.SIGKILL)


def end_leftovers() -> None:
    """End whatever a run of the benchmarks has started and left behind."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            is_ours = process.environ().get(MARK) == QUIET[MARK]
            if is_ours and process.pid != os.getpid():
                process.kill()


def sink_processes(supervisor: int) -> dict[str, list[psutil.Process]]:
    """For each sink: its process under a supervisor, and what that has started."""
    found = {}
    for process in psutil.Process(supervisor).children():
        words = process.cmdline()
        if "--sink" in words:
            name = words[words.index("--sink") + 1]
            found[name] = [process, *process.children(recursive=True)]
    return found


def stop_trees(trees: Iterable[Sequence[psutil.Process]]) -> None:
    """Stop the processes until they are resumed."""
    for tree in trees:
        _signal(tree, signal.SIGSTOP)


def resume_trees(trees: Iterable[Sequence[psutil.Process]]) -> None:
    """Let the processes go on."""
    for tree in trees:
        _signal(tree, signal.SIGCONT)
