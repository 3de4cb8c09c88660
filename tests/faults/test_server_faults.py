"""An MLflow server that is away, slow or wrong, between a real server and a real trainer."""

import time

import pytest

from tests.faults.files import (
    MAKE_CHECKPOINT,
    MAKE_CLIP,
    assert_checkpoints_whole,
    assert_clips_whole,
)
from tests.faults.holdings import assert_whole
from tests.faults.proxy import FAULTS, FaultProxy
from tests.faults.site import SOAK, Site, Trainer
from tests.journeys import wait_until

TIMES = 5 if SOAK else 1
OUTAGE_S = 60.0 if SOAK else 3.0
SLOWEST_CALL_MS = 10.0
UNTIL_TOLD = """\
with ExperimentTracker() as tracker:
    step = 0
    while not os.path.exists("enough"):
        ledger.steps(tracker, 10, first=step, wait_s=0.01)
        step += 10
"""


def finish(site: Site, trainer: Trainer) -> None:
    """Let the trainer end; all has arrived, and no log call waited for the server."""
    (site.folder / "enough").touch()
    assert trainer.wait() == 0
    site.await_delivery()
    assert site.run().info.status == "FINISHED"
    assert_whole(site)
    slowest_ms = max(call.took_ms or 0 for call in trainer.calls)
    print(f"slowest of {len(trainer.calls)} log calls: {slowest_ms:.2f} ms")
    if SOAK:
        assert slowest_ms < SLOWEST_CALL_MS


def test_a_server_that_is_down_at_the_start(faulty_site: Site, proxy: FaultProxy) -> None:
    """The trainer logs on; all arrives once the server is there."""
    with proxy.outage():
        trainer = faulty_site.start(UNTIL_TOLD)
        folder = faulty_site.await_journal()
        wait_until(lambda: folder.progress("mlflow").faults > 0)
        trainer.await_calls(100)
    finish(faulty_site, trainer)


def test_a_server_that_goes_down_midway(faulty_site: Site, proxy: FaultProxy) -> None:
    """What was logged in the meantime arrives with its own times."""
    trainer = faulty_site.start(UNTIL_TOLD)
    folder = faulty_site.await_journal()
    wait_until(lambda: folder.progress("mlflow").records > 50)
    with proxy.outage():
        time.sleep(OUTAGE_S)
        wait_until(lambda: folder.progress("mlflow").faults > 0)
    finish(faulty_site, trainer)


def test_a_server_that_answers_wrongly(faulty_site: Site, proxy: FaultProxy) -> None:
    """Errors, resets, silence and answers cut after the server has committed: each point once."""
    trainer = faulty_site.start(UNTIL_TOLD)
    folder = faulty_site.await_journal()
    wait_until(lambda: folder.progress("mlflow").records > 50)
    for fault in FAULTS:
        passed = proxy.passed
        proxy.fail(fault, TIMES)
        wait_until(lambda fault=fault: proxy.met[fault] == TIMES)
        wait_until(lambda passed=passed: proxy.passed > passed)
    finish(faulty_site, trainer)


@pytest.mark.parametrize("fault", ["cut", "429 later"])
def test_a_run_is_made_once_whatever_the_answer(
    faulty_site: Site, proxy: FaultProxy, fault: str
) -> None:
    """With the first requests answered wrongly, the one that makes the run among them: one run."""
    proxy.fail(fault, 3)
    trainer = faulty_site.start(UNTIL_TOLD)
    trainer.await_calls(100)
    wait_until(lambda: proxy.met[fault] == 3)
    finish(faulty_site, trainer)
    assert len(faulty_site.runs()) == 1


def test_a_page_of_something_else_is_not_mlflows_word(faulty_site: Site, proxy: FaultProxy) -> None:
    """A web server before MLflow that answers 400 to all for a while has no record refused."""
    trainer = faulty_site.start(UNTIL_TOLD)
    folder = faulty_site.await_journal()
    wait_until(lambda: folder.progress("mlflow").records > 50)
    proxy.fail("400", 1000)
    trainer.await_calls(len(trainer.calls) + 50)
    wait_until(lambda: folder.progress("mlflow").faults + folder.progress("mlflow").rejected)
    proxy.fail("400", 0)
    finish(faulty_site, trainer)


def test_files_through_a_faulty_server(faulty_site: Site, proxy: FaultProxy) -> None:
    """Uploads that are refused, reset, or cut after they were stored: each file whole, and once."""
    trainer = faulty_site.start(
        MAKE_CLIP + MAKE_CHECKPOINT + "with ExperimentTracker() as tracker:\n"
        "    ledger.steps(tracker, 10)\n"
        "    while not os.path.exists('enough'): time.sleep(0.02)\n"
        "    for step in range(3):\n"
        "        log_clip(tracker, 'samples/kite', step)\n"
        "        save(tracker, step)\n"
        "    ledger.steps(tracker, 10, first=10)\n"
    )
    folder = faulty_site.await_journal()
    wait_until(lambda: folder.progress("mlflow").records > 5)
    proxy.fail("cut", 1, method="PUT", part="mlflow-artifacts")
    (faulty_site.folder / "enough").touch()
    for number, fault in enumerate(("cut", "reset", "500", "half", "404"), start=1):
        wait_until(lambda number=number: proxy.met.total() == number)
        proxy.fail(fault, 1, method="PUT", part="mlflow-artifacts")
    assert trainer.wait() == 0
    faulty_site.await_delivery()
    assert proxy.met.total() == 6
    assert_whole(faulty_site)
    assert_clips_whole(faulty_site, "samples/kite")
    assert_checkpoints_whole(faulty_site)


def test_a_whole_run_without_a_server_is_recovered(faulty_site: Site, proxy: FaultProxy) -> None:
    """After a reboot `opusclip recover --all` makes the run, with its true start and end."""
    with proxy.outage():
        before_ms = time.time_ns() // 1_000_000
        trainer = faulty_site.start(
            "with ExperimentTracker() as tracker: ledger.steps(tracker, 200, wait_s=0.005)\n",
            OPUSCLIP_DRAIN_TIMEOUT_S="1",
        )
        assert trainer.wait() == 0
        after_ms = time.time_ns() // 1_000_000
        assert "mlflow" in trainer.stderr
        faulty_site.reboot()
    done = faulty_site.opusclip("recover", "--all")
    assert done.returncode == 0, done.stderr
    info = faulty_site.run().info
    first, last = trainer.calls[0], trainer.calls[-1]
    assert before_ms <= info.start_time <= first.before_ms
    assert (last.after_ms or 0) <= info.end_time <= after_ms
    assert info.status == "FINISHED"
    assert_whole(faulty_site)
    assert faulty_site.journals == []
