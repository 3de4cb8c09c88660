"""A disk that fills up under the journal, under TensorBoard or under W&B."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.disks import SmallDisk, small_disk
from tests.faults.files import (
    MAKE_CHECKPOINT,
    MAKE_CLIP,
    assert_checkpoints_whole,
    assert_clips_whole,
)
from tests.faults.holdings import absent_calls, assert_whole
from tests.faults.site import Site, Trainer
from tests.journeys import wait_until
from tests.reading import points_of_wandb

UNTIL_TOLD = """\
with ExperimentTracker() as tracker:
    step = 0
    while not os.path.exists("enough"):
        ledger.steps(tracker, 10, first=step, wait_s=0.002)
        step += 10
"""
FILES = f"""\
{MAKE_CLIP}
{MAKE_CHECKPOINT}
from opusclip_mlops import OpusclipError

def await_file(name):
    while not os.path.exists(name): time.sleep(0.02)

with ExperimentTracker() as tracker:
    ledger.steps(tracker, 10)
    log_clip(tracker, "samples/kite", 0)
    save(tracker, 0)
    ledger.say("begun")
    await_file("full")
    for step in (1, 2):
        tracker.log_video(clip(step, side=256), "samples/kite", step)
    try:
        save(tracker, 1, width=2000)
    except OpusclipError:
        ledger.say("refused")
    await_file("roomy")
    log_clip(tracker, "samples/kite", 3)
    save(tracker, 3)
"""
PER_SINK = {"OPUSCLIP_TENSORBOARD_DIR": "tensorboard", "OPUSCLIP_WANDB_DIR": "wandb"}
SINKS = ("mlflow", "tensorboard", "wandb")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 4 MiB: the notes of the process take a third of one."""
    with small_disk(tmp_path / "disk", size_kib=4096) as found:
        yield found


@pytest.mark.parametrize("setting", PER_SINK)
def test_a_full_disk_under_a_mirror_delays_that_mirror_only(
    site: Site, disk: SmallDisk, setting: str
) -> None:
    """The others hold everything meanwhile; with room again the mirror is whole too."""
    site = replace(site, settings={setting: str(disk.path)})
    sink = PER_SINK[setting]
    trainer = site.start(UNTIL_TOLD, OPUSCLIP_HUNG_S="10")
    folder = site.await_journal()
    wait_until(lambda: all(folder.progress(one).records > 50 for one in SINKS))
    disk.fill()
    trainer.await_calls(len(trainer.calls) + 1000)
    wait_until(lambda: folder.progress(sink).faults > 0)
    for other in set(SINKS) - {sink}:
        site.await_arrival(other)
    disk.grow()
    (site.folder / "enough").touch()
    assert trainer.wait() == 0
    site.await_delivery()
    assert trainer.stderr == ""
    assert site.run().data.tags["opusclip.lost_records"] == "0"
    assert_whole(site)


def filled(site: Site, disk: SmallDisk, calls: int, **settings: str) -> Trainer:
    """A trainer that has made many calls since the disk under its journal was full."""
    trainer = site.start(UNTIL_TOLD, **settings)
    folder = site.await_journal()
    wait_until(lambda: all(folder.progress(sink).records > 50 for sink in SINKS))
    disk.fill()
    trainer.await_calls(len(trainer.calls) + calls)
    return trainer


def assert_counted(site: Site) -> int:
    """What is nowhere is exactly what the run says was lost; all else is whole. The count."""
    run = site.run()
    rows = points_of_wandb(site.wandb_dir, run.data.tags["opusclip.mirror_id"])
    metrics = [call for call in site.calls if call.kind == "metrics"]
    lost = len(absent_calls(rows, metrics))
    assert lost > 0
    assert run.data.tags["opusclip.lost_records"] == str(lost)
    assert_whole(site, lost=lost)
    return lost


@pytest.fixture
def cramped(site: Site, disk: SmallDisk) -> Site:
    """A site whose journal lies on the small disk."""
    return replace(site, settings={"OPUSCLIP_JOURNAL_DIR": str(disk.path)})


def test_a_full_disk_under_the_journal_loses_what_it_counts(cramped: Site, disk: SmallDisk) -> None:
    """Training goes on; each call that could not be kept is counted, each other one arrives."""
    trainer = filled(cramped, disk, 1500)
    disk.grow()
    trainer.await_calls(len(trainer.calls) + 200)
    (cramped.folder / "enough").touch()
    assert trainer.wait() == 0
    cramped.await_delivery()
    lost = assert_counted(cramped)
    assert f"{lost:,} records could not be kept" in trainer.stderr
    assert cramped.run().info.status == "FINISHED"


def test_a_run_that_ends_on_a_full_disk(cramped: Site, disk: SmallDisk) -> None:
    """Its end and its count of what was lost are kept, and arrive once there is room."""
    trainer = filled(cramped, disk, 500, OPUSCLIP_DRAIN_TIMEOUT_S="1")
    (cramped.folder / "enough").touch()
    assert trainer.wait() == 0
    disk.grow()
    cramped.await_delivery()
    lost = assert_counted(cramped)
    assert f"{lost:,} records could not be kept" in trainer.stderr
    assert cramped.run().info.status == "FINISHED"


def test_a_trainer_killed_on_a_full_disk(cramped: Site, disk: SmallDisk) -> None:
    """Its count of what was lost outlives it, to the last call that returned."""
    filled(cramped, disk, 500).kill()
    disk.grow()
    cramped.await_delivery()
    assert_counted(cramped)
    assert cramped.run().info.status == "FAILED"


def test_clips_and_checkpoints_on_a_full_disk(cramped: Site, disk: SmallDisk) -> None:
    """A clip that finds no room is counted, a checkpoint says so; none of either is torn."""
    trainer = cramped.start(FILES)
    folder = cramped.await_journal()
    wait_until(lambda: folder.progress("mlflow").records > 5)
    trainer.await_word("begun")
    disk.fill()
    (cramped.folder / "full").touch()
    trainer.await_word("refused")
    disk.grow()
    (cramped.folder / "roomy").touch()
    assert trainer.wait() == 0, trainer.stderr
    cramped.await_delivery()
    assert cramped.run().data.tags["opusclip.lost_records"] == "2"
    assert_checkpoints_whole(cramped)
    assert_clips_whole(cramped, "samples/kite")
