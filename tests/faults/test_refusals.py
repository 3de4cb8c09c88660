"""Records that MLflow refuses for good: they are kept with the reason, and hold up no other."""

import json
from typing import Any

from tests.faults.holdings import assert_mirrors_whole, assert_whole
from tests.faults.site import Site, Trainer
from tests.journeys import wait_until
from tests.reading import points_of_mlflow

LONG_KEY = "k" * 300
ODD_RECORD = f"""\
from opusclip_mlops.journal import Journal
from opusclip_mlops.records import Metrics

def log_odd(tracker):
    folder = os.path.abspath(f".opusclip/journal/{{tracker.local_id}}")
    odd = Journal(__import__("pathlib").Path(folder), "odd")
    with ledger.call("metrics", 7, {{"{LONG_KEY}": 1.5}}):
        odd.append(Metrics(time.time_ns() // 1_000_000, 7, {{"{LONG_KEY}": 1.5}}))
    odd.close()
"""


def await_refusal(site: Site) -> None:
    """Wait until the run is delivered but for what was refused: then its folder stays."""
    wait_until(lambda: not site.processes())
    assert len(site.journals) == 1


def rejected(site: Site) -> list[dict[str, Any]]:
    """The lines of rejected.jsonl."""
    [folder] = site.journals
    return [json.loads(line) for line in folder.rejected.read_text().splitlines()]


def assert_said(site: Site, trainer: Trainer, count: int) -> None:
    """close() has said how many records were refused, and where they are."""
    [line] = [line for line in trainer.stderr.splitlines() if "refused" in line]
    assert f"refused {count} record" in line
    assert str(site.journals[0].rejected) in line


def test_a_key_that_is_too_long(site: Site) -> None:
    """One log call among many is refused: the others of its batch are delivered."""
    trainer = site.start(
        ODD_RECORD + "with ExperimentTracker() as tracker:\n"
        "    ledger.steps(tracker, 50)\n"
        "    log_odd(tracker)\n"
        "    ledger.steps(tracker, 50, first=50)\n"
    )
    assert trainer.wait() == 0
    await_refusal(site)
    assert_whole(site, refused=[LONG_KEY])
    [line] = rejected(site)
    assert line["sink"] == "mlflow"
    assert "250" in line["reason"]
    assert LONG_KEY in line["record"]["values"]
    assert_said(site, trainer, 1)
    assert site.run().info.status == "FINISHED"


def test_a_param_that_changes(site: Site) -> None:
    """A param keeps its first value; the second is put aside, with the reason."""
    trainer = site.start(
        "with ExperimentTracker() as tracker:\n"
        "    tracker.log_params({'depth': 4, 'width': 8})\n"
        "    ledger.steps(tracker, 50)\n"
        "    tracker.log_params({'depth': 5, 'rate': 0.1})\n"
        "    ledger.steps(tracker, 50, first=50)\n"
    )
    assert trainer.wait() == 0
    await_refusal(site)
    assert_whole(site)
    assert site.run().data.params == {"depth": "4", "width": "8", "rate": "0.1"}
    [line] = rejected(site)
    assert line["record"]["values"] == {"depth": "5"}
    assert "'4'" in line["reason"]
    assert_said(site, trainer, 1)


def test_a_run_that_is_deleted_midway(site: Site) -> None:
    """Every call is in MLflow or put aside, none in both; the mirrors hold all."""
    trainer = site.start(
        "with ExperimentTracker() as tracker:\n"
        "    ledger.steps(tracker, 50)\n"
        "    while not os.path.exists('enough'): time.sleep(0.05)\n"
        "    ledger.steps(tracker, 50, first=50)\n"
    )
    trainer.await_calls(50)
    site.await_journal()
    wait_until(lambda: site.journals[0].progress("mlflow").records > 50)
    run = site.run()
    site.client.delete_run(run.info.run_id)
    (site.folder / "enough").touch()
    assert trainer.wait() == 0
    await_refusal(site)
    aside = {
        (key, line["record"]["step"], value)
        for line in rejected(site)
        for key, value in line["record"].get("values", {}).items()
        if "step" in line["record"]
    }
    held = points_of_mlflow(site.client, run.info.run_id)
    there = {(point.key, point.step, float(point.value)) for point in held}
    assert aside & there == set()
    every = assert_mirrors_whole(site, run)
    assert aside | there == {(point.key, point.step, float(point.value)) for point in every}
    assert "refused" in trainer.stderr
