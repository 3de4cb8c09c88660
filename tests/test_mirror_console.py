"""What people and scripts are told of mirrors."""

import json
from pathlib import Path

import pytest

from opusclip_mlops import mirror_console
from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.folder import Identity, Progress
from opusclip_mlops.mirror_work import Missing, RunReport
from opusclip_mlops.replay import Places
from tests.journeys import make_run

LEFT = [Missing("trace 1", "mirrors have no place for it")]
REPORTS = [
    RunReport(target="tensorboard:runs", run_id="r1", run_name="one", outcome="mirrored",
              points=1200, media=1, words=2, left_out=LEFT),
    RunReport(target="wandb:clips", run_id="r1", run_name="one", outcome="failed", error="no"),
]  # fmt: skip


def test_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """A line a run and place; what was not carried comes at the end, by name and reason."""
    mirror_console.print_mirrored(REPORTS, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "tensorboard:runs  one r1  mirrored: 1,200 points, 1 medium, 2 texts about it",
        "wandb:clips  one r1  failed: no",
        "not carried:",
        "  r1 trace 1: mirrors have no place for it",
    ]


def test_json_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    """Everything, as it is."""
    mirror_console.print_verified(REPORTS, as_json=True)
    found = json.loads(capsys.readouterr().out)["mirrors"]
    assert [one["outcome"] for one in found] == ["mirrored", "failed"]
    assert found[0]["left_out"] == [{"name": "trace 1", "reason": "mirrors have no place for it"}]


def test_of_many_runs_only_the_bad_ones_get_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Behind a line with how many came to what."""
    many = [RunReport(target="t", run_id=f"r{n}", outcome="equal") for n in range(30)]
    bad = RunReport(
        target="t", run_id="bad", outcome="unequal", points=1, words=1, examples=["lacks: a"]
    )
    mirror_console.print_verified([*many, bad], as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "30 equal, 1 unequal",
        "t  bad  NOT EQUAL: lacks 1 point, 1 text about it differs",
        "  lacks: a",
    ]


@pytest.mark.parametrize(
    ("outcome", "is_well"),
    [("equal", True), ("mirrored", True), ("gone", False), ("busy", False), ("failed", False)],
)
def test_the_exit_code(outcome: str, is_well: bool) -> None:
    """Only a run that is as it should be is well."""
    assert mirror_console.is_well([RunReport(target="t", outcome=outcome)]) is is_well


def test_a_run_that_is_nowhere_is_an_error_of_one_line() -> None:
    """However many places were looked at; where others are there, each has its line."""
    gone = [RunReport(target=one, run_id="x", outcome="gone", error="no x") for one in ("t", "w")]
    with pytest.raises(OpusclipError, match=r"^no x$"):
        mirror_console.refuse_unknown(gone)
    mirror_console.refuse_unknown([*gone, RunReport(target="t", run_id="y", outcome="equal")])
    mirror_console.refuse_unknown([])


def test_of_a_run_that_differs_it_is_said_where_it_is_still_on_its_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On stderr, with the sinks that lack something; nothing of others, nor once it is there."""
    monkeypatch.setenv("OPUSCLIP_JOURNAL_DIR", str(tmp_path / "journal"))
    folder = make_run(tmp_path, ["mlflow", "tensorboard"])
    named = Identity(mirror_id="m", experiment_name="films", run_id="r1")
    folder.write_identity(named)
    folder.write_progress("mlflow", Progress(position=folder.size_bytes(), done=True))
    differs = RunReport(target="t", run_id="r1", outcome="unequal")
    mirror_console.tell_under_way([RunReport(target="t", run_id="r2", outcome="unequal")])
    mirror_console.tell_under_way([RunReport(target="t", run_id="r1", outcome="equal")])
    assert capsys.readouterr() == ("", "")
    mirror_console.tell_under_way([differs])
    out, told = capsys.readouterr()
    assert (out, told.count("\n")) == ("", 1)
    assert told.startswith("opusclip: run r1 is still on its way to tensorboard: verify it again")
    folder.write_progress("tensorboard", Progress(position=folder.size_bytes(), done=True))
    mirror_console.tell_under_way([differs])
    assert capsys.readouterr().err == ""


def test_without_a_key_it_is_said_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That W&B is written offline; not where that was asked for, nor where there is a key."""
    to = ["wandb:a", "wandb:b", "tensorboard:runs"]
    mirror_console.tell_offline(to, Places())
    assert capsys.readouterr().err.count("offline") == 2
    mirror_console.tell_offline(to, Places(wandb_mode="offline"))
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    mirror_console.tell_offline(to, Places())
    assert capsys.readouterr().err == ""


def test_nothing_is_shown_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """Progress is for terminals."""
    with mirror_console.progress_shown() as show:
        show(RunReport(target="t", run_id="r", outcome="begun"))
    assert capsys.readouterr() == ("", "")


def test_a_follower_says_what_happens(capsys: pytest.CaptureFixture[str]) -> None:
    """A line with the time for each thing that was done, none for what only begins."""
    with mirror_console.lines_shown(as_json=False) as show:
        show(RunReport(target="t", run_id="r", outcome="begun"))
        show(REPORTS[0])
    [line] = capsys.readouterr().out.splitlines()
    assert line.endswith(
        "tensorboard:runs  one r1  mirrored: 1,200 points, 1 medium, 2 texts about it"
    )
    with mirror_console.lines_shown(as_json=True) as show:
        show(REPORTS[0])
    assert json.loads(capsys.readouterr().out)["points"] == 1200
