"""Facts about `opusclip_mlops.console`: what an operator reads, on a terminal and in a pipe."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from opusclip_mlops import console
from opusclip_mlops.operating import Recovery, RunProgress, SinkRecovery
from opusclip_mlops.run_status import RunStatus, SessionStatus, SinkStatus

LOCAL_ID = "0123456789abcdef0123456789abcdef"
RUN_ID = "c0ffeec0ffeec0ffeec0ffeec0ffeec0"
WHERE = Path("/journals")


def sink(name: str = "mlflow", **about: Any) -> SinkStatus:
    known: dict[str, Any] = {
        "position_bytes": 1000,
        "backlog_bytes": 2000,
        "lag_records": 1203,
        "lag_is_estimate": False,
        "lag_s": 34.4,
        "delivered_records": 20_000,
        "refused_records": 1,
        "faults": 2,
        "last_error": "ConnectionError: [Errno 111] refused",
        "is_done": False,
    }
    return SinkStatus(sink=name, **{**known, **about})


def done_sink(name: str, **about: Any) -> SinkStatus:
    nothing = {"backlog_bytes": 0, "lag_records": 0, "lag_s": 0.0, "last_error": ""}
    return sink(name, **{**nothing, "is_done": True, **about})


def run(**about: Any) -> RunStatus:
    trainer = SessionStatus(
        session="s1",
        host="gpu-7",
        pid=4242,
        is_alive=True,
        start_time_ms=1_700_000_000_000,
        end_time_ms=None,
        end_status="",
    )
    known: dict[str, Any] = {
        "local_id": LOCAL_ID,
        "folder": f"/journals/{LOCAL_ID}",
        "state": "training",
        "run_name": "night [bold]shift",
        "experiment_name": "films",
        "run_id": RUN_ID,
        "start_time_ms": 1_700_000_000_000,
        "is_shipped": True,
        "backlog_bytes": 3 * 1024 * 1024,
        "sessions": (trainer,),
        "sinks": (sink(), done_sink("tensorboard")),
    }
    return RunStatus(**{**known, **about})


def recovery(outcome: Any, *, problem: str = "", **about: Any) -> Recovery:
    known: dict[str, Any] = {
        "sink": "mlflow",
        "delivered_records": 1203,
        "refused_records": 0,
        "remaining_records": 0,
        "remaining_is_estimate": False,
        "remaining_bytes": 0,
        "last_error": "",
    }
    return Recovery(
        local_id=LOCAL_ID,
        folder=f"/journals/{LOCAL_ID}",
        outcome=outcome,
        problem=problem,
        run_name="night",
        run_id=RUN_ID,
        rejected_file="/journals/rejected.jsonl" if "refused_records" in about else "",
        log_file="/journals/shipper.log",
        sinks=(SinkRecovery(**{**known, **about}),),
    )


def shown(capsys: pytest.CaptureFixture[str], *runs: RunStatus) -> list[str]:
    console.print_status(runs, WHERE, as_json=False)
    return capsys.readouterr().out.splitlines()


def told(capsys: pytest.CaptureFixture[str], *runs: Recovery) -> str:
    console.print_recoveries(runs, WHERE, as_json=False)
    return capsys.readouterr().out


# Runs, for people


def test_a_run_is_shown_with_its_names_and_state(capsys: pytest.CaptureFixture[str]) -> None:
    """Local id, run name, state, MLflow's id, experiment, backlog, shipper and trainer."""
    lines = shown(capsys, run())
    assert lines[0] == f"{LOCAL_ID}  night [bold]shift  training"
    assert lines[1] == f"  MLflow run {RUN_ID} in experiment films"
    assert "3.0 MiB to deliver, shipper at work" in lines[2]
    assert lines[3] == "  trainer gpu-7 pid 4242: alive"


def test_sinks_stand_in_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """Each with its lag and its counts; the last fault has a line of its own."""
    lines = shown(capsys, run())
    assert lines[4:] == [
        "  sink         behind  oldest  delivered  refused  faults",
        "  mlflow        1,203    34 s     20,000        1       2",
        "  tensorboard       -       -     20,000        1       2",
        "  mlflow:  ConnectionError: [Errno 111] refused",
    ]


