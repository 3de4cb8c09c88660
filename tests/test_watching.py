"""Facts about `opusclip_mlops.watching`: what a supervisor sees, and says into the run."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from opusclip_mlops import backlog, checkpoints, journal
from opusclip_mlops.accounting import is_told
from opusclip_mlops.deaths import TRACEBACK_TAG
from opusclip_mlops.folder import Identity, Progress, RunFolder
from opusclip_mlops.metadata import BestValue
from opusclip_mlops.records import Checkpoint, Metrics, Record, RunEnded, Tags, Text
from opusclip_mlops.sessions import final_end, sessions
from opusclip_mlops.watching import Watch
from tests.journeys import append, end, make_run

TRAINER = """
import os, signal, socket, sys, time
from pathlib import Path
from opusclip_mlops.accounting import Account
from opusclip_mlops.exits import DeathNotes
from opusclip_mlops.folder import CONTROL, RunFolder
from opusclip_mlops.journal import Journal
from opusclip_mlops.records import RunEnded, RunStarted
from opusclip_mlops.sessions import hold_alive, process_started_s
folder = RunFolder(Path(sys.argv[1]))
alive = hold_alive(folder, "s2")
account = Account(folder.path, "s2")
control = Journal(folder.path, "s2" + CONTROL)
started_s = process_started_s(os.getpid())
control.append(RunStarted("s2", socket.gethostname(), os.getpid(), started_s, 0))
def note():
    DeathNotes(folder.path, "s2")
def end(status="FINISHED", **words):
    control.append(RunEnded("s2", status, 1_700_000_050_000, **words))
print("up", flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""

needs_telling_kernel = pytest.mark.skipif(
    [int(number) for number in re.findall(r"\d+", os.uname().release)[:2]] < [6, 15],
    reason="before Linux 6.15 the kernel tells only the parent how a process ended",
)


class Trainer:
    """A process that takes part in the run, and does what it is told."""

    def __init__(self, folder: RunFolder) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", TRAINER, str(folder.path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._read("up")

    @property
    def pid(self) -> int:
        return self._process.pid

    def do(self, code: str) -> None:
        """Let it do something, to its end."""
        self._write(code)
        self._read("done")

    def die(self, code: str = "", *, buried: bool = True) -> None:
        """Let it end by this code, else kill it; `buried` where its parent takes note."""
        if code:
            self._write(code)
        else:
            self._process.kill()
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        if buried:
            self.bury()

    def bury(self) -> None:
        """Take note of its end."""
        self._process.wait()

    def _write(self, code: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(code + "\n")
        self._process.stdin.flush()

    def _read(self, word: str) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == word + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run that this process has finished its part in."""
    found = make_run(tmp_path)
    end(found)
    return found


@pytest.fixture
def trainer(folder: RunFolder) -> Iterator[Trainer]:
    """A second process of the run, under way."""
    found = Trainer(folder)
    yield found
    with contextlib.suppress(ChildProcessError):
        found.die()


def end_of(folder: RunFolder) -> RunEnded | None:
    """How the trainer's part ended."""
    [found] = [one for one in sessions(folder) if one.start.session == "s2"]
    return found.end


def said(folder: RunFolder, *, control: bool = True) -> list[Record]:
    """What the supervisor has said into the run."""
    paths = [path for path in folder.segments() if path.name.startswith("supervisor")]
    items = [item for p in paths if ("+control" in p.name) == control for item in journal.read(p)]
    return [item.record for item in items if isinstance(item, journal.Entry)]


def tags_of(folder: RunFolder) -> dict[str, str]:
    """The tags the supervisor has set."""
    found: dict[str, str] = {}
    for record in said(folder):
        found |= record.values if isinstance(record, Tags) else {}
    return found


# Who has died


@pytest.mark.usefixtures("trainer")
def test_a_process_that_lives_is_left_alone(folder: RunFolder) -> None:
    """However often it is looked at, and this one too, which says nothing."""
    watch = Watch(folder)
    for _ in range(5):
        watch.look()
    assert end_of(folder) is None
    assert said(folder) == []


def test_a_process_that_vanished_is_closed_once(folder: RunFolder, trainer: Trainer) -> None:
    """FAILED, at its last sign of life, with the count of what was left out; later looks add none.

    The supervisor never saw it alive, so nobody can say how it ended.
    """
    trainer.die()
    append(folder, [Metrics(1, 1, {"loss": 1.0})], journal="s2")
    segment = folder.path / "s2-000000.journal"
    os.utime(folder.path / "s2+control-000000.journal", (1_700_000_030, 1_700_000_030))
    os.utime(segment, (1_700_000_060, 1_700_000_060))
    watch = Watch(folder)
    watch.look()
    watch.look()
    reason = f"process {trainer.pid} vanished without closing its run"
    assert end_of(folder) == RunEnded("s2", "FAILED", 1_700_000_060_000, reason)
    assert sum(isinstance(record, RunEnded) for record in said(folder)) == 1
    assert tags_of(folder)["opusclip.dropped"] == "0"
    assert final_end(folder) == RunEnded("s2", "FAILED", 1_700_000_060_000, reason)


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        ("", "FAILED", "was ended by SIGKILL"),
        ("raise KeyboardInterrupt", "KILLED", "was ended by SIGINT"),
        ("os._exit(0)", "FINISHED", "left with exit code 0"),
        ("os._exit(7)", "FAILED", "left with exit code 7"),
        ("signal.raise_signal(signal.SIGTERM)", "KILLED", "was ended by SIGTERM"),
    ],
)
@needs_telling_kernel
def test_the_kernel_tells_how_it_ended(
    folder: RunFolder, trainer: Trainer, code: str, status: str, reason: str
) -> None:
    """Of a process that was seen alive, though it is not the supervisor's child."""
    watch = Watch(folder)
    watch.look()
    trainer.die(code)
    watch.look()
    found = end_of(folder)
    assert found is not None
    assert found.status == status
    assert found.reason.startswith(f"process {trainer.pid} {reason}")


