"""The folder of a launch: private, written whole, readable where the launcher never was."""

import stat
from pathlib import Path

import msgspec
import pytest

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.launching.outcomes import AgentOutcome, Ending
from opusclip_mlops.launching.workplace import Plan, Workplace, folder_for
from tests.launching.made import config, full_disk


def plan(**values: object) -> Plan:
    """A plan of no run in particular."""
    return Plan(
        run_id="a" * 32,
        experiment_id="0",
        tracking_uri=None,
        cwd="/project",
        program=["a.py"],
        config=config(**values),
    )


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    """The plan, how often it was begun, what nodes said, and the end; all of it private."""
    place = Workplace(tmp_path / "launches" / "one")
    place.create(plan(nodes=1, env={"A": "b"}))
    assert place.plan() == plan(nodes=1, env={"A": "b"})
    assert (place.ending(), place.submitted(), place.outcomes(0)) == (None, None, [])
    assert [place.begin_attempt("12"), place.begin_attempt("13")] == [0, 1]
    assert place.attempts() == ["12", "13"]
    torn = place.path / "outcomes" / "1-0.json"
    torn.write_text("{torn")
    torn.chmod(0o600)
    place.note_stop(1, "told")
    assert (place.outcomes(1), place.stop_of(0), place.stop_of(1)) == ([], "", "told")
    place.end(Ending(status="KILLED", reason="x", exit_code=1))
    assert place.ending() == Ending(status="KILLED", reason="x", exit_code=1)
    open_to_others = [
        one for one in (place.path, *place.path.rglob("*"))
        if stat.S_IMODE(one.stat().st_mode) & 0o077
    ]  # fmt: skip
    assert open_to_others == []


def test_an_end_is_known_though_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for it was kept; where there is none either, nobody has said it, and all goes on."""
    place, away = Workplace(tmp_path / "one"), Workplace(tmp_path / "two")
    place.create(plan())
    assert place.ending() is None
    full_disk(monkeypatch)
    ending = Ending(status="FAILED", reason="x" * 500, exit_code=7)
    for one in (place, away):
        one.end(ending)
        one.note_told()
        one.note_stop(0, "told")
    assert (place.ending(), away.ending()) == (ending, None)
    assert not place.is_told()
    assert (place.stop_of(0), place.stop_of(1), away.stop_of(0)) == (
        "its job was told to end, and not by a rank",
        "",
        "",
    )


def test_a_folder_that_is_none_is_said_to_be_none(tmp_path: Path) -> None:
    """And a launch is made once only."""
    with pytest.raises(ConfigError, match="holds no launch"):
        Workplace(tmp_path).plan()
    with pytest.raises(ConfigError, match="File exists"):
        Workplace(tmp_path).create(plan())


def test_the_agents_file_has_its_nodes_number(tmp_path: Path) -> None:
    """Each node has a file of its own for each attempt."""
    place = Workplace(tmp_path / "one")
    place.create(plan())
    left = AgentOutcome(node=3, host="h", timestamp_ms=1, exit_code=0)
    Path(place.outcome_file(2).replace("{node}", "3")).write_bytes(msgspec.json.encode(left))
    assert place.outcomes(2) == [left]


def test_ranks_find_their_run_and_share_the_cores() -> None:
    """What is in the environment of ranks is what the plan says, secrets aside."""
    found = plan(cpus=8, processes_per_node=4, env={"A": "b"}).environment
    assert (found["MLFLOW_RUN_ID"], found["A"], found["OMP_NUM_THREADS"]) == ("a" * 32, "b", "2")
    assert "MLFLOW_TRACKING_URI" not in found
    assert plan(env={"OMP_NUM_THREADS": "7"}).environment["OMP_NUM_THREADS"] == "7"


def test_ranks_that_are_started_anew_meet_in_a_store_of_their_own() -> None:
    """Only where restarts are asked for, and unless the configuration says otherwise."""
    name = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
    assert plan(restarts=1).environment[name] == "1"
    assert name not in plan().environment
    assert plan(restarts=1, env={name: "0"}).environment[name] == "0"


def test_launches_lie_in_the_project_unless_told_otherwise() -> None:
    """A folder that is named is the project's own, or a whole path."""
    assert folder_for(config(), "/p", "r") == Path("/p/.opusclip/launches/r")
    assert folder_for(config(folder="/shared"), "/p", "r") == Path("/shared/r")
