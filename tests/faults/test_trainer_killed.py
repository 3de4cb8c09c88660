"""Kill -9 of the training process, at its worst moments."""

import json
import signal
import textwrap
import time
from pathlib import Path

from tests.faults.files import (
    MAKE_CHECKPOINT,
    MAKE_CLIP,
    assert_checkpoints_whole,
    assert_clips_whole,
)
from tests.faults.holdings import assert_whole, crash_reports
from tests.faults.site import SOAK, Site, Trainer
from tests.journeys import wait_until

CLOSED_WITHIN_S = 15.0 if SOAK else 60.0
"""How soon after the kill the run is FAILED; the longer wait is for a machine under load."""

STOPPED_S = 60.0 if SOAK else 3.0
UNTIL_TOLD = "while not os.path.exists('enough'): time.sleep(0.02)\n"


def await_delivery_begun(site: Site) -> None:
    """Wait until MLflow is being written to."""
    folder = site.await_journal()
    wait_until(lambda: folder.progress("mlflow").records > 0)


def kill(site: Site, trainer: Trainer) -> None:
    """Kill the trainer; wait for the failed run, and for delivery."""
    trainer.kill()
    wait_until(lambda: site.run().info.status != "RUNNING", deadline_s=CLOSED_WITHIN_S)
    assert site.run().info.status == "FAILED"
    assert site.run().data.tags["opusclip.end_reason"]
    site.await_delivery()
    assert_reported(site, trainer)


def assert_reported(site: Site, trainer: Trainer) -> None:
    """The run has one report, of this death: with its reason, and the last points there are."""
    [report] = crash_reports(site).values()
    facts = json.loads(report["report.json"])
    assert facts["pid"] == trainer.pid
    assert facts["reason"] == site.run().data.tags["opusclip.end_reason"]
    # Before Linux 6.15 nobody but its parent knows how it ended.
    assert facts["signal"] in ("SIGKILL", "")
    points = json.loads(report["metrics.json"])["points"]
    own = [known for key, known in points.items() if not key.startswith("system/")]
    assert facts["last_step"] == max((one[1] for known in own for one in known), default=-1)
    steps = [call.step for call in trainer.calls if call.kind == "metrics" and call.returned]
    assert facts["last_step"] >= max(steps, default=-1)


def kill_while_writing(site: Site, trainer: Trainer, pattern: str) -> None:
    """Kill the trainer while it writes a large file of this name."""
    await_delivery_begun(site)
    folder = site.journals[0].path
    (site.folder / "enough").touch()
    wait_until(lambda: any(folder.glob(pattern)) or trainer.process.poll() is not None)
    kill(site, trainer)


def left_over(site: Site) -> list[Path]:
    """What is left of the runs' folders."""
    return [path for path in site.folder.glob(".opusclip/journal/*") if path.is_dir()]


def test_a_burst_outlives_its_trainer(site: Site) -> None:
    """Killed in a burst of 10,000 calls: every call that returned is in all three places."""
    trainer = site.start(
        "tracker = ExperimentTracker()\n"
        "ledger.steps(tracker, 1)\n" + UNTIL_TOLD + "ledger.steps(tracker, 10_000, first=1)\n"
    )
    await_delivery_begun(site)
    (site.folder / "enough").touch()
    trainer.await_calls(3_000)
    kill(site, trainer)
    assert not trainer.has_returned(10_001)
    assert_whole(site)


def test_a_paced_run_outlives_its_trainer(site: Site) -> None:
    """Killed while it logs 100 steps a second: every call that returned arrives."""
    trainer = site.start(
        "tracker = ExperimentTracker()\nledger.steps(tracker, 100_000, wait_s=0.01)"
    )
    await_delivery_begun(site)
    trainer.await_calls(200)
    kill(site, trainer)
    assert_whole(site)


def test_a_trainer_that_is_stopped_is_not_dead(site: Site) -> None:
    """Stopped while the shipper looks after it, and continued: the run is FINISHED, and whole."""
    trainer = site.start(
        "with ExperimentTracker() as tracker:\n"
        "    ledger.steps(tracker, 100, wait_s=0.01)\n"
        "    ledger.say('waiting')\n"
        + textwrap.indent(UNTIL_TOLD, "    ")
        + "    ledger.steps(tracker, 100, first=100)\n"
    )
    await_delivery_begun(site)
    trainer.await_word("waiting")
    trainer.send(signal.SIGSTOP)
    time.sleep(STOPPED_S)
    assert site.run().info.status == "RUNNING"
    (site.folder / "enough").touch()
    trainer.send(signal.SIGCONT)
    assert trainer.wait() == 0
    site.await_delivery()
    assert site.run().info.status == "FINISHED"
    assert_whole(site)


def test_a_clip_half_written_is_no_artifact(site: Site) -> None:
    """Killed in the middle of log_video: the clips before stand whole, that one nowhere."""
    trainer = site.start(
        MAKE_CLIP + "tracker = ExperimentTracker()\n"
        "for step in range(3):\n"
        "    log_clip(tracker, 'samples/kite', step)\n"
        "    ledger.steps(tracker, 5, first=5 * step)\n"
        + UNTIL_TOLD
        + "log_clip(tracker, 'samples/kite', 3, side=1024, frames=400)\n"
    )
    kill_while_writing(site, trainer, "media/.*.npy")
    assert [call.returned for call in trainer.calls if call.kind == "video"] == [True] * 3 + [False]
    assert_whole(site)
    assert_clips_whole(site, "samples/kite")
    assert left_over(site) == []


def test_a_checkpoint_half_written_is_no_artifact(site: Site) -> None:
    """Killed in the middle of save_checkpoint: those before verify, that one is nowhere."""
    trainer = site.start(
        MAKE_CHECKPOINT + "tracker = ExperimentTracker()\n"
        "for step in range(3):\n"
        "    save(tracker, step)\n"
        "    ledger.steps(tracker, 5, first=5 * step)\n"
        + UNTIL_TOLD
        + "save(tracker, 3, width=8000)\n"
    )
    kill_while_writing(site, trainer, "checkpoints/.epoch_0000-step_000003-*/*")
    saved = [call.returned for call in trainer.calls if call.kind == "checkpoint"]
    assert saved == [True] * 3 + [False]
    assert_whole(site)
    assert_checkpoints_whole(site)
    assert left_over(site) == []
