"""Facts about `opusclip_mlops.launch`: a run's shipper is started, and started again if killed."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.launch import ShipperGuard, start_process, start_shipper
from tests.journeys import append, end, make_run, wait_until
from tests.sinks.sink_contract import metrics

GUARD_THREAD = "opusclip-shipper-guard"


def supervisors(folder: RunFolder) -> list[psutil.Process]:
    """The supervisors of this run that live, children of this process."""
    return [
        one
        for one in psutil.Process().children()
        if one.status() != psutil.STATUS_ZOMBIE and str(folder.path) in one.cmdline()
    ]


def guard_threads() -> int:
    """How many threads wait for a supervisor's end."""
    return sum(thread.name == GUARD_THREAD for thread in threading.enumerate())


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    """A run that goes nowhere: its supervisor starts no sinks."""
    found = make_run(tmp_path, [])
    yield found
    for process in supervisors(found):
        process.kill()
        process.wait()
    wait_until(lambda: not guard_threads())


@pytest.fixture
def guarded(folder: RunFolder) -> Iterator[Callable[..., ShipperGuard]]:
    """Makes guards, and releases them before their supervisors are killed."""
    guards: list[ShipperGuard] = []

    def made(**environment: str) -> ShipperGuard:
        guards.append(ShipperGuard(folder, environment=environment))
        wait_until(folder.is_shipped)
        return guards[-1]

    yield made
    for guard in guards:
        guard.release()


def is_waited_for(folder: RunFolder) -> bool:
    """Whether a thread of this process waits for the supervisor's lock."""
    places = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    lock = folder.path / "shipper.lock"
    return lock in [place.readlink() for place in places if place.is_symlink()]


def kill(folder: RunFolder) -> psutil.Process:
    """Kill -9 the supervisor; returns what it was."""
    [process] = supervisors(folder)
    process.kill()
    process.wait()
    return process


def test_a_killed_supervisor_is_started_again(
    folder: RunFolder, guarded: Callable[..., ShipperGuard]
) -> None:
    """As often as it is killed, with the same environment, which is on no disk."""
    guarded(MLFLOW_TRACKING_URI="postgresql://me:hunter22@db/x")
    known = {kill(folder).pid}
    for _ in range(2):
        wait_until(lambda: folder.is_shipped() and supervisors(folder))
        [again] = supervisors(folder)
        assert again.pid not in known
        assert again.environ()["MLFLOW_TRACKING_URI"] == "postgresql://me:hunter22@db/x"
        known.add(kill(folder).pid)
    kept = [path.read_bytes() for path in folder.path.rglob("*") if path.is_file()]
    assert not any(b"hunter22" in content for content in kept)


def test_a_supervisor_that_was_replaced_is_buried(
    folder: RunFolder, guarded: Callable[..., ShipperGuard]
) -> None:
    """No zombie is left of a supervisor that somebody else's process had to kill."""
    guarded()
    [process] = supervisors(folder)
    os.kill(process.pid, 9)
    wait_until(lambda: not psutil.pid_exists(process.pid))
    wait_until(lambda: supervisors(folder))


def test_after_release_a_killed_supervisor_stays_dead(
    folder: RunFolder, guarded: Callable[..., ShipperGuard]
) -> None:
    """The thread that would have started it again is gone, though it was waiting already."""
    guard = guarded()
    wait_until(lambda: is_waited_for(folder))
    guard.release()
    kill(folder)
    wait_until(lambda: not guard_threads())
    assert not supervisors(folder)


def test_no_thread_waits_for_a_run_that_is_delivered(
    folder: RunFolder, guarded: Callable[..., ShipperGuard]
) -> None:
    """Also where nobody released it: the supervisor ends, the folder and the thread are gone."""
    guarded()
    assert guard_threads() == 1
    append(folder, metrics(3))
    end(folder)
    wait_until(lambda: not folder.path.exists())
    wait_until(lambda: not guard_threads())
    wait_until(lambda: not supervisors(folder))


def test_a_guard_beside_another_supervisor_takes_over_from_it(
    folder: RunFolder, guarded: Callable[..., ShipperGuard]
) -> None:
    """Two trackers of one run have one supervisor; each guard brings it back."""
    other = start_shipper(folder)
    wait_until(folder.is_shipped)
    guarded()
    wait_until(lambda: len(supervisors(folder)) == 1)
    assert other.poll() is None
    other.kill()
    other.wait()
    wait_until(lambda: folder.is_shipped() and supervisors(folder))


def test_the_shipper_outlives_its_parents_terminal(folder: RunFolder) -> None:
    """It has a session of its own: Ctrl-C and a closed terminal don't reach it."""
    process = start_shipper(folder)
    wait_until(folder.is_shipped)
    assert os.getsid(process.pid) == process.pid
    process.kill()
    process.wait()


def test_what_it_says_stands_in_the_log(folder: RunFolder) -> None:
    """A sink that does not exist leaves the reason there, for the user alone to read."""
    process = start_process(folder, "--sink", "nowhere")
    log = folder.path / "shipper.log"
    wait_until(lambda: "no sink is called 'nowhere'" in log.read_text())
    process.kill()
    process.wait()
    assert log.stat().st_mode & 0o777 == 0o600


def test_no_shipper_for_a_run_that_is_gone(tmp_path: Path, folder: RunFolder) -> None:
    """A folder without a manifest, no folder, or a place that is away: an error, no process."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(OpusclipError, match=r"not a run's folder"):
        start_shipper(RunFolder(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError):
        start_shipper(RunFolder(tmp_path / "gone"))
    away = make_run(tmp_path, [], name="b" * 32, cwd=str(tmp_path / "away"))
    with pytest.raises(FileNotFoundError):
        start_shipper(away)
    assert not supervisors(folder)


def test_a_process_in_no_group_of_the_scheduler_shares_nothing_and_fails_nothing(
    tmp_path: Path,
) -> None:
    """What init has started without a session of its own reads an empty group; nothing breaks."""
    code = "import os; from opusclip_mlops.launch import yield_alike; yield_alike(os.getpid())"
    empty = tmp_path / "autogroup"
    empty.touch()
    hide = 'mount --bind "$1" /proc/$$/autogroup && test ! -s /proc/self/autogroup && shift && '
    hidden = ["unshare", "--map-root-user", "--mount", "sh", "-c", f'{hide} exec "$@"', "sh"]
    command = [*hidden, str(empty), sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
