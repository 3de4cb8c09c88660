"""The shipper's own processes killed and stopped while a trainer logs."""

import random
import signal
import time

import psutil

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


def processes(site: Site, name: str) -> list[psutil.Process]:
    """A sink's processes, or the supervisors."""
    return site.supervisors() if name == "supervisor" else site.sinks(name)


def await_process(site: Site, name: str) -> psutil.Process:
    """Wait until the sink or supervisor runs."""
    found: list[psutil.Process] = []
    wait_until(lambda: found.extend(processes(site, name)) or found)
    return found[0]


def test_whatever_is_killed_is_started_again_and_doubles_nothing(site: Site) -> None:
    """Kill -9 of supervisor and sinks at random moments: each point once, in all three places."""
    chance = random.Random(4)
    trainer = site.start(UNTIL_TOLD)
    folder = site.await_journal()
    wait_until(lambda: all(folder.progress(sink).records for sink in SINKS))
    for _ in range(KILLS):
        name = chance.choice(("supervisor", *SINKS))
        victim = await_process(site, name)
        time.sleep(chance.random() / 2)
        victim.kill()
    for name in ("supervisor", *SINKS):
        await_process(site, name)
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
    [supervisor] = site.supervisors()
    supervisor.send_signal(signal.SIGSTOP)
    await_process(site, "tensorboard").kill()
    calls = len(trainer.calls)
    trainer.await_calls(calls + 200)
    supervisor.send_signal(signal.SIGCONT)
    (site.folder / "enough").touch()
    assert trainer.wait() == 0
    site.await_delivery()
    assert_whole(site)
