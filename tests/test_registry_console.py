"""What is printed of registered models: lines for people, JSON for scripts."""

import json
import time

import pytest

from opusclip_mlops import registry_console
from opusclip_mlops.chain import Problem
from opusclip_mlops.decisions import Decision
from opusclip_mlops.errors import ConfigError
from opusclip_mlops.gated import Sighting
from opusclip_mlops.registry import RegisteredVersion

MADE = Decision(
    kind="promotion",
    model="clips",
    version=7,
    from_stage="Staging",
    to_stage="Production",
    actor="anna",
    reason="sharper — по-русски",
    came_by="CLI",
    timestamp_ms=1_790_000_000_000,
    previous_holder=6,
)


@pytest.mark.parametrize("as_json", [True, False])
def test_a_decision_is_told_with_all_that_matters(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who, what, why and by what it came in."""
    registry_console.print_decision(MADE, as_json=as_json)
    text = capsys.readouterr().out
    for word in ("7", "Staging", "Production", "anna", "sharper — по-русски", "CLI"):
        assert word in text
    if as_json:
        assert json.loads(text)["previous_holder"] == 6
    else:
        assert text.count("\n") == 1


def test_the_holders_stand_behind_the_history(capsys: pytest.CaptureFixture[str]) -> None:
    """A stage that nobody holds is told too."""
    registry_console.print_history([MADE], {"Staging": None, "Production": 7}, as_json=False)
    assert capsys.readouterr().out.splitlines()[1:] == ["Staging: nobody", "Production: version 7"]
    registry_console.print_history([], {"Staging": None}, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"history": [], "holders": {"Staging": None}}


def test_a_history_that_is_not_whole_says_where(capsys: pytest.CaptureFixture[str]) -> None:
    """Each problem is a line, the sum is the last."""
    registry_console.print_problems([Problem(3, "was changed")], 4, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert ("3" in lines[0], "was changed" in lines[0]) == (True, True)
    assert lines[1:] == ["4 records: NOT WHOLE"]
    registry_console.print_problems([], 4, as_json=False)
    assert capsys.readouterr().out == "4 records: whole\n"


def test_what_is_not_whole_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """However many problems; none where there is none."""
    registry_console.warn_of_problems("clips", [])
    registry_console.warn_of_problems("clips", [Problem(3, "was changed"), Problem(4, "is gone")])
    printed = capsys.readouterr()
    text = "the history of 'clips' is not whole, 2 problems: --verify lists what is wrong\n"
    assert (printed.out, printed.err) == ("", text)


def test_a_sighting_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A record, a problem and its end; in JSON too, for who reads line by line."""
    seen = (Sighting("clips", MADE), Sighting("", problem="no answer"), Sighting("clips"))
    for one in seen:
        registry_console.print_sighting(one, as_json=False)
    made, problem, over = capsys.readouterr().out.splitlines()
    assert made.startswith("clips: ")
    assert (problem, over) == ("the registry: no answer", "clips: answers again")
    for one in seen:
        registry_console.print_sighting(one, as_json=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["problem"] for line in lines] == ["", "no answer", ""]
    assert lines[0]["decision"]["version"] == 7


def test_a_version_says_what_it_was_made_of(capsys: pytest.CaptureFixture[str]) -> None:
    """The checkpoint and its run."""
    made = RegisteredVersion("clips", 7, "models:/clips/7", "a" * 32, "epoch_0001-step_000020")
    registry_console.print_version(made, as_json=False)
    text = f"clips version 7: epoch_0001-step_000020 of run {'a' * 32}\n"
    assert capsys.readouterr().out == text
    registry_console.print_version(made, as_json=True)
    assert json.loads(capsys.readouterr().out)["uri"] == "models:/clips/7"


def test_a_time_is_this_machines_unless_it_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a zone the machine's own, with one that one."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert registry_console.time_ms("1970-01-01T09:00") == 0
        assert registry_console.time_ms("1970-01-01T09:00+00:00") == 9 * 3_600_000
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["yesterday", "", "2026-13-01", "99999-01-01", "0001-01-01"])
def test_what_is_no_time_is_said(text: str) -> None:
    """One line with an example."""
    with pytest.raises(ConfigError, match="is no time: give one like"):
        registry_console.time_ms(text)
