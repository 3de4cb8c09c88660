"""Threads, forks, data loaders' workers and several processes, all logging to one run."""

import pytest

from opusclip_mlops import journal
from opusclip_mlops.records import Metrics
from tests.faults.holdings import assert_whole
from tests.faults.site import Site

THREADS = """\
with ExperimentTracker() as tracker:
    def work(number):
        ledger.steps(tracker, 200, who=f"thread{number}")
    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for one in threads: one.start()
    for one in threads: one.join()
"""
FORKED = """\
    for number in range(4):
        if not os.fork():
            ledger.steps(tracker, 100, who=f"fork{number}")
            os._exit(0)
"""
FORKS = """\
import multiprocessing

def work(name):
    ledger.steps(tracker, 100, who=name)

with ExperimentTracker() as tracker:
    child = os.fork()
    if not child:
        work("fork")
        os._exit(0)
    context = multiprocessing.get_context("fork")
    others = [context.Process(target=work, args=(f"process{n}",)) for n in range(2)]
    for one in others: one.start()
    work("parent")
    os.waitpid(child, 0)
    for one in others: one.join()
"""
CRASHING_CHILDREN = """\
with ExperimentTracker() as tracker:
    ledger.steps(tracker, 20)
    ends = [
        lambda: sys.exit(3), lambda: 1 / 0, lambda: os.kill(os.getpid(), signal.SIGTERM),
        lambda: ctypes.string_at(0), os.abort, lambda: os._exit(4),
    ]
    for number, end in enumerate(ends):
        child = os.fork()
        if not child:
            ledger.steps(tracker, 5, who=f"child{number}")
            end()
        os.waitpid(child, 0)
    ledger.steps(tracker, 20, first=20)
"""
LOADERS = """\
import torch

class Clips(torch.utils.data.Dataset):
    def __init__(self, tracker, name):
        self.tracker, self.name = tracker, name

    def __len__(self):
        return 40

    def __getitem__(self, at):
        ledger.log(self.tracker, {f"{self.name}/bytes": at + 1 / 7}, at)
        return at

if __name__ == "__main__":
    with ExperimentTracker() as tracker:
        how = os.environ["HOW"]
        loader = torch.utils.data.DataLoader(
            Clips(tracker, how), num_workers=2, multiprocessing_context=how
        )
        assert len(list(loader)) == 40
        ledger.steps(tracker, 50)
"""


@pytest.mark.parametrize("body", [THREADS, FORKS], ids=["threads", "forks"])
def test_one_tracker_in_many_hands(site: Site, body: str) -> None:
    """Each call of each thread, child and worker is there once, under its own step."""
    trainer = site.train(body)
    assert (trainer.wait(), trainer.stderr) == (0, "")
    assert site.run().info.status == "FINISHED"
    assert_whole(site)


def test_a_child_that_dies_is_not_the_runs_end(site: Site) -> None:
    """However a forked child ends, the run goes on; what the child logged is there."""
    trainer = site.train(CRASHING_CHILDREN)
    assert trainer.wait() == 0
    run = site.run()
    assert run.info.status == "FINISHED"
    assert {"opusclip.end_reason", "opusclip.traceback"} & set(run.data.tags) == set()
    assert_whole(site)


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_a_tracker_inside_a_dataset(site: Site, how: str) -> None:
    """What a data loader's workers log is there, whether they are forked or spawned."""
    trainer = site.train(LOADERS, HOW=how)
    assert (trainer.wait(), trainer.stderr) == (0, "")
    assert site.run().info.status == "FINISHED"
    assert_whole(site)


def test_eight_processes_on_one_run(site: Site) -> None:
    """Processes that were given the run's id share it; it ends when the last one has."""
    experiment = site.client.create_experiment(site.experiment)
    run_id = site.client.create_run(experiment).info.run_id
    body = (
        "with ExperimentTracker() as tracker:\n"
        "    ledger.steps(tracker, 100, wait_s=0.005, who=os.environ['WHO'])\n"
    )
    trainers = [site.start(body, MLFLOW_RUN_ID=run_id, WHO=f"rank{n}") for n in range(8)]
    assert [trainer.wait() for trainer in trainers] == [0] * 8
    site.await_delivery()
    assert site.run().info.status == "FINISHED"
    assert_whole(site)


def test_no_frame_is_torn_by_a_neighbour(site: Site) -> None:
    """What threads and forked children write to the journal at once are whole frames only."""
    trainer = site.start(THREADS + FORKED + "    time.sleep(600)\n")
    folder = site.await_journal()
    trainer.await_calls(8 * 200 + 4 * 100)
    items = [item for path in folder.segments() for item in journal.read(path, ended=True)]
    records = [item.record for item in items if isinstance(item, journal.Entry)]
    assert len(records) == len(items)
    keys = [key for one in records if isinstance(one, Metrics) for key in one.values]
    assert [keys.count(f"thread{n}/loss") for n in range(8)] == [200] * 8
    assert [keys.count(f"fork{n}/loss") for n in range(4)] == [100] * 4
    trainer.kill()
