"""Facts about `opusclip_mlops.reports.run_sections`: what a page says of one run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from mlflow import MlflowClient

from opusclip_mlops.alerts.events import Event
from opusclip_mlops.bottlenecks import Figures, Spent, report_of
from opusclip_mlops.chain import Problem
from opusclip_mlops.contrasts import Facts
from opusclip_mlops.generations import Generation
from opusclip_mlops.listing import LeftOut, Part
from opusclip_mlops.page_media import Embedder
from opusclip_mlops.records import Files, Text
from opusclip_mlops.reports import markdown, report
from opusclip_mlops.reports.registry_past import Made, ModelPast
from opusclip_mlops.reports.run_read import RunRead
from opusclip_mlops.reports.run_sections import sections_of, summary_of
from tests.journeys import store
from tests.reports import reported_runs

Bare = Callable[..., str]


def read(tags: dict[str, str] | None = None, *, status: str = "RUNNING", **fields: Any) -> RunRead:
    """A run of which this is known."""
    facts = Facts(run_id="r" * 32, run_name="kite", status=status, start_ms=0)
    info = SimpleNamespace(run_id="r" * 32, experiment_id="7")
    run = cast("Any", SimpleNamespace(info=info, data=SimpleNamespace(tags=tags or {})))
    return RunRead(run=run, called="kite", facts=facts, **fields)


def sections(found: RunRead) -> dict[str, str]:
    """Its sections by their names."""
    return {one.id: one.html for one in sections_of(found, "", Embedder())}


def test_a_run_of_which_nothing_is_known_has_a_summary() -> None:
    """And nothing else."""
    assert list(sections(read())) == ["summary"]
    assert summary_of(read())["took"] == "it goes on"


def test_what_was_lost_on_the_way_is_said() -> None:
    """By the run's own count; nothing where nothing was."""
    lost = {"opusclip.dropped": "3", "opusclip.skipped": "0", "opusclip.lost_records": "1"}
    said = summary_of(read(lost))["left out"]
    assert said == "3 points shed or lost, 1 records lost for want of room on the disk"
    assert summary_of(read({"opusclip.dropped": "0"}))["left out"] == ""


def test_a_history_that_is_not_whole_is_told_where_its_decisions_stand() -> None:
    """With what is wrong with it."""
    past = ModelPast(
        model="kites",
        versions=(Made(version=1, stage="None", created_ms=0),),
        problems=(Problem(2, "was <changed>"),),
    )
    told = sections(read(models=(past,)))["registry"]
    assert "The history of kites is not whole: record 2 was &lt;changed&gt;" in told


def test_where_the_time_went_is_told_with_its_figures() -> None:
    """What limits the run, and the operations that took most."""
    spent = Spent(category="loop", name="data", uses=10, total_s=8.0, self_s=8.0, max_ms=900.0)
    report = report_of(Figures(seconds=10.0, steps=10, spent=(spent,)))
    told = sections(read(bottlenecks=report))["bottlenecks"]
    assert "limit: data" in told
    assert "<td>loop/data</td><td>10</td><td>8.000 s</td><td>80.0 %</td>" in told


def test_checkpoints_are_listed_with_what_is_wrong_with_others() -> None:
    """Step, size, hash, and whether it is the best."""
    files = Files(
        "checkpoint-1", "model", {}, {"weights.safetensors": 2048},
        {"name": "c1", "step": 5, "epoch": 0, "files": {"weights.safetensors": "ab" * 32},
         "metrics": {"val/loss": "0.25", "odd": "nan"}},
    )  # fmt: skip
    lost = LeftOut("checkpoints/c0", "it is not whole: weights.safetensors is missing")
    found = read({"opusclip.checkpoint.best": "c1"}, parts=(Part(files),), left_out=(lost,))
    told = sections(found)["checkpoints"]
    assert (
        "<td>c1</td><td>5</td><td>0</td><td>2.0 KiB</td><td>abababababab</td><td>best</td>" in told
    )
    assert "odd nan, val/loss 0.25" in told
    assert "checkpoints/c0: it is not whole" in told


BEGUN = Generation(number=1, start_ms=100, after_step=5, checkpoint="c5", parent=0)


