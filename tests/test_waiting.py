"""Facts about `opusclip_mlops.waiting`: bars on a terminal, silence in a pipe, then plain words."""

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from opusclip_mlops import waiting
from opusclip_mlops.folder import Manifest, Progress, RunFolder
from opusclip_mlops.journal import Journal
from opusclip_mlops.records import Tags

SINKS = ["mlflow", "tensorboard", "wandb"]

SHOW = """
import sys
from pathlib import Path
from opusclip_mlops.folder import Progress, RunFolder
from opusclip_mlops.waiting import delivery_shown

folder = RunFolder(Path(sys.argv[1]))
with delivery_shown(folder, sys.argv[2:]) as show:
    show()
    size_bytes = folder.size_bytes()
    folder.write_progress("mlflow", Progress(position=size_bytes))
    folder.write_progress("wandb", Progress(position={n: s // 2 for n, s in size_bytes.items()}))
    show()
print("rich" if "rich" in sys.modules else "no rich")
"""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run's folder with a journal of which nothing has been delivered."""
    made = RunFolder(tmp_path / "journal" / "r1")
    made.create(Manifest(local_id="r1", cwd="/", sinks=SINKS, start_time_ms=1))
    log = Journal(made.path, "s1")
    log.append(Tags({"a": "b" * 5000}))
    log.close()
    return made


def on_a_terminal(*command: str, terminal: str = "xterm-256color") -> tuple[str, str]:
    """What a command writes to its terminal on stderr, and to stdout."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": terminal, "COLUMNS": "100"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(
        [sys.executable, "-c", *command], stderr=slave, stdout=subprocess.PIPE, env=environment
    ) as process:
        os.close(slave)
        shown = b""
        with os.fdopen(master, "rb", buffering=0) as screen:
            try:
                while part := screen.read(65_536):
                    shown += part
            except OSError:  # how Linux says that nobody writes there any more
                pass
        assert process.stdout is not None
        said = process.stdout.read()
    assert process.returncode == 0, shown.decode()
    return shown.decode(), said.decode()


def test_a_terminal_shows_a_bar_for_each_sink(folder: RunFolder) -> None:
    """Each sink has its line with how far it is, drawn anew as it goes on; stdout stays clean."""
    shown, said = on_a_terminal(SHOW, str(folder.path), *SINKS)
    for sink in SINKS:
        assert f"delivering to {sink}" in shown
    assert "0%" in shown
    assert "50%" in shown
    assert "100%" in shown
    assert said == "rich\n"


def test_no_bar_is_left_on_the_terminal(folder: RunFolder) -> None:
    """Once everything has arrived the lines are wiped and the cursor is back."""
    shown, _ = on_a_terminal(SHOW, str(folder.path), *SINKS)
    assert shown.rindex("\x1b[2K") > shown.rindex("delivering")
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_a_simple_terminal_will_do(folder: RunFolder) -> None:
    """One that cannot move its cursor is not filled with bars."""
    shown, _ = on_a_terminal(SHOW, str(folder.path), *SINKS, terminal="dumb")
    assert shown.count("delivering to mlflow") <= 1


def test_a_pipe_is_silent(folder: RunFolder) -> None:
    """In a batch job nothing is drawn, and the library that draws is not even loaded."""
    command = [sys.executable, "-c", SHOW, str(folder.path), *SINKS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stderr, done.stdout) == ("", "no rich\n")


@pytest.mark.parametrize("stream", [None, object(), io.StringIO(), "closed"])
def test_whatever_stands_in_for_stderr_will_do(
    folder: RunFolder, stream: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run closes also where stderr is away, closed, or an object of the user's own."""
    if stream == "closed":
        stream = io.StringIO()
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    with waiting.delivery_shown(folder, SINKS) as show:
        show()


def test_an_empty_run_can_be_shown(tmp_path: Path) -> None:
    """A run that has logged nothing yet is no division by zero."""
    empty = RunFolder(tmp_path / "journal" / "r2")
    empty.create(Manifest(local_id="r2", cwd="/", sinks=SINKS, start_time_ms=1))
    shown, _ = on_a_terminal(SHOW, str(empty.path), *SINKS)
    assert "delivering to wandb" in shown


