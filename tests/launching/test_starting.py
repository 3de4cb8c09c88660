"""Launches by a real Slurm with two nodes, all of it on this machine; and what a dry run prints."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import yaml

from opusclip_mlops.errors import ConfigError, LaunchError
from opusclip_mlops.launching import leftovers, slurm
from opusclip_mlops.launching.outcomes import Ending
from opusclip_mlops.launching.starting import check, rendered, start
from opusclip_mlops.launching.submitted import LaunchedRun, launch_of
from opusclip_mlops.launching.workplace import Plan, Workplace
from tests.journeys import wait_until
from tests.launching.cluster import ClusterError, cluster, missing
from tests.launching.made import config, end_of, full_disk, launch, said
from tests.launching.programs import only_on_path, program
from tests.launching.test_manifest import planned
from tests.launching.test_workplace import plan as planned_here


@pytest.fixture(scope="module")
def running() -> Iterator[str]:
    """The configuration of a cluster that runs as long as this module's tests."""
    if lacking := missing():
        pytest.skip(f"no {', '.join(lacking)} on PATH")
    with contextlib.ExitStack() as stack:
        try:
            conf = stack.enter_context(cluster())
        except ClusterError as error:
            # Not every machine lets one start: then Slurm's recorded answers are all there is.
            pytest.skip(str(error))
        yield str(conf)