@pytest.mark.parametrize(
    ("status", "begun", "at_ms", "title"),
    [
        ("FAILED", (), 50, "How it died"),
        ("FAILED", (BEGUN,), 150, "How it died"),
        ("FAILED", (BEGUN,), 50, "How an earlier part died"),
        ("FINISHED", (), 50, "How an earlier part died"),
        ("RUNNING", (), 50, "How an earlier part died"),
    ],
)
def test_a_run_that_went_on_did_not_die_of_its_crash(
    status: str, begun: tuple[Generation, ...], at_ms: int, title: str
) -> None:
    """The report of a crash stays there, as that of a part of the run."""
    found = read(
        status=status, generations=begun, crash=Text(at_ms, 5, "opusclip/crash", "SIGKILL")
    )
    [crash] = [one for one in sections_of(found, "", Embedder()) if one.id == "crash"]
    assert (crash.title, crash.html) == (title, "<pre>SIGKILL\n</pre>\n")


def event(alert: str, state: Any = "raised", **fields: Any) -> Event:
    """Something that was said of an alert."""
    said = {"number": 1, "message": f"{alert} is bad", "step": 3, "timestamp_ms": 50, **fields}
    return Event(alert=alert, state=state, **said)


def test_alerts_say_whether_they_stand() -> None:
    """One that recovered, and one that training went back behind, are no findings of now."""
    events = (
        event("old", step=9),
        event("well"), event("well", "recovered", timestamp_ms=60),
        event("again"), event("again", "recovered"), event("again", number=2, timestamp_ms=160),
        event("stands", step=4),
    )  # fmt: skip
    found = read(alerts=events, generations=(BEGUN,))
    said = "old (training went back behind it), well (recovered), again, stands"
    assert summary_of(found)["alerts"] == said
    assert "<td>raised, training went back behind it</td><td>9</td>" in sections(found)["alerts"]
    lines = [one for one in markdown.of_run(found, []).splitlines() if one.startswith("- alert")]
    assert [one.partition(" at")[0] for one in lines[:2]] == ["- alert again", "- alert stands"]
    assert "- alert well at step 3 (recovered): well is bad" in lines
    assert "- alert old at step 9 (training went back behind it): old is bad" in lines


def test_the_last_step_counts_what_is_no_number() -> None:
    """And a value behind which NaN came says so."""
    curve = replace(reported_runs.curve(1.0, 0.5), not_finite=10, ends_finite=False)
    found = read(curves={"train/loss": curve}, last_step=59)
    assert summary_of(found)["last step"] == "59"
    assert "<td>0.5, then NaN or infinite</td><td>1</td>" in sections(found)["summary"]
    assert "| train/loss | 0.5, then NaN or infinite | 1 |" in markdown.of_run(found, [])


def test_a_secret_by_its_name_is_not_told(bare: Bare, tmp_path: Path) -> None:
    """Neither alone nor where runs differ in it."""
    for name in ("one", "two"):
        run_id = bare(name, {"loss": [1.0]}, tags={"api_key": f"abcxyz-{name}"})
        client = MlflowClient(store(tmp_path))
        client.log_param(run_id, "db_password", f"hunter-{name}")
        client.log_param(run_id, "tokenizer", "t5")
    alone = report(["one"], logs=False, tracking_uri=store(tmp_path)).file.read_text()
    both = report(["one", "two"], logs=False, tracking_uri=store(tmp_path)).file.read_text()
    assert "hunter-" not in alone + both
    assert "abcxyz-" not in alone + both
    assert "<td>db_password</td><td>***</td>" in alone
    assert "<td>tokenizer</td><td>t5</td>" in alone


def test_commands_are_those_that_tell_something(bare: Bare, tmp_path: Path) -> None:
    """None of an experiment whose name moves a terminal's cursor, none of times nobody took."""
    nasty = "kites\x1b]0;x\x07\u202eevil"
    run_id = bare("one", {"loss": [1.0]}, experiment=nasty)
    uri = store(tmp_path)
    alone = report([run_id], logs=False, tracking_uri=uri)
    assert alone.markdown.count("opusclip ") == 1
    made = report(experiment=nasty, logs=False, tracking_uri=uri)
    assert made.markdown.isascii() or "\x1b" not in made.markdown
    assert "--experiment" not in made.markdown
    assert not {"\x1b", "\x07", "\u202e"} & set(made.markdown + made.file.read_text())
