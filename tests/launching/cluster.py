"""A Slurm of a test's own: munge, a controller and two nodes, all of them on this machine."""

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "squeue", "srun")
NODES = ("first", "second")
START_WAIT_S = 240.0
CONF = """\
ClusterName=opusclip
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=3
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
ReturnToService=2
KillWait=2
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[0]} CPUs=4 RealMemory=4000
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP OverSubscribe=NO
"""


def missing() -> list[str]:
    """Programs of Slurm that are not on this machine."""
    return [name for name in PROGRAMS if _found(name) is None]


def _found(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def cluster() -> Iterator[Path]:
    """A cluster whose configuration is the file that is yielded; its processes end by their ids."""
    folder = Path(tempfile.mkdtemp(prefix="opusclip-slurm-"))
    # Munge wants its clients to reach its socket.
    folder.chmod(0o711)
    controller, *ports = _free_ports(3)
    conf = folder / "slurm.conf"
    conf.write_text(
        CONF.format(
            host=socket.gethostname(), controller=controller, ports=ports, nodes=NODES,
            folder=folder, user=getpass.getuser(),
        )
    )  # fmt: skip
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for process in _started(folder, conf):
            processes.append(process)
        _wait_for(lambda: _idle(conf) == len(NODES), processes, folder)
        try:
            yield conf
        finally:
            _end_jobs(conf)
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


class ClusterError(Exception):
    """Slurm is installed, and does not start here."""


def _wait_for(
    is_so: Callable[[], bool], processes: Sequence["subprocess.Popen[bytes]"], folder: Path
) -> None:
    """Wait for something, unless one of the cluster's processes ends: then their logs are shown."""
    ends_s = time.monotonic() + START_WAIT_S
    while not is_so():
        ended = [str(one.args) for one in processes if one.poll() is not None]
        if ended or time.monotonic() > ends_s:
            logs = sorted([*folder.glob("*.log"), *folder.glob("*.out")])
            tails = [f"{log.name}: {log.read_text(errors='replace')[-600:]}" for log in logs]
            raise ClusterError("\n".join(["Slurm does not start here", *ended, *tails]))
        time.sleep(0.1)


def _end_jobs(conf: Path) -> None:
    """What still runs ends while there is a slurmd to end it."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        _asked(conf, "scancel", f"--user={getpass.getuser()}")
        ends_s = time.monotonic() + 20
        while _asked(conf, "squeue", "--noheader").strip() and time.monotonic() < ends_s:
            time.sleep(0.5)


def _started(folder: Path, conf: Path) -> Iterator["subprocess.Popen[bytes]"]:
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    own = {"socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log"}
    munge = [f"--{name}={folder / place}" for name, place in own.items()]
    munge += [f"--key-file={key}", f"--seed-file={folder}/seed", "--num-threads=1"]
    munged = _process(folder, conf, "munged", "--foreground", "--force", *munge)
    yield munged
    _wait_for((folder / "munge.socket").exists, [munged], folder)
    yield _process(folder, conf, "slurmctld", "-D")
    for node in NODES:
        yield _process(folder, conf, "slurmd", "-D", "-N", node)


def _process(folder: Path, conf: Path, name: str, *arguments: str) -> "subprocess.Popen[bytes]":
    with (folder / f"{name}.out").open("ab") as out:
        return subprocess.Popen(
            [_found(name) or name, *arguments],
            env={**os.environ, "SLURM_CONF": str(conf)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def _idle(conf: Path) -> int:
    return _asked(conf, "sinfo", "--noheader", "--Node", "--format=%T").split().count("idle")


def _asked(conf: Path, *words: str) -> str:
    done = subprocess.run(
        words,
        env={**os.environ, "SLURM_CONF": str(conf)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout
