"""The journal's folder, what was left in it, and MLflow's traps."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from opusclip_mlops.doctor import folders
from opusclip_mlops.doctor.findings import Subject
from opusclip_mlops.environment import link_environment
from opusclip_mlops.records import Metrics
from tests.faults.disks import small_disk
from tests.journeys import append, make_run

Make = Callable[..., Subject]


def test_a_journal_that_is_not_there_can_be_made(subject: Make, tmp_path: Path) -> None:
    """It is tried in the folder above, and nothing is left there."""
    before = sorted(os.listdir(tmp_path))
    found = folders.journal(subject())
    assert found.state == "ok"
    assert f"{tmp_path}/journal, not there yet, " in found.seen
    assert sorted(os.listdir(tmp_path)) == before


def test_a_journal_that_is_a_file_fails(subject: Make, tmp_path: Path) -> None:
    """Itself, or a folder above it."""
    (tmp_path / "journal").write_text("")
    assert folders.journal(subject()).seen == f"{tmp_path}/journal is not a folder"
    below = folders.journal(subject(journal_dir=tmp_path / "journal/below"))
    assert below.seen == f"{tmp_path}/journal/below cannot be written: Not a directory"
    assert "OPUSCLIP_JOURNAL_DIR" in below.todo


def test_runs_that_others_may_enter_are_warned_of(subject: Make, tmp_path: Path) -> None:
    """What was logged is the user's own; so is the right to change it."""
    make_run(tmp_path, name="closed")
    assert folders.journal(subject()).state == "ok"
    make_run(tmp_path, name="open").path.chmod(0o755)
    found = folders.journal(subject())
    assert found.state == "warning"
    assert "others may enter 1 of its 2 runs" in found.seen
    assert found.todo == f"chmod -R go-rwx {tmp_path}/journal"


def test_a_journal_that_others_may_write_is_warned_of(subject: Make, tmp_path: Path) -> None:
    """Unless they can take away only what is theirs, as in a folder for all."""
    folder = tmp_path / "journal"
    folder.mkdir()
    folder.chmod(0o777)
    found = folders.journal(subject())
    assert (found.state, found.todo) == ("warning", f"chmod go-w {folder}")
    folder.chmod(0o1777)
    assert folders.journal(subject()).state == "ok"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a folder away")
def test_a_journal_of_somebody_else_is_warned_of(subject: Make, tmp_path: Path) -> None:
    """He can read and change what is logged."""
    folder = tmp_path / "journal"
    folder.mkdir()
    os.chown(folder, 65_534, -1)
    found = folders.journal(subject())
    assert found.state == "warning"
    assert "it belongs to user 65534" in found.seen


def test_a_disk_that_is_memory_full_or_protected(subject: Make, tmp_path: Path) -> None:
    """Memory is warned of; without room, or where nobody may write, it fails."""
    with small_disk(tmp_path / "disk") as disk:
        asked = subject(journal_dir=disk.path / "journal")
        found = folders.journal(asked)
        assert found.state == "warning"
        assert "tmpfs" in found.seen
        room = folders.room(asked)
        assert room.state == "failed"
        assert room.seen == f"2.0 MiB free for {disk.path}/journal"
        disk.fill()
        assert folders.journal(asked).seen.endswith("No space left on device")
        disk.protect()
        assert folders.journal(asked).seen.endswith("Read-only file system")


def test_room_is_told_in_bytes(subject: Make, tmp_path: Path) -> None:
    """Of the disk that the folder is on, or will be on."""
    found = folders.room(subject())
    assert found.state in ("ok", "warning")
    assert found.seen.endswith(f" free for {tmp_path}/journal")


def test_runs_left_behind_are_counted(subject: Make, tmp_path: Path) -> None:
    """With the command that delivers them; where there are none, all is well."""
    assert folders.leftovers(subject()).state == "ok"
    run = make_run(tmp_path, name="left")
    append(run, [Metrics(1, {"loss": 1.0}, 1_700_000_000_000)])
    going = folders.leftovers(subject())
    assert (going.state, going.seen) == ("ok", "no run was left behind, 1 on their way")
    for path in run.path.glob("*control*"):
        path.unlink()
    found = folders.leftovers(subject())
    assert found.state == "warning"
    assert found.seen.startswith("1 run left behind with ")
    assert found.todo == f"opusclip recover --all --journal-dir {tmp_path}/journal"


def test_an_old_file_store_is_warned_of(subject: Make, tmp_path: Path) -> None:
    """Where MLflow's default would find it; with a server it is a note, and artifacts are none."""
    (tmp_path / "mlruns/1/artifacts").mkdir(parents=True)
    assert folders.store(subject()).state == "ok"
    (tmp_path / "mlruns/0").mkdir()
    (tmp_path / "mlruns/0/meta.yaml").write_text("name: Default\n")
    found = folders.store(subject())
    assert found.state == "warning"
    assert found.seen.startswith(f"{tmp_path}/mlruns/0/meta.yaml ")
    assert folders.store(subject(tracking_uri="http://127.0.0.1:5000")).state == "note"


def test_the_environment_of_mlflow_run(
    subject: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing to see without a project; then a note until this one is linked."""
    monkeypatch.setenv("MLFLOW_ENV_ROOT", str(tmp_path / "envs"))
    assert folders.environment(subject()).state == "skipped"
    (tmp_path / "python_env.yaml").write_text("dependencies: ['-e .']\n")
    missing = folders.environment(subject())
    assert (missing.state, missing.todo) == ("note", "opusclip link-env")
    link = link_environment(tmp_path)
    found = folders.environment(subject())
    assert (found.state, found.seen) == ("ok", f"mlflow run uses {Path(sys.prefix).resolve()}")
    link.path.unlink()
    link.path.symlink_to(tmp_path / "gone")
    assert folders.environment(subject()).seen.endswith("a link to nowhere")
