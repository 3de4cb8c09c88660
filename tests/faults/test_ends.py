"""How a training script can end, each in a process of its own."""

import contextlib
import json
import signal
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import pytest
from mlflow.entities import Run

from tests.faults.holdings import assert_whole, crash_reports, summary_in_mirrors
from tests.faults.proxy import FaultProxy
from tests.faults.site import Site, Trainer, has_ended
from tests.journeys import wait_until

BEGIN = (
    "tracker = ExperimentTracker()\nledger.steps(tracker, 20)\n"
    "logging.getLogger('train').warning('for https://anna:hunter22@team/x')\n"
)
WAIT = "ledger.say('waiting')\ntime.sleep(600)\n"


@dataclass(frozen=True)
class Ending:
    """How a script ends, and what its run then says."""

    body: str
    status: str
    code: int
    reason: str = ""
    traceback: str = ""
    send: signal.Signals | None = None


ENDINGS = {
    "an exception": Ending(
        "def lose():\n    raise ValueError('no loss')\nlose()", "FAILED", 1, "no loss", "in lose"
    ),
    "an exception in a block": Ending(
        "with tracker:\n    {}['no key']", "FAILED", 1, "no key", "KeyError"
    ),
    "sys.exit(3)": Ending("sys.exit(3)", "FAILED", 3, "3"),
    "raise SystemExit(3)": Ending("raise SystemExit(3)", "FAILED", 3, "3"),
    "sys.exit(0)": Ending("sys.exit(0)", "FINISHED", 0),
    "no close()": Ending("", "FINISHED", 0),
    "Ctrl-C": Ending(WAIT, "KILLED", -2, "KeyboardInterrupt", send=signal.SIGINT),
    "SIGTERM": Ending(WAIT, "KILLED", -15, "SIGTERM", send=signal.SIGTERM),
    "SIGHUP": Ending(WAIT, "KILLED", -1, "SIGHUP", send=signal.SIGHUP),
    "os._exit(3)": Ending("os._exit(3)", "FAILED", 3, "without closing"),
    # Where the kernel tells nobody's exit code but to its parent, the 0 is not known.
    "os._exit(0)": Ending("os._exit(0)", "FINISHED or FAILED", 0, "without closing"),
    "a segfault": Ending("ctypes.string_at(0)", "FAILED", -11, "SIGSEGV", "train"),
    "abort()": Ending("os.abort()", "FAILED", -6, "SIGABRT", "train"),
    "an exception in a thread": Ending(
        "t = threading.Thread(target=lambda: 1 / 0)\nt.start()\nt.join()", "FINISHED", 0
    ),
    "its own SIGTERM handler": Ending(
        "saved = threading.Event()\n"
        "def save(*_):\n"
        "    ledger.steps(tracker, 5, first=20, who='saved')\n"
        "    saved.set()\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "ledger.say('waiting')\n"
        "saved.wait()\n"
        "ledger.steps(tracker, 5, first=30)\n",
        "FINISHED",
        0,
        send=signal.SIGTERM,
    ),
}
AT_ONCE = 3
PATIENT = """\
try:
    with ExperimentTracker() as tracker:
        ledger.steps(tracker, 20)
        ledger.say("waiting")
        time.sleep(600)
except KeyboardInterrupt:
    pass
"""


@pytest.fixture(scope="module")
def ended(new_site: Callable[[str], Site]) -> dict[str, tuple[Site, Trainer]]:
    """Every ending has happened; a few at a time, as a machine has few cores."""
    done: dict[str, tuple[Site, Trainer]] = {}
    names = list(ENDINGS)
    for at in range(0, len(names), AT_ONCE):
        some = {name: begun(new_site, ENDINGS[name]) for name in names[at : at + AT_ONCE]}
        for name, (_, trainer) in some.items():
            if number := ENDINGS[name].send:
                trainer.await_word("waiting")
                trainer.send(number)
        for _, trainer in some.values():
            trainer.wait()
        for site, _ in some.values():
            site.await_delivery()
        done |= some
    return done


def begun(new_site: Callable[[str], Site], ending: Ending) -> tuple[Site, Trainer]:
    """A site with the trainer that is to end so."""
    site = new_site("ending")
    return site, site.start(BEGIN + ending.body)


