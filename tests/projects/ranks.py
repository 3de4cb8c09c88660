"""Starts the training as ranks that meet: by torchrun, or forked from one that has loaded all.

`dies` says after which step, on which ranks and by which signal an attempt ends: `57 1 SIGKILL`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.projects.commands import environment, words

_RANK = """
import json, os, signal, sys, tempfile
from opusclip_mlops.projects import options
from opusclip_mlops.projects.train import Training, command

do_step = Training.do_step

def do_and_die(self):
    metrics = do_step(self)
    step, ranks, name = os.environ["TEST_DIES"].split()
    is_first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if is_first and self.step == int(step) and os.environ["RANK"] in ranks:
        os.kill(os.getpid(), getattr(signal, name))
    return metrics

def train(arguments=None):
    # Ranks wait for each other for hours: one that hangs is not to outlive its test.
    signal.alarm(480)
    if "TEST_DIES" in os.environ:
        Training.do_step = do_and_die
    options.start(command, arguments)
"""

RESERVED = """
import contextlib, socket

@contextlib.contextmanager
def reserved():
    with socket.socket() as holder:
        # Nobody is given its port meanwhile, and who also asks for that may listen there.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield str(holder.getsockname()[1])
"""
"""Python that holds a port for the ranks that are to meet there."""

DEADLINE_S = 540
"""When a launch is given up; its ranks end before that by themselves."""

_FORKED = f"""{_RANK}{RESERVED}
def begin(launch, rank):
    output = tempfile.TemporaryFile()
    if not (pid := os.fork()):
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        os.environ.clear()
        os.environ.update(launch["env"], RANK=str(rank), LOCAL_RANK=str(rank))
        os.chdir(launch["folder"])
        train(launch["words"])
        sys.exit()
    return pid, output

def ended(pid, output):
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    output.seek(0)
    return [code, output.read().decode()]

for launch in json.load(sys.stdin):
    with reserved() as port:
        launch["env"].update(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
        launch["env"].update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        begun = [begin(launch, rank) for rank in range(2)]
        print(json.dumps([ended(*one) for one in begun]), flush=True)
"""

_LEAN = {
    "OPUSCLIP_USE_WANDB": "false",
    "OPUSCLIP_USE_TENSORBOARD": "false",
    "OPUSCLIP_SYSTEM_METRICS": "false",
    "OPUSCLIP_DRAIN_TIMEOUT_S": "300",
}


@dataclass(frozen=True)
class Ended:
    """How a rank ended, and all it said."""

    exit_code: int
    said: str


def forked(
    folder: Path, options: dict[str, str], launches: Sequence[Mapping[str, str]]
) -> list[list[Ended]]:
    """Run launches of two ranks, one after the other, each with variables of its own."""
    asked = [
        {
            "folder": str(folder),
            "words": words(options),
            "env": environment(folder, {**_LEAN, **one}),
        }
        for one in launches
    ]
    done = subprocess.run(
        [sys.executable, "-c", _FORKED],
        input=json.dumps(asked),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=DEADLINE_S * len(asked),
    )
    return [[Ended(*one) for one in json.loads(line)] for line in done.stdout.splitlines()]


def by_torchrun(folder: Path, options: dict[str, str], *, dies: str) -> Ended:
    """Run two ranks by torchrun, which starts both anew once."""
    script = folder / "rank.py"
    script.write_text(f"{_RANK}\ntrain()\n")
    launch = ["torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    done = subprocess.run(
        [sys.executable, "-m", *launch, str(script), *words(options)],
        cwd=folder,
        env=environment(folder, {**_LEAN, "PYTHONPATH": os.getcwd(), "TEST_DIES": dies}),
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * DEADLINE_S,
    )
    return Ended(done.returncode, done.stdout + done.stderr)
