"""A launch asked for by who did not start it."""

import socket
from pathlib import Path

import pytest

from opusclip_mlops.errors import LaunchError
from opusclip_mlops.launching.outcomes import Ending
from opusclip_mlops.launching.submitted import LaunchedRun, LocalLaunchElsewhere, launch_of
from opusclip_mlops.launching.workplace import Submitted
from tests.launching.made import end_of, launch
from tests.launching.programs import only_on_path, program


def test_a_supervisor_that_is_gone_without_a_word_has_failed(tmp_path: Path) -> None:
    """Its process's number may be another's by now; another machine's is not looked for here."""
    place, plan = launch(tmp_path)
    place.begin_attempt(f"{socket.gethostname()}:1")
    launched = LaunchedRun(place, launch_of(place))
    assert not launched.wait()
    assert end_of(plan) == ("FAILED", "what ran it here ended without a word")
    (place.path / "ended.json").unlink()
    (place.path / "attempts" / "0").unlink()
    place.write_submitted(Submitted(jobs=[f"{socket.gethostname()}:1"]))
    assert LaunchedRun(place, launch_of(place)).get_status() == "FAILED"
    place.begin_attempt("elsewhere:1")
    with pytest.raises(LaunchError, match="is on elsewhere: ask there"):
        LocalLaunchElsewhere(place).state()


def test_a_scheduler_that_is_away_has_ended_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last that was known stands, until it answers again."""
    place, plan = launch(tmp_path, kind="slurm")
    with pytest.raises(LaunchError, match="was never submitted"):
        launch_of(place)
    place.write_submitted(Submitted(jobs=["12"], closing="13"))
    answers = only_on_path(tmp_path, monkeypatch)
    program(answers, "scontrol", error="Unable to contact")
    with pytest.raises(LaunchError, match="Unable to contact"):
        LaunchedRun(place, launch_of(place)).wait()
    launched = LaunchedRun(place, launch_of(place))
    seen = []
    for state in ("RUNNING", "", "COMPLETED"):
        answer = f"JobId=12 JobState={state} Reason=None" if state else ""
        program(answers, "scontrol", answer, error="" if state else "Unable to contact")
        seen.append(launched.get_status())
    assert seen == ["RUNNING", "RUNNING", "FINISHED"]
    program(answers, "scontrol", error="Unable to contact")
    place.end(Ending(status="FINISHED"))
    assert LaunchedRun(place, launch_of(place)).get_status() == "FINISHED"
    assert launched.ending == Ending(status="FINISHED")
    assert launched.wait()
    assert end_of(plan)[0] == "FINISHED"