def test_a_process_that_is_not_yet_buried_is_given_time(
    folder: RunFolder, trainer: Trainer
) -> None:
    """Its parent may be slow to take note of its end: until then the kernel says none."""
    watch = Watch(folder)
    watch.look()
    trainer.die(buried=False)
    watch.look()
    watch.look()
    assert end_of(folder) is None
    watch.look()
    found = end_of(folder)
    assert found is not None
    assert found.reason == f"process {trainer.pid} vanished without closing its run"


@needs_telling_kernel
def test_a_burial_in_time_tells_more(folder: RunFolder, trainer: Trainer) -> None:
    """When its parent takes note while the supervisor waits, the kernel tells."""
    watch = Watch(folder)
    watch.look()
    trainer.die(buried=False)
    watch.look()
    trainer.bury()
    watch.look()
    found = end_of(folder)
    assert found is not None
    assert "SIGKILL" in found.reason


def test_the_lines_it_was_at_are_kept(folder: RunFolder, trainer: Trainer) -> None:
    """What the process noted before the signal killed it becomes a tag."""
    trainer.do("note()")
    trainer.die("signal.raise_signal(signal.SIGTERM)")
    Watch(folder).look()
    found = end_of(folder)
    assert found is not None
    assert (found.status, found.reason) == ("KILLED", f"process {trainer.pid} was ended by SIGTERM")
    assert "most recent call first" in tags_of(folder)[TRACEBACK_TAG]


def test_what_a_dead_process_left_out_is_told(folder: RunFolder, trainer: Trainer) -> None:
    """Its account outlives it: the run says how many points were shed, and of which keys."""
    trainer.do("[account.count('shed', ['grad/norm']) for _ in range(3)]; account.count_lost(2)")
    trainer.die()
    Watch(folder).look()
    tags = tags_of(folder)
    assert tags["opusclip.dropped"] == "5"
    assert tags["opusclip.lost_records"] == "2"
    texts = [record for record in said(folder) if isinstance(record, Text)]
    [text] = [one for one in texts if one.key == "opusclip/left_out"]
    assert '"grad/norm": 3' in text.text


def test_a_checkpoint_that_was_whole_when_its_process_died_is_logged(
    folder: RunFolder, trainer: Trainer
) -> None:
    """The call may have returned for it; what was not whole, or was dropped, is not."""
    names = [checkpoints.checkpoint_name(0, step) for step in (1, 2, 3)]
    for number, name in enumerate(names):
        (folder.checkpoints / f".{name}.claimed").mkdir(parents=True)
        if number:
            (folder.checkpoints / name).mkdir()
            best = {"loss": BestValue(name, 0.5)}
            about = checkpoints.CheckpointMetadata(
                name=name, step=number + 1, epoch=0, created_ms=77, metrics={"loss": 0.5}, best=best
            )
            content = json.dumps(about.to_dict())
            (folder.checkpoints / name / checkpoints.METADATA).write_text(content)
    checkpoints.drop(folder.checkpoints / names[2])
    trainer.die()
    watch = Watch(folder)
    watch.look()
    watch.look()
    told = [one for one in said(folder) if isinstance(one, Checkpoint)]
    assert told == [Checkpoint(77, 2, 0, names[1], {"loss": 0.5}, True)]


