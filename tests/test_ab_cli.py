"""The verb of blind votes, run as the command runs it."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops import ab_cli, cli
from opusclip_mlops.panels import Panel
from tests.panelled import panelled_run
from tests.test_blind_voting import _post

Said = Callable[..., tuple[int, str]]
PANEL = Panel(name="kites", prompts=("red", "green"))
COMMAND = [sys.executable, "-m", "opusclip_mlops.cli", "ab"]

for _verb in ab_cli.VERBS:
    cli.opusclip.add_command(_verb)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow with two runs that sampled one panel."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("first", "second"):
        panelled_run(folder, [0], run=name, panel=PANEL)
    return f"sqlite:///{folder}/mlflow.db"


@contextmanager
def voting(*line: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command at work, and the address it printed."""
    with subprocess.Popen(
        [*COMMAND, *line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        assert command.stderr
        try:
            lines = iter(command.stderr.readline, "")
            address = next((one.strip() for one in lines if one.startswith("http://")), "")
            assert address
            yield command, address
        finally:
            command.kill()


def test_stopped_by_the_keyboard_it_says_what_there_is(uri: str, tmp_path: Path) -> None:
    """Ctrl-C ends it as the page does: what was voted is kept, said and logged, exit code 0."""
    votes = tmp_path / "votes.jsonl"
    line = ("first", "second", "--panel", "kites", "--votes", str(votes), "--tracking-uri", uri)
    with voting(*line, "--json") as (command, address):
        assert _post(address, "vote", {"pair": 0, "choice": "tie"}) == 200
        command.send_signal(signal.SIGINT)
        printed, _ = command.communicate(timeout=240)
    found = json.loads(printed)
    assert command.returncode == 0
    assert (found["preference"]["ties"], found["verdict"]) == (1, "undecided")
    tags = MlflowClient(uri).get_run(found["a"]["run_id"]).data.tags
    assert tags[f"opusclip.ab.{found['session']}"] == found["sentence"]


def test_a_page_for_elsewhere_comes_back_as_a_file(said: Said, uri: str) -> None:
    """What is printed says how; the status says what the votes say, as lines and as JSON."""
    line = ("ab", "first", "second", "--panel", PANEL.title, "--tracking-uri", uri)
    more = ("--voter", "eve", "--votes", "votes.jsonl", "--page", "page.html")
    code, text = said(*line, *more)
    assert code == 0
    first, second = text.splitlines()
    assert first == "page.html: 2 pairs for voter eve"
    way = r"  add what it saves by: opusclip (ab --status votes.jsonl --add votes-(\w+).jsonl)"
    told = re.fullmatch(way, second)
    assert told
    assert stat.S_IMODE(os.stat("page.html").st_mode) == 0o600
    vote = {"kind": "vote", "sheet": told[2], "pair": 1, "choice": "tie", "timestamp_ms": 5}
    Path(f"votes-{told[2]}.jsonl").write_text(json.dumps(vote) + "\n")
    code, text = said(*told[1].split())
    assert code == 0
    sentence, *lines = text.splitlines()
    who = f"panel {PANEL.title}, A first (step 0), B second (step 0)"
    assert sentence.startswith(f"{who}: no vote for A or B yet, 1 tie")
    assert "    eve: 0, 0, 1" in lines
    code, text = said("ab", "--status", "votes.jsonl", "--json", "--minimum-effect", "0.2")
    found = json.loads(text)
    assert (code, found["sentence"]) == (0, sentence)
    assert found["preference"]["minimum_effect"] == 0.2
    code, text = said(*line, *more, "--voter", "bob", "--json")
    assert (code, json.loads(text)["voter"]) == (0, "bob")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ([], "give two runs and --panel, or --status and a file of votes; see opusclip ab --help"),
        (["first"], "give two runs and --panel, or --status"),
        (["first", "second"], "give two runs and --panel, or --status"),
        (["first", "second", "--status", "v"], "give two runs and --panel, or --status"),
        (["first", "second", "--panel", "kites", "--add", "v"], "--add goes with --status"),
        (["first", "second", "--panel", "kites", "--steps", "x"], "Invalid value for '--steps': "),
        (["first", "second", "--panel", "kites", "--steps", "7"], "run first has no such samples"),
        (["first", "first", "--panel", "kites"], "'first' and 'first' are one run: give two"),
        (["first", "none", "--panel", "kites"], "no run in MLflow is called 'none'"),
        (["--status", "none.jsonl"], "none.jsonl cannot be read: No such file or directory"),
        (["--status", "pyproject"], "pyproject is no file of blind votes"),
    ],
)
def test_what_is_wrong_is_one_line(said: Said, uri: str, line: list[str], problem: str) -> None:
    """And nothing is begun."""
    Path("pyproject").write_text("[x]\n")
    code, text = said("ab", *line, "--tracking-uri", uri)
    assert (code, len(text.splitlines())) == (2, 1)
    assert text.startswith("error: ")
    assert problem in text
    assert list(Path.cwd().glob("*.jsonl")) == []


def test_steps_are_asked_for_one_or_each(said: Said, uri: str) -> None:
    """The last, one of both, or one of each."""
    line = ("ab", "first", "second", "--panel", "kites", "--tracking-uri", uri, "--page", "p.html")
    assert said(*line, "--votes", "a.jsonl", "--steps", "0")[0] == 0
    assert said(*line, "--votes", "b.jsonl", "--steps", "0,0")[0] == 0
    code, text = said(*line, "--votes", "c.jsonl", "--steps", "0,5")
    assert code == 2
    assert "run second has no samples of step 5" in text
