"""Which runs there are, and which of them need a look again."""

import time
from pathlib import Path

import pytest
from mlflow.entities import Metric

from benchmarks.histories import copy_run
from opusclip_mlops import lookout
from opusclip_mlops.lookout import Look, Lookout, SelectionError, every_run, experiment_ids, one_run
from opusclip_mlops.run_history import RunGoneError
from tests.mirrored import T0, Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A store."""
    return Place(tmp_path)


def looked_at(looks: list[Look]) -> set[str]:
    """Their ids."""
    return {look.run.info.run_id for look in looks}


def test_all_pages_of_an_experiment_are_read(place: Place) -> None:
    """2,500 runs are far more than MLflow gives at a time; each is found once."""
    run = place.run()
    copy_run(place.path / "mlflow.db", run.info.run_id, 2499)
    found = [one.info.run_id for one in every_run(place.client, [place.experiment()])]
    assert len(found) == len(set(found)) == 2500


def test_experiments_are_found_by_name_and_id(place: Place) -> None:
    """A name that looks like a number is a name first."""
    films = place.experiment()
    assert experiment_ids(place.client, ["films", films]) == [films, films]
    odd = place.client.create_experiment("1234567")
    assert experiment_ids(place.client, ["1234567"]) == [odd]
    with pytest.raises(SelectionError, match="no experiment is called '99999'"):
        experiment_ids(place.client, ["99999"])


def test_a_run_that_is_gone_is_told(place: Place) -> None:
    """Deleted, and never there."""
    run = place.run()
    place.client.delete_run(run.info.run_id)
    with pytest.raises(RunGoneError, match="deleted"):
        one_run(place.client, run.info.run_id)
    for name in ("0" * 32, "nope"):
        with pytest.raises(RunGoneError, match=f"run {name} is not in MLflow: give its whole id"):
            one_run(place.client, name)


def test_a_poll_gives_what_moves(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """First everything; then runs that go on, and those that ended since, however short."""
    monkeypatch.setattr(lookout, "_MARGIN_MS", 0)
    old, live = place.run(), place.run(status=None)
    out = Lookout(place.client, experiments=[place.experiment()], run_ids=[])
    assert looked_at(out.poll()) == {old.info.run_id, live.info.run_id}
    time.sleep(0.01)
    assert looked_at(out.poll()) == {live.info.run_id}
    short = place.run([Metric("a", 1.0, T0, 1)])
    place.client.set_terminated(live.info.run_id)
    assert looked_at(out.poll()) == {live.info.run_id, short.info.run_id}
    time.sleep(0.01)
    assert out.poll() == []


def test_a_run_that_ended_long_ago_by_its_clock_is_seen_to_end(place: Place) -> None:
    """Imported runs have end times of their own; a deleted run is given no more."""
    live, gone = place.run(status=None), place.run(status=None)
    out = Lookout(place.client, experiments=[place.experiment()], run_ids=[])
    out.poll()
    place.client.set_terminated(live.info.run_id, end_time=1000)
    place.client.delete_run(gone.info.run_id)
    assert looked_at(out.poll()) == {live.info.run_id}
    assert out.poll() == []


def test_single_runs_are_looked_at_in_any_experiment(place: Place) -> None:
    """A run that is named is looked at whenever; others of its experiment are not."""
    run, _ = place.run(), place.run()
    out = Lookout(place.client, experiments=[], run_ids=[run.info.run_id])
    assert looked_at(out.poll()) == looked_at(out.poll()) == {run.info.run_id}


def test_a_move_in_the_registry_is_seen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new version, a stage, an alias given and taken away, each once; the run itself is over."""
    monkeypatch.setattr(lookout, "_MARGIN_MS", 0)
    monkeypatch.setattr(lookout, "_REGISTRY_EVERY_S", 0)
    run = place.run()
    place.client.create_registered_model("vae")
    source = f"{place.path}/vae"
    first = place.client.create_model_version("vae", source, run.info.run_id)
    out = Lookout(place.client, experiments=[place.experiment()], run_ids=[])
    out.poll()
    out.settle(run.info.run_id)
    time.sleep(0.01)
    moves = [
        lambda: place.client.create_model_version("vae", source, run.info.run_id),
        lambda: place.client.transition_model_version_stage("vae", first.version, "Staging"),
        lambda: place.client.set_registered_model_alias("vae", "champion", first.version),
        lambda: place.client.delete_registered_model_alias("vae", "champion"),
        lambda: place.client.delete_registered_model("vae"),
    ]
    for move in moves:
        assert out.poll() == []
        move()
        [look] = out.poll()
        assert (look.run.info.run_id, look.at_all) == (run.info.run_id, True)
        assert looked_at(out.poll()) == {run.info.run_id}, "nobody has looked at it yet"
        out.settle(run.info.run_id)