def test_an_estimate_is_called_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody takes a rough figure for an exact one."""
    lines = shown(capsys, run(sinks=(sink(lag_is_estimate=True),)))
    assert "about 1,203" in lines[5]


def test_a_sink_that_lacks_only_the_end_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """It has every record, but has not declared how the run ended; while training there is none."""
    sinks = (done_sink("mlflow", is_done=False),)
    assert shown(capsys, run(state="ended", sinks=sinks))[5].split()[:3] == ["mlflow", "the", "end"]
    assert shown(capsys, run(state="training", sinks=sinks))[5].split()[:2] == ["mlflow", "-"]


def test_how_a_run_ended_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Its status, the reason, and the end of each process."""
    ended = SessionStatus(
        session="s1",
        host="gpu-7",
        pid=4242,
        is_alive=False,
        start_time_ms=0,
        end_time_ms=1_700_000_100_000,
        end_status="FAILED",
        report="crash/s1/report.txt",
    )
    lines = shown(
        capsys,
        run(state="ended", end_status="FAILED", end_reason="ValueError: x", sessions=(ended,)),
    )
    assert lines[0].endswith("  ended FAILED")
    assert "  ended because: ValueError: x" in lines
    [trainer] = [line for line in lines if line.startswith("  trainer gpu-7 pid 4242: FAILED 2023")]
    assert trainer.endswith(", see its artifact crash/s1/report.txt")


def test_one_of_many_ranks_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """The line of a process says which rank it is."""
    [alive] = run().sessions
    rank = SessionStatus(**{**vars(alive), "rank": 3})
    assert shown(capsys, run(sessions=(rank,)))[3] == "  trainer rank 3 on gpu-7 pid 4242: alive"


def test_a_crashed_run_names_the_process_that_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    """A process that closed nothing is told apart from one that lives."""
    [alive] = run().sessions
    gone = SessionStatus(**{**vars(alive), "is_alive": False})
    lines = shown(capsys, run(state="crashed", run_id="", is_shipped=False, sessions=(gone,)))
    assert lines[0].endswith("  crashed")
    assert lines[1] == "  MLflow run not yet known in experiment films"
    assert lines[2].endswith("shipper not running")
    assert lines[3] == "  trainer gpu-7 pid 4242: gone without closing its run"


def test_a_folder_that_cannot_be_read_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Its name and what is wrong with it; the others are not hidden by it."""
    bad = RunStatus(local_id="bad", folder="/journals/bad", state="unreadable", problem="is broken")
    lines = shown(capsys, bad, run())
    assert lines[:2] == ["bad  is broken", ""]
    assert lines[2].startswith(LOCAL_ID)


def test_no_runs_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """It names the place that was looked at."""
    assert shown(capsys) == ["no runs in /journals: nothing is on its way"]


@pytest.mark.parametrize(
    ("lag_s", "text"),
    [(0.2, "0 s"), (119, "119 s"), (3600, "60 min"), (1e5, "28 h"), (1e6, "12 d")],
)
def test_ages_are_in_a_fitting_unit(
    capsys: pytest.CaptureFixture[str], lag_s: float, text: str
) -> None:
    """Two units of it at least, so that rounding hides little."""
    assert f" {text} " in shown(capsys, run(sinks=(sink(lag_s=lag_s),)))[5]


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "no backlog"), (1000, "1,000 bytes to"), (2048, "2.0 KiB to"), (5 * 2**40, "5,120.0 GiB")],
)
def test_sizes_are_in_a_fitting_unit(
    capsys: pytest.CaptureFixture[str], size_bytes: int, text: str
) -> None:
    """Whole bytes, else one decimal."""
    assert text in shown(capsys, run(backlog_bytes=size_bytes))[2]


# Where it is read

SHOW = """
import sys
from pathlib import Path
from tests.test_console import run
from opusclip_mlops import console
console.print_status([run()], Path("/journals"), as_json=False)
"""


def on_a_terminal(code: str, *, columns: int) -> str:
    """What a program shows on a terminal of this width."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns)}
    environment.pop("NO_COLOR", None)
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdout=slave, stderr=slave, env=environment, cwd=root
    ) as process:
        os.close(slave)
        shown = b""
        with os.fdopen(master, "rb", buffering=0) as screen:
            try:
                while part := screen.read(65_536):
                    shown += part
            except OSError:  # how Linux says that nobody writes there any more
                pass
    assert process.returncode == 0, shown.decode()
    return shown.decode()


def test_a_narrow_terminal_breaks_no_id() -> None:
    """The terminal wraps the line itself: what is copied from it is whole."""
    screen = on_a_terminal(SHOW, columns=20)
    assert LOCAL_ID in screen
    assert RUN_ID in screen
    assert "mlflow        1,203    34 s     20,000        1       2\r\n" in screen


def test_a_terminal_has_colours_and_a_pipe_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    """What a run is called is bold where that can be seen."""
    assert "\x1b[1m" in on_a_terminal(SHOW, columns=80)
    assert "\x1b" not in "".join(shown(capsys, run()))


def test_a_pipe_is_not_wrapped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long fault is one line, whatever COLUMNS says."""
    monkeypatch.setenv("COLUMNS", "40")
    lines = shown(capsys, run(sinks=(sink(last_error="word " * 60 + "end"),)))
    assert lines[-1].endswith("word end")


PROGRESS = """
from opusclip_mlops import console
from opusclip_mlops.operating import RunProgress
with console.progress_shown() as show:
    for done in (0, 50, 100):
        show([RunProgress(local_id="a", name="night", delivered_bytes=done, total_bytes=100)])
