"""What the doctor found, as people and scripts read it."""

import json

import pytest

from opusclip_mlops import doctor_console
from opusclip_mlops.doctor import Finding
from tests.test_console import on_a_terminal

FOUND = [
    Finding(check="machine.clock", state="ok", seen="it is noon"),
    Finding(check="server.reach", state="failed", seen="nothing listens", todo="start it"),
    Finding(check="server.access", state="skipped", seen="server.reach failed"),
    Finding(check="server.guard", state="skipped", seen="server.reach failed"),
    Finding(check="mlflow.store", state="warning", seen="odd", todo="move it"),
    Finding(check="machine.gpu", state="warning", seen="hot", todo="cool it"),
]


def test_a_line_for_each_and_what_to_do_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    """What was skipped is told in one line for each reason, and at the end how many there are."""
    doctor_console.print_findings(FOUND, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "ok       machine.clock  it is noon",
        "failed   server.reach   nothing listens",
        "                        do: start it",
        "warning  mlflow.store   odd",
        "                        do: move it",
        "warning  machine.gpu    hot",
        "                        do: cool it",
        "not looked at: server.access, server.guard: server.reach failed",
        "1 ok, 2 warnings, 1 failed, 2 skipped",
    ]


def test_json_has_a_shape_that_stays(capsys: pytest.CaptureFixture[str]) -> None:
    """Whether all is well, and each finding with its four parts."""
    doctor_console.print_findings(FOUND[1:2], as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "is_well": False,
        "findings": [
            {
                "check": "server.reach",
                "state": "failed",
                "seen": "nothing listens",
                "todo": "start it",
            }
        ],
    }


def test_nothing_found_is_printed_too(capsys: pytest.CaptureFixture[str]) -> None:
    """All is well then."""
    doctor_console.print_findings([], as_json=True)
    assert json.loads(capsys.readouterr().out) == {"is_well": True, "findings": []}


def test_a_terminal_sees_progress_and_colours() -> None:
    """A bar while it is looked; what was found in the colour of its state."""
    code = (
        "from opusclip_mlops import doctor_console\n"
        "from opusclip_mlops.doctor import Finding\n"
        "with doctor_console.progress_shown() as show:\n    show('server.reach', 1, 2)\n"
        "found = [Finding(check='server.reach', state='failed', seen='down', todo='start it')]\n"
        "doctor_console.print_findings(found, as_json=False)"
    )
    screen = on_a_terminal(code, columns=100)
    assert "server.reach" in screen
    assert "1/2" in screen
    assert "\x1b[31mfailed" in screen


def test_a_pipe_sees_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    """Only a terminal does."""
    with doctor_console.progress_shown() as show:
        show("machine.clock", 1, 2)
    assert capsys.readouterr() == ("", "")
