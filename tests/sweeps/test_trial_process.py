"""The program of one trial."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from opusclip_mlops.sessions import process_started_s
from opusclip_mlops.sweeps import trial_process
from opusclip_mlops.sweeps.trial_process import TrialProcess, end_left_group
from tests.journeys import wait_until
from tests.sweeps.small_sweeps import python

SLEEPS = "import time; print('up', flush=True); time.sleep(600)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEPS
FORKS = "import os, time; pid = os.fork(); print(os.getpid(), flush=True); time.sleep(600)"


def started(folder: Path, code: str) -> TrialProcess:
    log = folder / "log"
    process = TrialProcess(python("-c", code), environment=os.environ, log=log)
    wait_until(lambda: process.poll() is not None or bool(log.read_text().strip()))
    return process


def gone(pid: int) -> bool:
    try:
        process_started_s(pid)
    except ProcessLookupError:
        return True
    return False


def test_its_output_is_kept_for_the_user_alone(tmp_path: Path) -> None:
    """Both streams in one file, and the exit code."""
    code = "import sys; print('out', flush=True); print('err', file=sys.stderr); sys.exit(3)"
    process = started(tmp_path, code)
    wait_until(lambda: process.poll() is not None)
    assert process.poll() == 3
    assert (tmp_path / "log").read_text() == "out\nerr\n"
    assert oct((tmp_path / "log").stat().st_mode & 0o777) == "0o600"


def test_a_program_that_is_not_there_says_so(tmp_path: Path) -> None:
    """As a shell would: code 127, and the name."""
    process = TrialProcess(["/not/there"], environment=os.environ, log=tmp_path / "log")
    wait_until(lambda: process.poll() is not None)
    assert process.poll() == 127
    assert (tmp_path / "log").read_text() == "/not/there: No such file or directory\n"


def test_it_ends_when_it_is_asked_to(tmp_path: Path) -> None:
    """By SIGTERM, which a tracker takes down."""
    assert started(tmp_path, SLEEPS).end() == -15


def test_who_does_not_listen_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while, by SIGKILL."""
    monkeypatch.setattr(trial_process, "GRACE_S", 0.3)
    assert started(tmp_path, DEAF).end() == -9


def test_what_it_started_ends_with_it(tmp_path: Path) -> None:
    """A data loader that outlives its trainer would go on with a trial that is over."""
    process = started(tmp_path, FORKS)
    pids = [int(one) for one in (tmp_path / "log").read_text().split()]
    wait_until(lambda: len((tmp_path / "log").read_text().split()) == 2)
    pids = [int(one) for one in (tmp_path / "log").read_text().split()]
    assert process.end() == -15
    wait_until(lambda: all(map(gone, pids)))


def test_it_dies_with_its_worker(tmp_path: Path) -> None:
    """Killed by -9, too: the trial is another worker's from then on."""
    code = (
        "import os, time; from pathlib import Path;"
        "from opusclip_mlops.sweeps.trial_process import TrialProcess;"
        f"p = TrialProcess({python('-c', SLEEPS)!r}, environment=os.environ,"
        f" log=Path({str(tmp_path / 'log')!r}));"
        "print(p.group['pid'], flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as worker:
        assert worker.stdout
        pid = int(worker.stdout.readline())
        wait_until(lambda: (tmp_path / "log").read_text() == "up\n")
        worker.kill()
    wait_until(lambda: gone(pid))


def test_what_it_started_dies_with_its_worker_too(tmp_path: Path) -> None:
    """By SIGTERM, and by -9 who is deaf to it."""
    log = tmp_path / "log"
    shell = f'{sys.executable} -I -S -c "{DEAF}" & sleep 600 & echo $! $!; wait'
    code = (
        "import os, time; from pathlib import Path;"
        "from opusclip_mlops.sweeps import trial_process;"
        "trial_process.GRACE_S = 0.5;"
        f"p = trial_process.TrialProcess(['/bin/sh', '-c', {shell!r}], environment=os.environ,"
        f" log=Path({str(log)!r}));"
        "print(p.group['pid'], flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as worker:
        assert worker.stdout
        group = int(worker.stdout.readline())
        wait_until(lambda: "up" in log.read_text() and len(log.read_text().split()) == 3)
        assert members(group) == 3
        worker.kill()
    wait_until(lambda: not members(group))


def members(group: int) -> int:
    """How many run in a group."""
    running = 0
    for one in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, found = one.read_text(errors="replace").rpartition(")")[2].split()[:3]
            running += state != "Z" and int(found) == group
    return running


def test_what_a_shell_started_may_end_well(tmp_path: Path) -> None:
    """SIGTERM goes to all of the group, and who is still ending is waited for."""
    trainer = (
        "import signal, sys, time\n"
        "def end(*_):\n    time.sleep(0.5); print('saved', flush=True); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end); print('up', flush=True); time.sleep(600)"
    )
    words = ["/bin/sh", "-c", '"$0" -c "$1" & wait', sys.executable, trainer]
    log = tmp_path / "log"
    process = TrialProcess(words, environment=os.environ, log=log)
    wait_until(lambda: log.read_text() == "up\n")
    assert process.end() == -15
    assert log.read_text() == "up\nsaved\n"


def test_what_a_dead_worker_left_is_ended_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all of its group, and nobody who has the number since."""
    process = started(tmp_path, DEAF)
    group = process.group
    killed: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(trial_process.os, "killpg", lambda pid, _: killed.append(pid))
        end_left_group(group | {"started_s": 1.0})
    assert killed == []
    end_left_group(group)
    wait_until(lambda: process.poll() == -9)
    end_left_group(group)
    end_left_group({})
