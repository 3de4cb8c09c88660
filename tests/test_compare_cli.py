"""The verb that compares runs, run as the command runs it."""

import errno
import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops.cli import main
from tests.journeys import store
from tests.panelled import panelled_run

Said = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with two runs that a tracker logged, with samples of one panel."""
    folder = tmp_path_factory.mktemp("compared")
    for name, lr in (("first", "0.1"), ("second", "0.2")):
        _, run = panelled_run(folder, (0,), run=name)
        client = MlflowClient(store(folder))
        client.log_param(run.info.run_id, "lr", lr)
        client.log_metric(run.info.run_id, "val/loss", float(lr), step=0)
    return store(folder)


def test_two_runs_are_compared(said: Said, uri: str) -> None:
    """Runs, params, metrics and samples; the exit code is 0, whatever differs."""
    code, text = said("compare", "first", "second", "--tracking-uri", uri)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert code == 0
    assert lines[0].startswith("A first ")
    assert lines[1].startswith("B second ")
    assert "lr 0.1 0.2" in lines
    assert "val/loss (lower) A 1 0.1 0 0.1 0 -" in lines
    assert "\x1b" not in text


def test_the_command_for_samples_makes_the_wall(said: Said, uri: str) -> None:
    """As it is printed."""
    _, text = said("compare", "first", "second", "--tracking-uri", uri)
    [command] = [line for line in text.splitlines() if line.startswith("  opusclip wall ")]
    code, _ = said(*shlex.split(command)[1:], "--out", "wall.html")
    assert code == 0
    assert Path("wall.html").stat().st_size > 1000


def test_for_scripts_it_is_json(said: Said, uri: str) -> None:
    """The options are those of the library's call."""
    line = ("compare", "second", "first", "--tracking-uri", uri, "--json", "--by", "time")
    code, text = said(*line, "--metric", "val/*", "--branch", "all", "--allow-unlike")
    content = json.loads(text)
    assert (code, content["by"]) == (0, "time")
    assert content["runs"]["A"]["run_name"] == "second"
    assert [row["key"] for row in content["metrics"]] == ["val/loss"]


def test_a_page_is_written_and_said_where(said: Said, uri: str) -> None:
    """Beside the text in its last line, and not into JSON; both runs' clips are on it."""
    line = ("compare", "first", "second", "--tracking-uri", uri, "--html")
    code, text = said(*line, "page.html")
    page = Path("page.html").read_text()
    assert code == 0
    assert re.fullmatch(r"page: page\.html, [\d.]+ KiB", text.splitlines()[-1])
    assert page.count("<video ") == 8
    assert "val/loss" in page
    code, text = said(*line, "again.html", "--json", "--by", "time")
    assert (code, json.loads(text)["by"]) == (0, "time")
    assert 'data-axis="step" hidden' in Path("again.html").read_text()


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_what_was_found_is_printed_though_its_page_fails(
    uri: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
) -> None:
    """A disk that is full at the end takes nothing of the comparison; the exit code is 2."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    line = ("compare", "first", "second", "--tracking-uri", uri, "--html", "page.html", *more)
    with pytest.raises(SystemExit) as ended:
        main(line)
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert "val/loss" in printed.out
    assert "page.html cannot be written: No space left on device" in printed.err.splitlines()[-1]
    assert not Path("page.html").exists()


def test_a_page_that_cannot_be_written_is_told_before_anything_is_read(said: Said) -> None:
    """One line, and nobody is asked."""
    for page, why in ((".", "it is there and is no file"), ("no/p.html", "folder is not there")):
        line = ("compare", "a", "b", "--tracking-uri", "http://127.0.0.1:9", "--html", page)
        code, text = said(*line)
        assert (code, text.count("\n")) == (2, 1)
        assert why in text


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        (["first"], "give two runs or more to compare"),
        (["first", "first"], "'first' and 'first' are one run"),
        (["first", "nobody"], "no run in MLflow is called 'nobody'"),
        (["first", "second", "--metric", "none*"], "no run has a metric called none*"),
    ],
)
def test_what_is_wrong_is_one_line(said: Said, uri: str, line: list[str], wrong: str) -> None:
    """And exit code 2."""
    code, text = said("compare", *line, "--tracking-uri", uri)
    assert (code, text.count("\n")) == (2, 1)
    assert wrong in text
