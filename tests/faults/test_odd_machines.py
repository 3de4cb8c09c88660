"""A clock that steps back, a pid used again, and disks that take no journal."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.disks import SmallDisk, small_disk
from tests.faults.holdings import assert_whole
from tests.faults.site import Site
from tests.journeys import wait_until

LAST_PID = Path("/proc/sys/kernel/ns_last_pid")
STEPPING_CLOCK = """\
ns, s, shift_s = time.time_ns, time.time, 0
time.time_ns = lambda: ns() + shift_s * 10**9
time.time = lambda: s() + shift_s

with ExperimentTracker() as tracker:
    ledger.steps(tracker, 50)
    shift_s = -7200
    ledger.steps(tracker, 50, first=50)
    shift_s = -3600
    ledger.steps(tracker, 50, first=100)
    raise ValueError("the clock")
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 2 MiB, for the journal."""
    with small_disk(tmp_path / "disk") as found:
        yield found


def test_a_clock_that_steps_back(site: Site) -> None:
    """Points keep the time they were given; the run ends as it ended, not before it began."""
    trainer = site.train(STEPPING_CLOCK)
    assert trainer.wait() == 1
    info = site.run().info
    assert info.status == "FAILED"
    assert info.end_time >= info.start_time
    assert_whole(site)


def test_a_pid_that_is_used_again(site: Site) -> None:
    """Another process under the trainer's pid is not taken for it: the run is closed."""
    trainer = site.start(
        "tracker = ExperimentTracker()\nledger.steps(tracker, 100)\ntime.sleep(600)\n"
    )
    trainer.await_calls(100)
    site.reboot()
    with process_called(trainer.pid) as impostor:
        done = site.opusclip("recover", "--all")
        assert impostor.poll() is None
    assert done.returncode == 0, done.stderr
    assert site.run().info.status == "FAILED"
    assert_whole(site)


@contextlib.contextmanager
def process_called(pid: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process with this pid, which must be free; skips where pids can't be chosen."""
    for _ in range(200):
        try:
            LAST_PID.write_text(str(pid - 1))
        except OSError:
            pytest.skip("only root can choose a pid")
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        if process.pid == pid:
            break
        process.kill()
        process.wait()
    try:
        if process.pid != pid:
            pytest.skip("this machine lets nobody choose a pid")
        yield process
    finally:
        process.kill()
        process.wait()


def assert_refused_in_one_line(site: Site, disk: SmallDisk, reason: str) -> None:
    """The trainer ends with an error of ours that names the folder and the reason."""
    site = replace(site, settings={"OPUSCLIP_JOURNAL_DIR": str(disk.path / "journal")})
    trainer = site.start("tracker = ExperimentTracker()\n")
    assert trainer.wait() == 1
    last = trainer.stderr.splitlines()[-1]
    assert last.startswith("opusclip_mlops.errors.")
    assert str(disk.path / "journal") in last
    assert reason in last


def test_a_journal_folder_that_is_read_only(site: Site, disk: SmallDisk) -> None:
    """It is said when the tracker is made, in one line, before anything was trained."""
    disk.protect()
    assert_refused_in_one_line(site, disk, "Read-only file system")


def test_a_journal_folder_on_a_full_disk(site: Site, disk: SmallDisk) -> None:
    """The same for a disk that is full at the start."""
    disk.fill()
    assert_refused_in_one_line(site, disk, "No space left on device")


def test_a_journal_folder_of_somebody_else(site: Site) -> None:
    """The same for a file where the folder should be."""
    (site.folder / ".opusclip").touch()
    trainer = site.start("tracker = ExperimentTracker()\n")
    assert trainer.wait() == 1
    wait_until(lambda: trainer.stderr)
    assert trainer.stderr.splitlines()[-1].startswith("opusclip_mlops.errors.")
