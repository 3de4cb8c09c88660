"""MLflow's server, loaded once and forked for each one that is wanted: to load it takes seconds.

    python loaded_mlflow.py

Reads what `serve` takes as a line of JSON for each server, and answers with its process id. It runs
until the input ends; who asked for a server ends it.
"""

import gc
import importlib
import json
import os
import signal
import sys
from typing import Any, NoReturn

# None of what is loaded becomes garbage, and the forked share it untouched.
gc.disable()
# In this order: MLflow guards its server's routes only where uvicorn is there already.
uvicorn, cli, server, _ = map(
    importlib.import_module, ("uvicorn", "mlflow.cli", "mlflow.server", "mlflow.server.fastapi_app")
)
gc.freeze()
gc.enable()


def main() -> None:
    """Fork a server for each line."""
    # Nobody waits for them here.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in iter(sys.stdin.readline, ""):
        if not (pid := os.fork()):
            serve(**json.loads(line))
        print(pid, flush=True)


def serve(*, argv: list[str], env: dict[str, str], cwd: str, output: str) -> NoReturn:
    """Be `mlflow` with these arguments, in a session of its own."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_APPEND), stream)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    server._exec_cmd = _serve_here  # type: ignore[attr-defined]
    cli.cli(argv)
    raise SystemExit


def _serve_here(command: list[str], *, extra_env: dict[str, str], **_: Any) -> NoReturn:
    """Run uvicorn as MLflow asks for it, but not in another process that loads everything anew."""
    os.environ.update(extra_env)
    assert command[1:3] == ["-m", "uvicorn"]
    uvicorn.main(command[3:])
    raise SystemExit


if __name__ == "__main__":
    main()
