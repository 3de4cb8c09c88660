"""Facts about `opusclip_mlops.reports.run_sections`: what a page says of one run."""

from types import SimpleNamespace
from typing import Any, cast

from opusclip_mlops.bottlenecks import Figures, Spent, report_of
from opusclip_mlops.chain import Problem
from opusclip_mlops.contrasts import Facts
from opusclip_mlops.listing import LeftOut, Part
from opusclip_mlops.page_media import Embedder
from opusclip_mlops.records import Files
from opusclip_mlops.reports.reading import RunRead
from opusclip_mlops.reports.registry_past import Made, ModelPast
from opusclip_mlops.reports.run_sections import sections_of, summary_of


def read(tags: dict[str, str] | None = None, **fields: Any) -> RunRead:
    """A run of which this is known."""
    facts = Facts(run_id="r" * 32, run_name="kite", status="RUNNING", start_ms=0)
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
