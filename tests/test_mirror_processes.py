"""Processes that mirror: one that dies is started again, without the run it dies at."""

import sys
from pathlib import Path

import pytest

from opusclip_mlops import mirror_processes
from opusclip_mlops.errors import DeliveryError
from opusclip_mlops.mirror_work import RunReport, Work
from opusclip_mlops.targets import Target

TARGET = Target(kind="tensorboard", folder="/runs")
PYTHON = sys.executable
WORKER = """
import json, os, sys
work = json.loads(sys.stdin.buffer.readline())
for run_id in work["run_ids"]:
    if run_id in work.get("skip", []):
        continue
    for outcome in ("begun", "mirrored"):
        if (run_id, outcome) == ("bad", "mirrored"):
            print("it broke", file=sys.stderr)
            os._exit(9)
        print(json.dumps({"target": "t", "run_id": run_id, "outcome": outcome}), flush=True)
print("a library's own words", flush=True)
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A worker of the test's own, in place of the real one."""
    path = tmp_path / "worker"
    path.write_text(f"#!{sys.executable}\n{WORKER}")
    path.chmod(0o755)
    monkeypatch.setattr(mirror_processes.sys, "executable", str(path))
    monkeypatch.setattr(mirror_processes, "_FIRST_PAUSE_S", 0.01)
    return path


def test_a_run_that_kills_its_process_stops_no_other(worker: Path) -> None:
    """It is tried three times, and reported with the last word; all others are mirrored."""
    assert worker.exists()
    shown: list[RunReport] = []
    work = Work(target=TARGET, run_ids=["a", "bad", "b"])
    found = {one.run_id: one for one in mirror_processes.do([work], shown.append)}
    assert {id_: one.outcome for id_, one in found.items()} == {
        "a": "mirrored", "bad": "failed", "b": "mirrored",
    }  # fmt: skip
    assert found["bad"].error == "its process ended with code 9: it broke"
    begun = [one.run_id for one in shown if one.outcome == "begun"]
    assert begun == ["a", "bad", "bad", "bad", "b"]


def test_a_process_that_does_nothing_at_all_is_an_error(
    worker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line with its last word."""
    worker.write_text(f"#!{PYTHON}\nraise SystemExit('no such module')\n")
    monkeypatch.setattr(mirror_processes, "_LAST_PAUSE_S", 0.02)
    with pytest.raises(DeliveryError, match="no such module"):
        mirror_processes.do([Work(target=TARGET, run_ids=["a"])], lambda _: None)


def test_a_follower_outlives_any_number_of_faults(
    worker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that asks to be started again has not died at a run: none is left out for it."""
    count = worker.with_name("count")
    count.write_text("")
    worker.write_text(
        f"#!{PYTHON}\nimport json, os, pathlib, sys\n"
        f"count = pathlib.Path({str(count)!r})\n"
        "skip = json.loads(sys.stdin.buffer.readline())['skip']\n"
        "print(json.dumps({'target': 't', 'run_id': 'a', 'outcome': 'begun'}), flush=True)\n"
        "count.write_text(count.read_text() + 'x')\n"
        "os._exit(0 if skip or len(count.read_text()) > 5 else 75)\n"
    )
    monkeypatch.setattr(mirror_processes, "_LAST_PAUSE_S", 0.02)
    shown: list[RunReport] = []
    mirror_processes.do([Work(target=TARGET, does="follow", run_ids=["a"])], shown.append)
    assert {one.outcome for one in shown} == {"begun"}
    assert len(shown) == 6