def test_what_many_ranks_left_out_is_not_told_of_each_that_dies(tmp_path: Path) -> None:
    """What merges them says it once, of all together."""
    ranks = make_run(tmp_path, ["mlflow", "ranks"])
    trainer = Trainer(ranks)
    trainer.do("[account.count('rank', ['lr']) for _ in range(3)]")
    trainer.die()
    Watch(ranks).look()
    assert [one.session for one in said(ranks) if isinstance(one, RunEnded)] == ["s2"]
    assert not any(is_told(one) for one in said(ranks))


# Who left with which code


def test_an_exit_code_corrects_an_end_that_nobody_declared(
    folder: RunFolder, trainer: Trainer
) -> None:
    """A process that said FINISHED at its exit and then left with 3 has failed."""
    trainer.do("note()")
    trainer.do("end(at_exit=True)")
    watch = Watch(folder)
    watch.look()
    assert not watch.may_end()
    trainer.die("sys.exit(3)")
    watch.look()
    found = end_of(folder)
    assert found is not None
    assert (found.status, found.reason) == ("FAILED", f"process {trainer.pid} left with code 3")
    assert watch.may_end()
    watch.look()
    assert sum(isinstance(record, RunEnded) for record in said(folder)) == 1


def test_the_run_does_not_end_before_the_code_is_known(folder: RunFolder, trainer: Trainer) -> None:
    """Asked between two looks: not while the process lives, and not once it has failed."""
    trainer.do("note()")
    trainer.do("end(at_exit=True)")
    watch = Watch(folder)
    assert not watch.may_end()
    trainer.die("sys.exit(3)")
    assert not watch.may_end()
    assert watch.may_end()
    found = final_end(folder)
    assert found is not None
    assert found.status == "FAILED"


@pytest.mark.parametrize(
    ("said_itself", "code"),
    [("end(at_exit=True)", 0), ("end()", 3), ("end('FAILED', at_exit=True)", 3)],
    ids=["FINISHED, code 0", "closed, code 3", "FAILED, code 3"],
)
def test_an_exit_code_contradicts_nothing_else(
    folder: RunFolder, trainer: Trainer, said_itself: str, code: int
) -> None:
    """A code of 0, a run that was closed, or one that has failed already."""
    trainer.do("note()")
    trainer.do(said_itself)
    watch = Watch(folder)
    watch.look()
    trainer.die(f"sys.exit({code})")
    watch.look()
    assert watch.may_end()
    assert said(folder) == []


def test_a_process_killed_while_it_left_has_not_finished(
    folder: RunFolder, trainer: Trainer
) -> None:
    """It said FINISHED at its exit, and never came to leave with a code."""
    trainer.do("note()")
    trainer.do("end(at_exit=True)")
    Watch(folder).look()
    trainer.die()
    watch = Watch(folder)
    assert not watch.may_end()
    found = end_of(folder)
    assert found is not None
    assert found.status == "FAILED"


# The backlog


def test_what_waits_beyond_the_quota_is_told(tmp_path: Path) -> None:
    """The level that the training process reads rises above 1 MiB, and falls with the backlog."""
    folder = make_run(tmp_path, backlog_quota_bytes=2**20)
    watch = Watch(folder)
    watch.look()
    assert backlog.read_level(folder) == 0
    for size_bytes, level in ((2**20, 1), (2**18, 2)):
        append(folder, [Text(1, 1, "notes", "x" * size_bytes)])
        watch.look()
        assert backlog.read_level(folder) == level
    folder.write_progress("mlflow", Progress(number=1, position=folder.size_bytes()))
    watch.look()
    assert backlog.read_level(folder) == 0


def test_a_further_supervisor_goes_on_with_the_level(tmp_path: Path) -> None:
    """Between three quarters and the whole of the quota it stays what it was."""
    folder = make_run(tmp_path, backlog_quota_bytes=2**20)
    backlog.write_level(folder, 1)
    append(folder, [Text(1, 1, "notes", "x" * 900_000)])
    Watch(folder).look()
    assert backlog.read_level(folder) == 1
    backlog.write_level(folder, 0)
    Watch(folder).look()
    assert backlog.read_level(folder) == 0


