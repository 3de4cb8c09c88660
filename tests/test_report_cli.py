"""The verb that makes a report, run as the command runs it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops.cli import main
from tests.journeys import store
from tests.reports.reported_runs import bare_run

Said = Callable[..., tuple[int, str]]


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """A store with a run called "kite"."""
    bare_run(MlflowClient(store(tmp_path)), "kite", {"val/loss": [1.0, 0.5], "train/loss": [1.0]})
    return store(tmp_path)


def test_a_report_is_written_and_logged(said: Said, uri: str) -> None:
    """Where it is is said: the page and both artifacts."""
    code, text = said("report", "kite", "--out", "kite.html", "--tracking-uri", uri)
    assert code == 0
    lines = text.splitlines()
    assert lines[0].startswith("kite.html: ")
    assert [line.partition("/")[2] for line in lines[1:]] == [
        "reports/report.html",
        "reports/report.md",
    ]
    assert Path("kite.html").read_text().startswith("<!doctype html>")


def test_the_short_report_is_printed_alone(
    uri: str, said: Said, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ready to be sent into a pull request; all else is on stderr."""
    code, text = said("report", "kite", "--markdown", "--no-log", "--tracking-uri", uri)
    assert (code, text.splitlines()[0]) == (0, "## kite: FINISHED")
    assert "report-" not in text.partition("```")[0]
    assert capsys.readouterr().out == ""


def test_the_short_report_goes_into_a_file(said: Said, uri: str) -> None:
    """Where one is named."""
    line = ("report", "kite", "--markdown", "kite.md", "--no-log", "--tracking-uri", uri)
    assert said(*line)[0] == 0
    assert Path("kite.md").read_text().startswith("## kite: FINISHED\n")


def test_for_scripts_it_is_json(said: Said, uri: str) -> None:
    """With what could not be read, and the Markdown."""
    line = ("report", "kite", "--json", "--metric", "val/*", "--no-log", "--tracking-uri", uri)
    code, text = said(*line)
    content = json.loads(text)
    assert code == 0
    assert content["unread"] == []
    assert content["logged"] == []
    assert content["size_bytes"] == Path(content["file"]).stat().st_size
    assert 'data-key="train/loss"' not in Path(content["file"]).read_text()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ((), "name runs, or an --experiment, and not both"),
        (("nobody",), "no run in MLflow is called 'nobody'"),
        (("kite", "--json", "--markdown"), "--json has the Markdown too"),
        (("kite", "--no-log", "--log-to", "kite"), "--no-log and --log-to exclude each other"),
        (("kite", "--out", "."), "cannot be written"),
        (("kite", "--out", "-"), "--out takes the name of a file"),
        (("kite", "--markdown", "away/kite.md"), "its folder is not there"),
        (("--markdown", "kite", "other"), "--markdown takes a FILE that ends in .md, not kite"),
        (("kite", "--out", "a.md", "--markdown", "./a.md"), "are one file"),
        (("kite", "--metric", "none/*"), "has no metric called none/*"),
    ],
)
def test_wrong_use_is_one_line(said: Said, uri: str, line: tuple[str, ...], expected: str) -> None:
    """What is wrong, before anything is written."""
    code, text = said("report", *line, "--tracking-uri", uri)
    assert code == 2
    assert expected in text
    assert len(text.splitlines()) == 1
    assert list(Path().glob("*.html")) == []


def test_who_may_not_write_has_the_report_all_the_same(
    said: Said, uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Page, Markdown and JSON are there; what to do is said, and the exit code is 1."""

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(MlflowClient, "log_artifact", refused)
    code, text = said("report", "kite", "--json", "--out", "kite.html", "--tracking-uri", uri)
    content = json.loads(text)
    assert code == 1
    assert "Permission denied" in content["not_logged"]
    assert content["logged"] == []
    assert content["markdown"].startswith("## kite: FINISHED")
    assert Path("kite.html").read_text().startswith("<!doctype html>")
    with pytest.raises(SystemExit):
        main(("report", "kite", "--markdown", "--out", "kite.html", "--tracking-uri", uri))
    printed = capsys.readouterr()
    assert printed.out.startswith("## kite: FINISHED")
    assert "the report is written, but cannot be logged in run" in printed.err
    assert "--no-log" in printed.err
