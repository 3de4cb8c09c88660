"""The shipper's own processes killed and stopped while a trainer logs."""

import contextlib
import random
import signal
import time

import psutil

from opusclip_mlops.folder import RunFolder
from tests.faults.holdings import assert_whole
from tests.faults.site import SOAK, Site
from tests.journeys import wait_until

KILLS = 100 if SOAK else 20
SINKS = ("mlflow", "tensorboard", "wandb")
UNTIL_TOLD = """\
with ExperimentTracker() as tracker:
    step = 0
    while not os.path.exists("enough"):
        ledger.steps(tracker, 10, first=step, wait_s=0.002)
        step += 10
"""


def await_batch(folder: RunFolder, sink: str) -> None:
    """Wait until a sink is being given something: the worst moment for it to die."""
    number = folder.progress(sink).number
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        progress = folder.progress(sink)
        if progress.given and progress.number > number:
            return
        time.sleep(0.0005)


def test_whatever_is_killed_is_started_again_and_doubles_nothing(site: Site) -> None:
    """Kill -9 of supervisor and sinks at random moments: each point once, in all three places."""
    chance = random.Random(4)
    trainer = site.start(UNTIL_TOLD)
    folder = site.await_journal()
    wait_until(lambda: all(folder.progress(sink).records for sink in SINKS))
    killed = 0
    while killed < KILLS:
        name = chance.choice(("supervisor", *SINKS))
        victim = site.await_process(name)
        if name in SINKS and chance.random() < 0.7:
            await_batch(folder, name)
        else:
            time.sleep(chance.random() / 2)
        # It may have been one that gave way to another.
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
            killed += 1
    for name in ("supervisor", *SINKS):
        site.await_process(name)
    trainer.await_calls(3000)
    (site.folder / "enough").touch()
    assert trainer.wait() == 0
    site.await_delivery()
    assert site.run().info.status == "FINISHED"
    assert_whole(site)


def test_a_stopped_supervisor_goes_on_when_continued(site: Site) -> None:
    """A supervisor that is stopped for a while, a sink killed meanwhile: all is delivered."""
    trainer = site.start(UNTIL_TOLD)
    folder = site.await_journal()
    wait_until(lambda: all(folder.progress(sink).records for sink in SINKS))
    supervisor = site.await_process("supervisor")
    supervisor.send_signal(signal.SIGSTOP)
    site.await_process("tensorboard").kill()
    calls = len(trainer.calls)
    trainer.await_calls(calls + 200)
    supervisor.send_signal(signal.SIGCONT)
    (site.folder / "enough").touch()
    assert trainer.wait() == 0
    site.await_delivery()
    assert_whole(site)
