"""Ranks on two machines, with a network between them that can be unplugged: one run."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from opusclip_mlops.folder import RunFolder
from opusclip_mlops.layout import REASON_TAG
from opusclip_mlops.sessions import ELSEWHERE
from tests.journeys import store, wait_until
from tests.network import Machine, machines, why_none
from tests.servers import BIN, stop

PORT = 5000
TRAINING = """
import os, sys, time
from pathlib import Path
from opusclip_mlops import ExperimentTracker, TrackingConfig

journal, uri, goal = sys.argv[1:]
tracker = ExperimentTracker(
    TrackingConfig(
        experiment_name="films", journal_dir=journal, tracking_uri=uri, use_wandb=False,
        use_tensorboard=False, system_metrics_interval_s=1,
    )
)
rank = int(os.environ["RANK"])
Path(journal, f"{rank}.pid").write_text(str(os.getpid()))
step = 0
while step < 30 or not Path(goal).exists():
    tracker.log_metrics({"loss": step + rank}, step, reduce="mean")
    step += 1
    time.sleep(0.05)
tracker.close()
"""


@dataclass
class Cluster:
    """Two machines that train, an MLflow server on a third, and what they keep on the disk."""

    training: list[Machine]
    server: Machine
    folder: Path
    jobs: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def uri(self) -> str:
        """Where MLflow answers, for these machines alone."""
        return f"http://{self.server.address}:{PORT}"

    def serve(self) -> "subprocess.Popen[bytes]":
        """Begin to serve MLflow."""
        argv = [
            *(BIN / "mlflow", "server", "--host", self.server.address, "--port", PORT),
            *("--workers", "1", "--backend-store-uri", store(self.folder)),
            *("--artifacts-destination", self.folder / "artifacts"),
        ]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        return self._begun(self.server.command(argv), "server", **quiet)

    def torchrun(self) -> None:
        """Begin a training of a rank a machine, by torchrun."""
        for number, machine in enumerate(self.training):
            argv = [
                *("torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"),
                *("--node-rank", number, "--local-addr", machine.address),
                *("--master-addr", self.training[0].address, "--master-port", "29500"),
                *self._training(machine),
            ]
            self.jobs.append(self._begun(machine.command([sys.executable, "-m", *argv]), "job"))

    def by_hand(self) -> None:
        """Begin a training of a rank a machine; they meet in files on a disk that both see."""
        together = self.folder / "together"
        together.mkdir()
        for number, machine in enumerate(self.training):
            self.journal(machine).mkdir()
            (self.journal(machine) / ".ranks").symlink_to(together)
            place = {
                **{"RANK": str(number), "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
                **{"GROUP_RANK": str(number), "GROUP_WORLD_SIZE": "2"},
                "TORCHELASTIC_RUN_ID": "a-job",
            }
            command = machine.command([sys.executable, *self._training(machine)])
            self.jobs.append(self._begun(command, "job", **place))

    def _training(self, machine: Machine) -> list[str]:
        program = self.folder / "training.py"
        program.write_text(TRAINING)
        return [str(program), str(self.journal(machine)), self.uri, str(self.goal)]

    @property
    def goal(self) -> Path:
        """The file that training ends with."""
        return self.folder / "enough"

    def journal(self, machine: Machine) -> Path:
        """Where the machine has its runs' folders."""
        return self.folder / machine.host

    def run_folder(self, machine: Machine) -> Path | None:
        """The folder of the machine's run, None where there is none."""
        found = self.journal(machine).glob("*/manifest.json")
        return next((path.parent for path in found), None)

    def pid(self, rank: int) -> int:
        """The process of a rank."""
        return int((self.journal(self.training[rank]) / f"{rank}.pid").read_text())

    def kill_sink(self, machine: Machine, name: str) -> bool:
        """Kill the process of one of the machine's sinks; whether there was one."""
        folder = str(self.run_folder(machine))
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if folder in words and words[-3:-1] == ["--sink", name]:
                os.kill(int(path.parent.name), signal.SIGKILL)
                return True
        return False

    def faults(self, machine: Machine) -> int:
        """How often the machine has tried in vain to send what its rank logs."""
        folder = self.run_folder(machine)
        assert folder is not None
        return RunFolder(folder).progress("relay").faults

    def has_heard(self) -> bool:
        """Whether records of the other machine have come to the owner's."""
        folder = self.run_folder(self.training[0])
        return folder is not None and any(folder.glob(f"{ELSEWHERE}*.journal"))

    def wait(self) -> Run:
        """Wait until all is delivered; gives the one run there is."""
        for job in self.jobs:
            job.wait(timeout=240)
        wait_until(lambda: not any(map(self.run_folder, self.training)))
        client = MlflowClient(store(self.folder))
        (run,) = client.search_runs([client.get_experiment_by_name("films").experiment_id])
        return run

    def points(self, run: Run, key: str) -> list[tuple[int, float]]:
        """The points of a key, by step."""
        history = MlflowClient(store(self.folder)).get_metric_history(run.info.run_id, key)
        return sorted((one.step, one.value) for one in history)

    def _begun(self, command: list[str], log: str, **environment: str) -> "subprocess.Popen[bytes]":
        fixed = {"NO_PROXY": "*", "OMP_NUM_THREADS": "1", "OPUSCLIP_RANKS_INTERVAL_S": "1"}
        # On a slow machine a second of the network's is long.
        fixed["OPUSCLIP_NODES_WAIT_S"] = fixed["OPUSCLIP_OWNER_WAIT_S"] = "1200"
        fixed["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "10"
        with (self.folder / f"{log}.log").open("ab") as output:
            return subprocess.Popen(
                command,
                env={**os.environ, **fixed, **environment},
                cwd=self.folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Three machines, one of which serves MLflow; all that they ran is ended at last."""
    if reason := why_none():
        pytest.skip(reason)
    with machines(3) as (one, other, server):
        found = Cluster([one, other], server, tmp_path)
        serving = found.serve()
        try:
            yield found
        finally:
            for process in (*found.jobs, serving):
                stop(process)


def test_two_machines_by_torchrun(cluster: Cluster) -> None:
    """One run, with each point once, though a relay is killed and a machine cannot be reached."""
    cluster.torchrun()
    wait_until(cluster.has_heard)
    _, other = cluster.training
    wait_until(lambda: cluster.kill_sink(other, "relay"))
    other.unplug()
    cluster.kill_sink(cluster.training[0], "relay")
    other.plug_in()
    cluster.goal.touch()
    run = cluster.wait()
    assert run.info.status == "FINISHED"
    points = cluster.points(run, "loss")
    assert len(points) >= 30
    both = min(len(points), 30)
    assert points[:both] == [(step, step + 0.5) for step in range(both)]
    assert len({step for step, _ in points}) == len(points)
    machines_seen = {key.split("/")[1] for key in run.data.metrics if key.startswith("system/")}
    assert machines_seen == {"node-a", "node-b"}


def test_a_rank_that_is_killed_on_another_machine_is_named(cluster: Cluster) -> None:
    """The run's end says which rank died, where and of what; who was told to end is no reason.

    It is told, and all that was logged before it, though MLflow was out of reach meanwhile.
    """
    cluster.by_hand()
    wait_until(cluster.has_heard)
    _, other = cluster.training
    faults = cluster.faults(other)
    other.unplug()
    # The outage lasts until the other machine has felt it.
    wait_until(lambda: cluster.faults(other) > faults)
    os.kill(cluster.pid(1), signal.SIGKILL)
    other.plug_in()
    cluster.jobs[1].wait()
    os.kill(cluster.pid(0), signal.SIGTERM)
    run = cluster.wait()
    assert run.info.status == "FAILED"
    assert run.data.tags[REASON_TAG].startswith("rank 1 on node-b: process ")
    assert "SIGKILL" in run.data.tags[REASON_TAG]
    points = cluster.points(run, "loss")
    assert len({step for step, _ in points}) == len(points)
