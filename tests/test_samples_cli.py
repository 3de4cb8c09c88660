"""The verbs about samples, run as the command runs them."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from opusclip_mlops import cli, samples_cli, samples_console
from opusclip_mlops.delivery import deliver
from opusclip_mlops.panels import Panel
from tests.journeys import append, end, make_run
from tests.panelled import panelled_run, samples
from tests.servers import free_port
from tests.test_console import on_a_terminal
from tests.test_wall_page import content

ONE = Panel(name="kites", prompts=("a",))
OTHER = Panel(name="kites", prompts=("a", "b"), sampler={"steps": 20})

Said = Callable[..., tuple[int, str]]

for _verb in samples_cli.VERBS:
    cli.opusclip.add_command(_verb)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow with runs that sampled one panel, another of the same name, both, and none."""
    folder = tmp_path_factory.mktemp("runs")
    panelled_run(folder, [0, 10], run="first", panel=ONE)
    panelled_run(folder, [0, 20], run="second", panel=ONE)
    panelled_run(folder, [0], run="other", panel=OTHER)
    panelled_run(folder, [], run="none")
    both = make_run(folder, name="both", run_name="both")
    append(both, samples(both, 0, panel=ONE) + samples(both, 0, panel=OTHER))
    end(both)
    deliver(both, "mlflow")
    return f"sqlite:///{folder}/mlflow.db"


def columns(path: Path) -> list[tuple[str, int]]:
    """Run and step of each column of a page."""
    return [(one["run"], one["step"]) for one in content(path.read_text())["columns"]]


def test_runs_stand_side_by_side(said: Said, uri: str, tmp_path: Path) -> None:
    """Their columns in the order they are named in, all steps of each; the line says where."""
    code, text = said("wall", "second", "first", "--panel", "kites", "--tracking-uri", uri)
    assert (code, text.splitlines()[1:]) == (0, [])
    assert text.startswith(f"wall-{ONE.title}.html: panel {ONE.title}, 4 columns, 0.")
    found = columns(tmp_path / f"wall-{ONE.title}.html")
    assert found == [("second", 0), ("second", 20), ("first", 0), ("first", 10)]


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        ("last", [("first", 10), ("second", 20)]),
        ("0", [("first", 0), ("second", 0)]),
        ("0,20", [("first", 0), ("second", 0), ("second", 20)]),
    ],
)
def test_steps_are_chosen(
    said: Said, uri: str, tmp_path: Path, steps: str, found: list[tuple[str, int]]
) -> None:
    """The last of each, or by number; as JSON with what is lacking."""
    out = tmp_path / "w.html"
    code, text = said(
        "wall", "first", "second", "--panel", ONE.title, "--steps", steps, "--out", str(out),
        "--tracking-uri", uri, "--json",
    )  # fmt: skip
    made = json.loads(text)
    assert (code, columns(out)) == (0, found)
    assert (made["file"], made["title"], made["holes"]) == (str(out), ONE.title, {})
    assert made["steps"] == [step for _, step in found]
    assert made["size_bytes"] == out.stat().st_size
    lacking = ["Run first has no samples of step 20."] if steps == "0,20" else []
    assert made["notes"] == lacking


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (["first", "other", "--panel", "kites"],
         'error: runs first and other sampled different panels kites: prompts: [\'a\'] and '
         "['a', 'b']; sampler: {} and {'steps': 20}"),
        (["first", "--panel", "cars"],
         f"error: run first has no panel 'cars': it has {ONE.title}"),
        (["none", "--panel", "kites"],
         "error: run none has no panel 'kites': it has samples of no panel"),
        (["both", "--panel", "kites"],
         f"error: run both has 2 panels of this name, {', '.join(sorted([ONE.title, OTHER.title]))}"
         ": give one of these titles"),
        (["nobody", "--panel", "kites"],
         "error: no run in MLflow is called 'nobody': give its id, its name or a beginning of one, "
         "or another --tracking-uri than URI"),
        (["first", "--panel", "kites", "--steps", "some"],
         "error: --steps 'some' is none of: all, last, numbers like 0,500"),
        (["first", "--panel", "kites", "--steps", "7"],
         f"error: run first has no such samples of panel {ONE.title}: Run first has no samples of "
         "step 7"),
        (["first", "--panel", "kites", "--out", "pipe"],
         "error: pipe cannot be written: it is there and is no file"),
        (["first", "--panel", "kites", "--out", "none/w.html"],
         "error: none/w.html cannot be written: No such file or directory"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_one_line(
    said: Said, uri: str, line: list[str], problem: str
) -> None:
    """What is wrong, and which there are; no page is left."""
    os.mkfifo("pipe")
    code, text = said("wall", *line, "--tracking-uri", uri)
    assert (code, text.replace(uri, "URI")) == (2, f"{problem}\n")
    assert list(Path.cwd().glob("*.html*")) == []


def test_of_two_panels_of_a_name_that_which_all_runs_have(said: Said, uri: str) -> None:
    """A run with another panel of this name besides is no obstacle."""
    code, _ = said("wall", "first", "both", "--panel", "kites", "--tracking-uri", uri)
    assert (code, columns(Path(f"wall-{ONE.title}.html"))[-1]) == (0, ("both", 0))


def test_a_server_that_is_away_is_one_line(said: Said) -> None:
    """It is not waited for long."""
    code, text = said(
        "wall", "first", "--panel", "kites", "--tracking-uri", f"http://127.0.0.1:{free_port()}"
    )
    assert (code, len(text.splitlines())) == (2, 1)
    assert text.startswith("error: cannot read the samples: ")


SHOW = """
from opusclip_mlops import samples_console
with samples_console.progress_shown() as show:
    show("fetching clips", 3, 7)
"""


def test_a_terminal_shows_how_far_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    """A bar with a count, while it goes on; a pipe is told nothing."""
    screen = on_a_terminal(SHOW, columns=80)
    assert "fetching clips" in screen
    assert "3/7" in screen
    with samples_console.progress_shown() as show:
        show("fetching clips", 3, 7)
    assert capfd.readouterr() == ("", "")