def test_the_tracker_loads_no_drawing() -> None:
    """Importing the tracker costs a training process neither rich nor any backend."""
    code = "import sys, opusclip_mlops.tracker; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"rich", "mlflow", "torch", "wandb", "tensorboard", "numpy", "av", "PIL"}
    assert heavy.isdisjoint(done.stdout.split())


# What is left, in words


def test_nothing_is_said_when_everything_has_arrived(folder: RunFolder) -> None:
    """A run that was delivered whole ends without a word."""
    for sink in SINKS:
        folder.write_progress(sink, Progress(position=folder.size_bytes(), done=True))
    assert waiting.undelivered(folder, SINKS) == []


def test_what_has_not_arrived_is_said_for_each_sink(folder: RunFolder) -> None:
    """How many bytes, to where, and the last fault; the end of the run counts too."""
    sizes = folder.size_bytes()
    total = sum(sizes.values())
    folder.write_progress("mlflow", Progress(error="ConnectionError: refused"))
    folder.write_progress("tensorboard", Progress(position=sizes))
    folder.write_progress("wandb", Progress(position=sizes, done=True))
    assert waiting.undelivered(folder, SINKS) == [
        f"{total:,} bytes are still on their way to mlflow (ConnectionError: refused)",
        "the run's end is still on its way to tensorboard",
    ]


def test_sinks_that_no_user_has_named_are_told_in_words(folder: RunFolder) -> None:
    """What merges the points of ranks, and what carries them to another machine."""
    total = sum(folder.size_bytes().values())
    folder.write_progress("ranks", Progress(error="OSError: disk full"))
    assert waiting.undelivered(folder, ["ranks", "relay"]) == [
        "what ranks log together is still being merged (OSError: disk full)",
        f"{total:,} bytes are still on their way to the owner's machine",
    ]


def test_what_others_log_since_is_theirs_to_wait_for(folder: RunFolder) -> None:
    """With a goal only what was there by then counts; a journal that is gone was delivered."""
    goal = folder.size_bytes()
    assert len(waiting.undelivered(folder, SINKS, goal=goal)) == 3
    for sink in SINKS:
        folder.write_progress(sink, Progress(position=goal))
    log = Journal(folder.path, "s2")
    log.append(Tags({"a": "b"}))
    log.close()
    assert waiting.undelivered(folder, SINKS, goal={**goal, "gone.journal": 5}) == []
    left = sum(folder.size_bytes().values()) - sum(goal.values())
    said = f"{left:,} bytes are still on their way to mlflow"
    assert waiting.undelivered(folder, SINKS)[0] == said


def test_what_was_refused_is_said(folder: RunFolder) -> None:
    """A sink that refused something is named, with the file that holds it."""
    for sink in SINKS:
        folder.write_progress(sink, Progress(position=folder.size_bytes(), done=True))
    done = Progress(position=folder.size_bytes(), done=True, rejected=3)
    folder.write_progress("mlflow", done)
    assert waiting.undelivered(folder, SINKS) == [
        f"mlflow refused 3 records: see {folder.rejected}"
    ]


@pytest.mark.parametrize(
    ("sink", "is_whole", "error", "is_over"),
    [
        ("alerts", True, "webhook team: no connection", True),
        ("alerts", True, "", False),
        ("alerts", False, "webhook team: no connection", False),
        ("mlflow", True, "no connection", False),
    ],
)
def test_a_webhook_that_is_away_is_not_waited_for(
    folder: RunFolder, sink: str, is_whole: bool, error: str, is_over: bool
) -> None:
    """Once everything is judged; one that is being told is, and so is every other sink."""
    sizes = folder.size_bytes()
    folder.write_progress(sink, Progress(position=sizes if is_whole else {}, error=error))
    folder.write_progress("wandb", Progress(position=sizes, done=True))
    assert waiting.has_ended(folder, [sink, "wandb"]) == is_over
    folder.write_progress(sink, Progress(number=1, position=sizes, done=True))
    assert waiting.has_ended(folder, [sink, "wandb"])
