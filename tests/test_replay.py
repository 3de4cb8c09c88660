"""Runs replayed by processes of their own: once, twice, two at once, and as they go on."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from mlflow.entities import Metric

from opusclip_mlops import replay
from opusclip_mlops.errors import ConfigError, DeliveryError
from opusclip_mlops.launch import children_of
from opusclip_mlops.mirror_work import RunReport
from opusclip_mlops.replay import Places, mirror
from tests.journeys import wait_until
from tests.mirrored import AWKWARD, T0, Place
from tests.servers import BIN

KINDS = ("tensorboard", "wandb")
TO = ("tensorboard:runs", "wandb:clips")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A store and a place for mirrors, in the current folder."""
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return Place(tmp_path)


def outcomes(reports: Sequence[RunReport]) -> set[str]:
    """What came of all runs."""
    return {one.outcome for one in reports}


def argv(*words: str) -> list[str]:
    """The command."""
    return [str(BIN / "opusclip"), "mirror", *words]


@contextlib.contextmanager
def following(place: Place, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A follower of the experiment, ended with all its processes."""
    line = argv("--experiment", "films", "--follow", "--poll", "0.3", *words)
    with (place.path / "follower.log").open("ab") as log:
        process = subprocess.Popen(line, stdout=log, stderr=log, cwd=place.path)
        try:
            yield process
        finally:
            kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill -9, with what it has started and what that has started."""
    every = [process.pid]
    for pid in every:
        every += children_of(pid)
    for pid in every:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def test_runs_are_mirrored_to_several_places(place: Place) -> None:
    """Each run gets a report for each place; a second call finds everything equal."""
    runs = [place.run(AWKWARD[name]) for name in ("no numbers", "steps out of order")]
    ids = [run.info.run_id for run in runs]
    shown: list[RunReport] = []
    reports = mirror(ids, to=TO, show=shown.append)
    assert [one.outcome for one in reports] == ["mirrored"] * 4
    assert [one.outcome for one in shown].count("begun") == 4
    for run in runs:
        for kind in KINDS:
            assert place.held(run, kind) == place.wanted(run, kind)
    assert outcomes(mirror(ids, to=TO)) == {"equal"}


def test_a_plan_sends_nothing(place: Place) -> None:
    """What would be sent is counted; nothing is there afterwards."""
    run = place.run(AWKWARD["no numbers"])
    place.client.log_text(run.info.run_id, "a text", "notes/a.txt")
    reports = mirror(run.info.run_id, to=TO, plan=True)
    assert {(one.outcome, one.points) for one in reports} == {("planned", 5)}
    assert not any((place.path / "runs").glob("*"))


def test_all_runs_of_an_experiment_are_mirrored(place: Place) -> None:
    """An experiment is named instead of its runs; the deleted ones stay away."""
    runs = [place.run([Metric("a", float(n), T0, n)]) for n in range(4)]
    gone = place.run([Metric("a", 1.0, T0, 1)])
    place.client.delete_run(gone.info.run_id)
    reports = mirror(experiments="films", to="tensorboard:runs")
    assert {one.run_id for one in reports} == {run.info.run_id for run in runs}
    assert outcomes(reports) == {"mirrored"}


def test_one_bad_run_stops_nothing_else(place: Place) -> None:
    """A run that is not there, and one whose place can't be written, leave the others alone."""
    good, bad = (place.run([Metric("a", 1.0, T0, 1)]) for _ in range(2))
    place.folder(bad).parent.mkdir(parents=True)
    place.folder(bad).write_text("in the way")
    ids = ["0" * 32, bad.info.run_id, good.info.run_id]
    reports = {one.run_id: one for one in mirror(ids, to="tensorboard:runs")}
    assert [reports[id_].outcome for id_ in ids] == ["gone", "failed", "mirrored"]
    assert reports[bad.info.run_id].error


def test_two_at_once_make_one_mirror(place: Place) -> None:
    """Two processes mirror one run to the same places at the same time: no point is there twice."""
    run = place.run([Metric("a", n / 7, T0 + n, n) for n in range(5000)])
    words = [run.info.run_id, "--to", TO[0], "--to", TO[1]]
    both = [subprocess.Popen(argv(*words), cwd=place.path) for _ in range(2)]
    assert [one.wait() for one in both] == [0, 0]
    for kind in KINDS:
        assert place.held(run, kind) == place.wanted(run, kind)


def test_a_follower_mirrors_present_and_future_runs(place: Place) -> None:
    """Runs that are there, that go on and that come later; killed and started again in between."""
    old = place.run(AWKWARD["a repeated step"])
    live = place.run([Metric("a", 1.0, T0, 1)], status=None)

    def is_equal(*runs: object) -> bool:
        return all(
            place.held(run, kind) == place.wanted(run, kind) for run in runs for kind in KINDS
        )

    places = ("--to", TO[0], "--to", TO[1])
    with following(place, *places):
        wait_until(lambda: is_equal(old, live))
        place.log(live, [Metric("a", 2.0, T0 + 1, 2), Metric("b", 2.0, T0 + 1, 2)])
        later = place.run([Metric("c", 3.0, T0, 1)], status=None)
        wait_until(lambda: is_equal(live, later))
    place.log(live, [Metric("a", 3.0, T0 + 2, 3)])
    with following(place, *places) as process:
        wait_until(lambda: is_equal(live))
        for run in (live, later):
            place.client.set_terminated(run.info.run_id, "FAILED")
        wait_until(lambda: all(end_of(place, run) == {"FAILED"} for run in (live, later)))
        process.terminate()
        assert process.wait() == 0
    assert is_equal(old, live, later)
    assert outcomes(mirror([one.info.run_id for one in (old, live, later)], to=TO)) == {"equal"}


def end_of(place: Place, run: object) -> set[str]:
    """How the mirrors say that a run ended."""
    return {
        place.mirror(run, kind).compare(place.again(run), as_it_is=True).held.end for kind in KINDS
    }


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_any_moment_and_started_again(place: Place, kind: str) -> None:
    """Twenty processes are killed -9 while they mirror; the next one makes the mirror equal."""
    run = place.run(
        [Metric(f"k{n % 3}", n / 7, T0 + n // 3, n // 3) for n in range(6000)]
        + AWKWARD["steps out of order"]
    )
    script = Path(__file__).with_name("killed_mirrors.py")
    seed = random.randrange(10**6)
    words = [sys.executable, script, place.path, kind, run.info.run_id, "20", str(seed)]
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, (seed, done.stdout, done.stderr[-2000:])
    killed = json.loads(done.stdout.splitlines()[-1])
    assert killed >= 10, "too few were killed while they were at work"
    place.mirror(run, kind).catch_up(run)
    assert place.held(run, kind) == place.wanted(run, kind), seed
    assert place.mirror(run, kind).catch_up(run).is_nothing


def test_wrong_use_is_told_in_one_line(place: Place) -> None:
    """No run, no place, a place that is none, an experiment that is not there, no MLflow."""
    run = place.run()
    with pytest.raises(ConfigError, match="name a run"):
        mirror(to=TO)
    with pytest.raises(ConfigError, match="--to"):
        mirror(run.info.run_id, to=())
    with pytest.raises(ConfigError, match="cannot mirror to 'comet:x'"):
        mirror(run.info.run_id, to="comet:x")
    with pytest.raises(DeliveryError, match="no experiment is called 'nowhere'"):
        mirror(experiments="nowhere", to=TO[0])
    with pytest.raises(ConfigError, match="disabled"):
        mirror(run.info.run_id, to=TO[1], places=Places(wandb_mode="disabled"))
    with pytest.raises(ConfigError):
        replay.follow(to=TO)