def of(run: Run, tag: str) -> str:
    """What a tag of ours says, empty where it isn't set."""
    return str(run.data.tags.get(f"opusclip.{tag}", ""))


@pytest.mark.parametrize("name", ENDINGS)
def test_the_run_says_how_it_ended(ended: dict[str, tuple[Site, Trainer]], name: str) -> None:
    """Status, reason and traceback tell what happened; the exit code is what it always was."""
    site, trainer = ended[name]
    ending, run = ENDINGS[name], site.run()
    assert run.info.status in ending.status
    assert trainer.wait() == ending.code
    assert ending.reason in of(run, "end_reason")
    assert bool(of(run, "end_reason")) == bool(ending.reason)
    assert ending.traceback in of(run, "traceback")


@pytest.mark.parametrize("name", ENDINGS)
def test_what_died_has_a_true_report(ended: dict[str, tuple[Site, Trainer]], name: str) -> None:
    """One, in its artifacts: who, how, its lines and last words, no credential; else there is none.

    The mirrors have its summary.
    """
    (site, trainer), run = ended[name], ended[name][0].run()
    assert summary_in_mirrors(site) == (run.info.status != "FINISHED")
    reports = crash_reports(site)
    if run.info.status == "FINISHED":
        assert reports == {}
        return
    [report] = reports.values()
    facts, code = json.loads(report["report.json"]), trainer.wait()
    assert (facts["status"], facts["reason"]) == (run.info.status, of(run, "end_reason"))
    assert (facts["pid"], facts["last_step"]) == (trainer.pid, 19)
    assert facts["exit_code"] in (None, code)
    # Ctrl-C is an exception.
    struck = "" if code >= 0 or code == -signal.SIGINT else signal.Signals(-code).name
    assert facts["signal"] == struck
    assert report["report.txt"].startswith(f"{facts['status']}: {facts['reason']}")
    assert ENDINGS[name].traceback in report.get("traceback.txt", "")
    assert report["log.txt"].endswith("WARNING train: for https://anna:***@team/x\n")
    assert json.loads(report["metrics.json"])["points"]
    assert "hunter22" not in "".join(report.values())


@pytest.mark.parametrize("name", ENDINGS)
def test_all_that_was_logged_is_there(ended: dict[str, tuple[Site, Trainer]], name: str) -> None:
    """However it ended, the three places hold each call that returned."""
    assert_whole(ended[name][0])


def test_a_job_that_is_ended_as_a_whole(site: Site) -> None:
    """A scheduler's SIGTERM to every process, the shipper's too: the run is KILLED, and whole."""
    trainer = site.start(BEGIN + "ledger.steps(tracker, 10_000, first=20, wait_s=0.01)")
    folder = site.await_journal()
    wait_until(lambda: folder.progress("mlflow").records > 50)
    for process in (*site.processes(), psutil.Process(trainer.pid)):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    assert trainer.wait() == -signal.SIGTERM
    site.reboot()
    done = site.opusclip("recover", "--all")
    assert done.returncode == 0, done.stderr
    assert site.run().info.status == "KILLED"
    assert "SIGTERM" in of(site.run(), "end_reason")
    [report] = crash_reports(site).values()
    assert json.loads(report["report.json"])["signal"] == "SIGTERM"
    assert_whole(site)


def test_the_handler_of_the_script_stays_its_own(ended: dict[str, tuple[Site, Trainer]]) -> None:
    """A script that saves on SIGTERM and goes on does both."""
    keys = {key for call in ended["its own SIGTERM handler"][1].calls for key in call.values}
    assert "saved/loss" in keys


def test_an_impatient_ctrl_c_ends_the_waiting_only(faulty_site: Site, proxy: FaultProxy) -> None:
    """A second Ctrl-C while close() waits leaves lines of ours, no traceback; delivery goes on."""
    with proxy.outage():
        trainer = faulty_site.start(PATIENT)
        trainer.await_word("waiting")
        trainer.send(signal.SIGINT)
        wait_until(lambda: has_ended(faulty_site.journals[0]))
        trainer.send(signal.SIGINT)
        assert trainer.wait() == 0
    lines = trainer.stderr.splitlines()
    assert lines
    assert [line for line in lines if not line.startswith("opusclip: ")] == []
    faulty_site.await_delivery()
    assert faulty_site.run().info.status == "KILLED"
    assert_whole(faulty_site)