"""


def test_a_terminal_shows_a_bar_for_each_run() -> None:
    """With its name, drawn anew as it goes on, and wiped at the end."""
    screen = on_a_terminal(PROGRESS, columns=80)
    assert "night" in screen
    assert "100%" in screen
    assert screen.rindex("\x1b[2K") > screen.rindex("night")


def test_a_pipe_shows_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    """In a batch job nothing is drawn."""
    with console.progress_shown() as show:
        show([RunProgress(local_id="a", name="night", delivered_bytes=1, total_bytes=2)])
    assert capsys.readouterr() == ("", "")


# What came of a recovery


def test_what_was_delivered_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """How many records went to which sink."""
    said = told(capsys, recovery("delivered"))
    assert said == f"{LOCAL_ID}  night  delivered: 1,203 records to mlflow\n"


def test_what_remains_is_told_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    """What, for which sink, why, and where to read more."""
    about: dict[str, Any] = {"remaining_records": 7, "remaining_bytes": 500}
    said = told(capsys, recovery("remains", last_error="ConnectionError: refused", **about))
    assert "remains: 7 records for mlflow (ConnectionError: refused): " in said
    assert said.endswith("delivery goes on, its log is /journals/shipper.log\n")
    said = told(capsys, recovery("remains", remaining_is_estimate=True, **about))
    assert "about 7 records" in said
    said = told(capsys, recovery("remains", problem="its working folder is gone", **about))
    assert "7 records for mlflow: its working folder is gone" in said
    assert "delivery goes on" not in said
    assert "remains: the run's end: delivery goes on" in told(capsys, recovery("remains"))
    said = told(capsys, recovery("remains", last_error="it hangs"))
    assert "remains: the run's end for mlflow (it hangs): delivery goes on" in said


def test_what_was_refused_is_told_with_the_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Where the records are, and the command that is done with them."""
    said = told(capsys, recovery("refused", refused_records=3))
    assert "refused: 3 records by mlflow for good, see /journals/rejected.jsonl" in said
    assert f"opusclip recover {LOCAL_ID} --discard-refused" in said
    said = told(capsys, recovery("refused", refused_records=3, problem="a process still uses it"))
    assert said.endswith("rejected.jsonl: a process still uses it\n")


def test_other_outcomes_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Discarded, still training, unreadable, gone meanwhile."""
    said = told(capsys, recovery("discarded", refused_records=3))
    assert "what was refused for good is gone (3 records by mlflow)" in said
    assert "still training" in told(capsys, recovery("training"))
    said = told(capsys, recovery("unreadable", problem="is broken"))
    assert said.endswith("unreadable: is broken\n")
    gone = Recovery(local_id=LOCAL_ID, folder="/journals", outcome="delivered")
    assert told(capsys, gone) == f"{LOCAL_ID}  delivered: everything had arrived already\n"
    said = told(capsys, recovery("delivered", delivered_records=0))
    assert said.endswith("delivered: everything had arrived already\n")


def test_nothing_to_recover_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """It names the place that was looked at."""
    assert told(capsys) == "no runs in /journals: nothing to recover\n"


# For scripts


def test_scripts_read_json_with_units_in_its_names(capsys: pytest.CaptureFixture[str]) -> None:
    """The names are a promise: a script breaks when one changes."""
    console.print_status([run()], WHERE, as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"journal_dir", "runs"}
    [one] = answer["runs"]
    assert set(one) == {
        *("local_id", "folder", "state", "problem", "run_name", "experiment_name", "run_id"),
        *("start_time_ms", "end_status", "end_time_ms", "end_reason", "is_shipped"),
        *("backlog_bytes", "sessions", "sinks"),
    }
    assert set(one["sessions"][0]) == {
        *("session", "host", "pid", "is_alive", "start_time_ms", "end_time_ms", "end_status"),
        *("report", "rank"),
    }
    assert set(one["sinks"][0]) == {
        *("sink", "position_bytes", "backlog_bytes", "lag_records", "lag_is_estimate", "lag_s"),
        *("delivered_records", "refused_records", "faults", "last_error", "is_done"),
    }
    console.print_recoveries([recovery("refused", refused_records=3)], WHERE, as_json=True)
    [one] = json.loads(capsys.readouterr().out)["runs"]
    assert set(one) == {
        *("local_id", "folder", "outcome", "problem", "run_name", "run_id"),
        *("rejected_file", "log_file", "sinks"),
    }
    assert set(one["sinks"][0]) == {
        *("sink", "delivered_records", "refused_records", "remaining_records"),
        *("remaining_is_estimate", "remaining_bytes", "last_error"),
    }


def test_no_runs_are_an_empty_list_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    """No special case to be written for it."""
    console.print_status([], WHERE, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"journal_dir": "/journals", "runs": []}