def test_what_every_sink_has_takes_no_room(tmp_path: Path) -> None:
    """Its blocks are given back to the disk; the journal is as long as before."""
    folder = make_run(tmp_path)
    append(folder, [Text(1, 1, "notes", "x" * 2**21), Metrics(1, 1, {"loss": 1.0})])
    segment = folder.path / "s1-000000.journal"
    watch = Watch(folder)
    watch.look()
    before = segment.stat()
    assert before.st_blocks * 512 >= 2**21
    folder.write_progress("mlflow", Progress(number=1, position=folder.size_bytes()))
    watch.look()
    after = segment.stat()
    if after.st_blocks == before.st_blocks and not can_punch(tmp_path):
        pytest.skip("the file system of the tests gives no blocks back")
    assert after.st_blocks * 512 < 2**20
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def can_punch(folder: Path) -> bool:
    """Whether the file system here gives blocks back."""
    (folder / "probe").write_bytes(bytes(8192))
    tool = ["fallocate", "--punch-hole", "--offset", "0", "--length", "4096"]
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run([*tool, folder / "probe"], check=False).returncode == 0
    return False


# The machine


def measured(folder: RunFolder) -> list[Metrics]:
    """What the supervisors have measured."""
    return [one for one in said(folder, control=False) if isinstance(one, Metrics)]


@pytest.fixture
def measuring(tmp_path: Path) -> Callable[..., RunFolder]:
    """Makes runs that measure the machine at each look."""

    def made(**fields: object) -> RunFolder:
        wanted = {"system_metrics": True, "system_metrics_interval_s": 0.001, **fields}
        return make_run(tmp_path, **wanted)  # type: ignore[arg-type]

    return made


def test_the_machine_is_measured_over_restarts_of_the_supervisor(
    measuring: Callable[..., RunFolder],
) -> None:
    """Steps are seconds of the run; those of the next supervisor go on behind the last one's."""
    start_ms = time.time_ns() // 1_000_000 - 3_600_000
    folder = measuring(start_time_ms=start_ms)
    for _ in range(2):
        watch = Watch(folder)
        watch.look()
        time.sleep(1.01)
        watch.look()
        time.sleep(1.01)
    rows = measured(folder)
    steps = [row.step for row in rows]
    assert len(rows) == 4
    assert steps == sorted(set(steps))
    assert steps[0] >= 3600
    assert all(row.step == (row.timestamp_ms - start_ms) // 1000 for row in rows)
    assert all(key.startswith("system/") for row in rows for key in row.values)
    assert any("process" in key for key in rows[-1].values)


def test_two_looks_in_one_second_have_two_steps(measuring: Callable[..., RunFolder]) -> None:
    """No row takes the place of the one before."""
    folder = measuring()
    watch = Watch(folder)
    for _ in range(3):
        watch.look()
        time.sleep(0.01)
    first, *others = [row.step for row in measured(folder)]
    assert others == [first + 1, first + 2]


def test_the_interval_is_kept(measuring: Callable[..., RunFolder]) -> None:
    """A look before it is over measures nothing."""
    folder = measuring(system_metrics_interval_s=600.0)
    watch = Watch(folder)
    watch.look()
    watch.look()
    assert len(measured(folder)) == 1


def test_nothing_is_measured_where_nothing_trains(measuring: Callable[..., RunFolder]) -> None:
    """While the backlog of an ended run is delivered, the machine is not its business."""
    folder = measuring()
    end(folder)
    Watch(folder).look()
    assert measured(folder) == []


@pytest.mark.usefixtures("trainer")
def test_nothing_is_measured_unless_it_is_wanted(folder: RunFolder) -> None:
    """A run without system metrics has none."""
    Watch(folder).look()
    assert measured(folder) == []


def test_a_run_that_is_gone_on_with_is_measured_once_its_start_is_known(
    measuring: Callable[..., RunFolder],
) -> None:
    """Before MLflow has answered, the second of the run is not known."""
    folder = measuring(run_id="a" * 32, name="a" * 32)
    watch = Watch(folder)
    watch.look()
    assert measured(folder) == []
    start_ms = time.time_ns() // 1_000_000 - 7_200_000
    known = Identity(mirror_id="a" * 32, experiment_name="films", start_time_ms=start_ms)
    folder.write_identity(known)
    watch.look()
    [row] = measured(folder)
    assert row.step >= 7200
