"""The watcher: what it does beside the requests, and what it does not for want of time."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from opusclip_mlops import journal
from opusclip_mlops.monitoring.settings import MonitorSettings
from opusclip_mlops.monitoring.watcher import Watcher
from opusclip_mlops.records import Metrics
from tests.served import eventually
from tests.servers import free_port

NOISE = np.random.default_rng(0).integers(0, 256, (24, 64, 64, 3), np.uint8)
ROWS = {"size": [1.0]}


@pytest.fixture
def journals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where journals go while MLflow is away; who delivers them is ended with the test."""
    folder = tmp_path / "journal"
    monkeypatch.setenv("OPUSCLIP_JOURNAL_DIR", str(folder))
    monkeypatch.setenv("OPUSCLIP_SYSTEM_METRICS", "false")
    monkeypatch.setenv("OPUSCLIP_DRAIN_TIMEOUT_S", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    yield folder
    for one in psutil.process_iter(["cmdline"]):
        if any(str(folder) in word for word in one.info["cmdline"] or ()):
            one.kill()


def logged(folder: Path) -> list[Metrics]:
    """The points that the journals hold."""
    entries = [one for path in folder.glob("*/*.journal*") for one in journal.read(path, 0)]
    records = [one.record for one in entries if isinstance(one, journal.Entry)]
    return [one for one in records if isinstance(one, Metrics)]


def test_a_store_that_is_away_keeps_nothing_waiting(journals: Path, tmp_path: Path) -> None:
    """Requests go on, the numbers are in the journal, and the end does not wait for it."""
    watcher = Watcher(tmp_path, MonitorSettings(port=0, interval_s=0.2, checks_share=1.0))
    watcher.start()
    watcher.start()
    began_s = time.process_time()
    for _ in range(100):
        watcher.asked(None, ROWS, None)
        watcher.gave(None, ROWS, NOISE, 0.01)
    assert time.process_time() - began_s < 5
    eventually(lambda: watcher.counts.tally().clips_checked > 0, "a clip is looked at")
    watcher.close()
    points = logged(journals)
    assert sum(one.values["serving/rows"] for one in points) == 100
    assert sum(one.values["serving/frames"] for one in points) == 2400
    assert watcher.counts.tally().faults == {}


def test_clips_are_looked_at_for_a_share_of_the_time(tmp_path: Path) -> None:
    """After one look the next is as far away as that one allows; answers between are counted."""
    watcher = Watcher(tmp_path, MonitorSettings(checks_share=0.001))
    began_s = time.monotonic()
    watcher.gave(None, ROWS, NOISE, 0.01)
    watcher._look()
    spent_s = time.monotonic() - began_s
    for _ in range(10):
        watcher.gave(None, ROWS, NOISE, 0.01)
        watcher._look()
    tally = watcher.counts.tally()
    assert (tally.clips_checked, tally.skipped["answers"]) == (1, 10)
    assert watcher._next_look_s > began_s + 100 * spent_s / 2


def test_inputs_are_read_for_a_share_of_the_models_time(tmp_path: Path) -> None:
    """A model that takes no time has its first rows read, and the others are counted."""
    watcher = Watcher(tmp_path, MonitorSettings())
    watcher.counts.read_inputs(1.0)
    watcher.asked(None, {"size": [1.0, 2.0]}, None)
    assert watcher.counts.tally().skipped == {"rows": 2}
    watcher.counts.predicted(1000.0, rows=1, frames=0)
    watcher.asked(None, {"size": [1.0, 2.0]}, None)
    assert watcher.counts.tally().skipped == {"rows": 2}


def test_a_part_that_cannot_begin_is_said_and_the_others_go_on(
    journals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A journal folder that is a file: no run, and the rest works."""
    journals.write_text("")
    watcher = Watcher(tmp_path, MonitorSettings(port=0, interval_s=0.2))
    watcher.start()
    watcher.gave(None, ROWS, NOISE, 0.01)
    eventually(lambda: watcher.counts.tally().clips_checked == 1, "a clip is looked at")
    watcher.close()
    assert "served without monitoring run: ConfigError" in capsys.readouterr().err
    assert watcher.counts.tally().faults == {"monitoring run": 1}
