"""What runs are made of, read in pages; a list of films that many runs share is read once."""

from dataclasses import replace
from pathlib import Path

import pytest

from opusclip_mlops.material import Material, checkpoints_of, experiments_of, read_material
from tests.mirrored import Place
from tests.test_descent import DOG, KITE, Lab, name_of


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(Place(tmp_path))


def read(lab: Lab, *, shown: list[tuple[str, int, int]] | None = None) -> Material:
    show = (shown if shown is not None else []).append
    client = lab.place.client
    return read_material(client, experiments_of(client), lambda *about: show(about))


def test_runs_that_share_a_list_of_films_have_it_once(lab: Lab) -> None:
    """One object in memory, and each film is named once."""
    many = [replace(KITE, uri=f"/films/{index}.mp4") for index in range(300)]
    runs = [lab.run() for _ in range(3)]
    for run in runs:
        lab.use(run, *many)
    found = read(lab)
    lists = [one.films for used in found.datasets.values() for one in used]
    assert len(lists) == 3
    assert len({id(films) for films in lists}) == 1
    assert len(list(found.films())) == 300


def test_a_list_that_one_run_lost_is_read_from_another(lab: Lab) -> None:
    """It is the same: the hash says so."""
    many = [replace(KITE, uri=f"/films/{index}.mp4") for index in range(300)]
    lab.use(lab.run(), *many, has_file=False)
    lab.use(lab.run(), *many)
    found = read(lab)
    assert found.unread == ()
    assert [len(used[0].films) for used in found.datasets.values()] == [300, 300]


def test_experiments_and_runs_are_read_to_their_ends(lab: Lab) -> None:
    """Deleted experiments are not looked at, deleted runs are counted, what is read is shown."""
    lab.use(lab.run("one"), KITE)
    lab.use(lab.run("two"), DOG, digest="d2")
    gone = lab.run("two")
    lab.place.client.delete_run(gone.info.run_id)
    lab.run("three")
    lab.place.client.delete_experiment(lab.place.experiment("three"))
    shown: list[tuple[str, int, int]] = []
    found = read(lab, shown=shown)
    assert (len(found.runs), found.deleted_count) == (2, 1)
    assert ("runs", 2, 2) in shown
    assert ("datasets", 2, 2) in shown
    assert sorted(uri for uri, _ in found.films()) == sorted([KITE.uri, DOG.uri])


def test_nothing_at_all_is_nothing(lab: Lab) -> None:
    """A store without runs, and one without experiments."""
    assert read(lab).runs == {}
    found = read_material(lab.place.client, [], lambda *_: None)
    assert (found.runs, found.deleted_count) == ({}, 0)


def test_names_of_checkpoints_are_those_of_their_folders(lab: Lab) -> None:
    """A checkpoint's metadata may say anything; the folder is where it lies."""
    run = lab.run()
    lab.save(run, 3)
    found, unread = checkpoints_of(run, lab.place.uri)
    assert (list(found), unread) == ([name_of(3)], [])
    assert found[name_of(3)].step == 3