@pytest.fixture
def in_cluster(running: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm's commands ask that cluster."""
    monkeypatch.setenv("SLURM_CONF", running)


def control(*words: str) -> None:
    """Have the controller do something."""
    subprocess.run(["scontrol", *words], check=True)


def started(place: Workplace, plan: Plan) -> list[str]:
    """Submit a launch; its jobs."""
    start(place, plan, tied=False, secrets={})
    submitted = place.submitted()
    assert submitted is not None
    return slurm.all_jobs(submitted)


@pytest.mark.usefixtures("in_cluster")
def test_a_run_goes_on_over_a_requeue_and_the_end_of_a_jobs_time(tmp_path: Path) -> None:
    """One job is requeued, then told that time is up; the next one of the chain finishes the run.

    The word before time is up is the signal that Slurm sends for `--signal=B:TERM@…`, sent early.
    """
    place, plan = launch(tmp_path, "wait twice", kind="slurm", cpus=1, chain=3, grace_s=30)
    folder = Path(plan.cwd)
    first, second, third, closing = started(place, plan)
    wait_until(lambda: said(folder))
    control("requeue", first)
    wait_until(lambda: slurm.state_of(first).is_waiting)
    control("update", f"jobid={first}", "StartTime=now")
    wait_until(lambda: said(folder, 0, 1))
    assert LaunchedRun(place, launch_of(place)).get_status() == "RUNNING"
    subprocess.run(["scancel", "--batch", "--signal=TERM", first], check=True)
    launched = LaunchedRun(place, launch_of(place))
    assert launched.wait()
    assert place.attempts() == [first, first, second]
    assert [said(folder, 0, number)[1] for number in range(3)] == [plan.run_id] * 3
    assert end_of(plan) == ("FINISHED", "")
    wait_until(lambda: slurm.state_of(closing).is_over)
    assert slurm.state_of(third).state == "CANCELLED"
    assert "told to end (SIGTERM)" in place.stop_of(1)
    assert (folder / "said" / "0-1-saved").exists()


@pytest.mark.usefixtures("in_cluster")
def test_ranks_of_two_nodes_meet_and_one_fails(tmp_path: Path) -> None:
    """Its number, node and exit code are the job's, the run's and the launch's."""
    place, plan = launch(tmp_path, "fail", kind="slurm", nodes=2, chain=2)
    jobs = started(place, plan)
    launched = LaunchedRun(place, launch_of(place))
    assert not launched.wait()
    assert launched.ending is not None
    assert launched.ending.exit_code == 7
    assert said(Path(plan.cwd), 1)[0] == "2"
    status, reason = end_of(plan)
    assert (status, reason.endswith(": exit code 7")) == ("FAILED", True)
    assert reason.startswith("rank 1 on ")
    wait_until(lambda: all(slurm.state_of(job).is_over for job in jobs))
    states = [slurm.state_of(job).state for job in jobs]
    assert states == ["FAILED", "CANCELLED", "COMPLETED"]


@pytest.mark.usefixtures("in_cluster")
def test_a_job_that_is_cancelled_in_the_queue_is_told_by_the_closing_one(tmp_path: Path) -> None:
    """Nobody waits for it but the last job, and no rank ever began."""
    place, plan = launch(tmp_path, kind="slurm")
    control("update", "partitionname=main", "state=down")
    try:
        job, closing = started(place, plan)
        assert LaunchedRun(place, launch_of(place)).get_status() == "SCHEDULED"
        subprocess.run(["scancel", job], check=True)
    finally:
        control("update", "partitionname=main", "state=up")
    wait_until(lambda: slurm.state_of(closing).is_over)
    reason = f"Slurm's job {job} was cancelled before it began"
    assert end_of(plan) == ("KILLED", reason)
    assert place.ending() == Ending(status="KILLED", reason=reason, exit_code=1)


@pytest.mark.usefixtures("in_cluster")
def test_cancelling_ends_the_ranks_and_tells_mlflow(tmp_path: Path) -> None:
    """When it returns nothing runs any more; a second time it does nothing."""
    place, plan = launch(tmp_path, "wait", kind="slurm", chain=2)
    jobs = started(place, plan)
    wait_until(lambda: said(Path(plan.cwd)))
    launched = LaunchedRun(place, launch_of(place))
    launched.cancel()
    launched.cancel()
    assert {slurm.state_of(job).state for job in jobs} == {"CANCELLED"}
    status, reason = end_of(plan)
    assert status == "KILLED"
    assert "was cancelled" in reason
    assert launched.get_status() == "KILLED"


@pytest.mark.usefixtures("in_cluster")
def test_what_slurm_refuses_leaves_nothing_behind(tmp_path: Path) -> None:
    """Slurm's own words, and no job of the chain."""
    place, plan = launch(tmp_path, kind="slurm", partition="nope", chain=2)
    with pytest.raises(LaunchError, match="invalid partition"):
        start(place, plan, tied=False, secrets={})
    assert place.submitted() is None


def test_ctrl_c_between_two_jobs_leaves_none_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were submitted are cancelled."""
    place, plan = launch(tmp_path, kind="slurm", chain=2)
    answers = only_on_path(tmp_path, monkeypatch)
    program(answers, "scancel")
    jobs = iter(["12"])

    def submit(*_: object, **__: object) -> str:
        if (job := next(jobs, None)) is None:
            raise KeyboardInterrupt
        return job

    monkeypatch.setattr(slurm, "submit", submit)
    with pytest.raises(KeyboardInterrupt):
        start(place, plan, tied=False, secrets={})
    assert (answers / "scancel.words").read_text().split() == ["12"]


def test_jobs_that_cannot_be_noted_are_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full once Slurm has taken the last one: nothing may train that nobody knows."""
    place, plan = launch(tmp_path, kind="slurm", chain=2)
    answers = only_on_path(tmp_path, monkeypatch)
    program(answers, "scancel")
    jobs = iter(["12", "13", "14"])

    def submit(*_: object, **__: object) -> str:
        if (job := next(jobs)) == "14":
            full_disk(monkeypatch)
        return job

    monkeypatch.setattr(slurm, "submit", submit)
    with pytest.raises(OSError, match="No space left"):
        start(place, plan, tied=False, secrets={})
    assert (answers / "scancel.words").read_text().split() == ["14", "13", "12"]


def test_a_job_of_kubernetes_is_noted_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is known by then: on a full disk none is made."""
    place = Workplace(tmp_path / "one")
    place.create(planned())
    answers = only_on_path(tmp_path, monkeypatch)
    program(answers, "kubectl", '{"metadata": {"uid": "u-1"}}')

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Workplace, "write_submitted", full)
        with pytest.raises(OSError, match="No space left"):
            start(place, planned(), tied=False, secrets={})
    assert not (answers / "kubectl.words").exists()
    start(place, planned(), tied=False, secrets={})
    submitted = place.submitted()
    assert submitted is not None
    assert submitted.jobs == [f"opusclip-{planned().run_id[:16]}"]


def test_a_supervisor_that_cannot_be_noted_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its ranks would train behind a run that says it never started."""
    place, plan = launch(tmp_path, "wait")
    full_disk(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        start(place, plan, tied=False, secrets={})
    assert not leftovers.is_supervised(place)
    assert not leftovers.run_on(place)


def test_a_variable_that_is_to_be_passed_has_to_be_there(tmp_path: Path) -> None:
    """Better here than in a queue for a day."""
    _, plan = launch(tmp_path, kind="slurm", pass_env=["NO_SUCH_KEY"])
    with pytest.raises(ConfigError, match="pass_env names NO_SUCH_KEY, which is not set here"):
        check(plan)


def test_a_store_of_one_machine_is_refused_for_many() -> None:
    """SQLite's locks are no locks between nodes; one node may have it, on the disk it sees."""
    wanted: dict[str, object] = {"kind": "slurm", "nodes": 4}
    here = msgspec.structs.replace(planned_here(**wanted), tracking_uri="sqlite:////here/mlflow.db")
    with pytest.raises(ConfigError, match=r"4 nodes cannot share sqlite:////here/mlflow\.db: set"):
        check(here)
    check(msgspec.structs.replace(here, config=config(kind="slurm")))
    check(msgspec.structs.replace(here, tracking_uri="http://mlflow"))
    with pytest.raises(ConfigError, match="no pod reaches sqlite"):
        check(msgspec.structs.replace(planned(), tracking_uri="sqlite:////here/mlflow.db"))


def test_a_dry_run_shows_what_would_be_started() -> None:
    """One configuration: a command here, a script for Slurm, two objects for Kubernetes."""
    kinds = {kind: planned_here(kind=kind, env={"A": "b c"}) for kind in ("local", "slurm")}
    assert rendered(kinds["local"]).startswith("env --chdir=/project 'A=b c' ")
    assert " torchrun --nnodes=1 " in rendered(kinds["local"])
    assert rendered(kinds["slurm"]).startswith("#!/bin/bash\n#SBATCH")
    assert " --rdzv-endpoint=localhost:31000 " in rendered(planned_here(port=31000))
    job = planned()
    found = list(yaml.safe_load_all(rendered(job)))
    assert [one["kind"] for one in found] == ["Service", "Job"]
    assert found[1]["spec"]["template"]["spec"]["containers"][0]["image"] == job.config.image
    assert msgspec.json.decode(msgspec.json.encode(job), type=Plan) == job


def test_a_dry_run_shows_all_that_slurm_would_be_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call of sbatch, and the closing job: as comments behind the script that trains."""
    place, plan = launch(tmp_path, kind="slurm", chain=2)
    shown = rendered(plan)
    calls = [one.split()[2:] for one in shown.splitlines() if one.startswith("# sbatch ")]
    answers = only_on_path(tmp_path, monkeypatch)
    program(answers, "sbatch", "12")
    start(place, plan, tied=False, secrets={})
    given = (answers / "sbatch.words").read_text().split()
    assert [word for call in calls for word in call] == [
        word.replace("afterany:12", "afterany:JOB") for word in given
    ]
    assert len(calls) == 3
    training, closing = ((place.path / name).read_text() for name in ("train.sh", "close.sh"))
    commented = "".join(f"# {one}".rstrip() + "\n" for one in closing.splitlines())
    assert (shown.startswith(training), shown.endswith(commented)) == (True, True)
