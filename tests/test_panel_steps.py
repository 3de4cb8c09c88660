"""Accounts of a panel as they are found in MLflow; what they say is tested with the walls."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops.delivery import deliver
from opusclip_mlops.panel_steps import (
    StepReader,
    listed,
    panel_titles,
    repository_of,
    that_count,
    titles_called,
)
from opusclip_mlops.panels import Panel
from tests.journeys import append, end, make_run
from tests.panelled import PANEL, T0_MS, client_of, numbered, panelled_run, run_of, samples

ONE = Panel(name="one", prompts=("a",))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("kites", ["kites-01234567", "kites-89abcdef"]),
        ("kites-89abcdef", ["kites-89abcdef"]),
        ("kites-89abcdef-00000000", []),
        ("kite", []),
        ("a-b", ["a-b-01234567"]),
        ("a", []),
        ("..", []),
        ("", []),
    ],
)
def test_a_name_means_all_panels_called_so(name: str, found: list[str]) -> None:
    """A title means itself; the beginning of a name means nothing."""
    titles = ["a-b-01234567", "kites-01234567", "kites-89abcdef"]
    assert titles_called(name, titles) == found


def test_only_accounts_are_listed(tmp_path: Path) -> None:
    """Walls, and whatever else lies there, are none; nothing is asked of a run without samples."""
    _, run = panelled_run(tmp_path, [10, -1], panel=ONE)
    root = Path(run.info.artifact_uri, "panels")
    endless = [f"{ONE.title}/step_{'9' * digits}-1.json" for digits in (19, 200)]
    for name in (
        "notes.txt", f"{ONE.title}/step_00000001.json", f"{ONE.title}/step_1-x.json", *endless,
    ):  # fmt: skip
        (root / name).write_text("{}")
    for name in ("no-digest", "..-01234567", f"{ONE.title}/step_00000003-3.json"):
        (root / name).mkdir()
    (root / ONE.title / "step_00000004-4.json").write_bytes(bytes(32 * 2**20 + 1))
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    repository = repository_of(client, run)
    assert panel_titles(repository) == [ONE.title]
    found = [(one.step, one.timestamp_ms) for one in listed(repository, ONE.title)]
    assert found == [(-1, T0_MS + 1000), (10, T0_MS + 10_000)]
    empty = client.create_run("0")
    assert panel_titles(repository_of(client, empty)) == []
    assert listed(repository_of(client, empty), PANEL.title) == []


def test_accounts_that_are_asked_for_no_more_are_forgotten(tmp_path: Path) -> None:
    """Nor is held what each cell repeats from the panel: a long run has very many of them."""
    _, run = panelled_run(tmp_path, [0, 1, 2], panel=ONE, origin={"checkpoint": "c"})
    repository = repository_of(MlflowClient(f"sqlite:///{tmp_path}/mlflow.db"), run)
    every, _ = that_count(listed(repository, ONE.title), run)
    reader = StepReader(repository, ONE.title)
    [*_, last], _ = reader.read(every)
    [again], _ = reader.read(every[2:])
    assert again is last
    assert set(reader._known) == {every[2].accounts[0].path}
    assert [one.origin for one in last.cells.values()] == [{"checkpoint": "c"}]


def test_ranks_that_log_their_own_cells_make_one_step(tmp_path: Path) -> None:
    """Even in the same millisecond; of a cell that was sampled again the newest counts."""
    folder = make_run(tmp_path)
    clips = [numbered(one) for one in range(4)]
    for mine, at_ms in (({0, 1}, 1), ({2, 3}, 1), ({3}, 2)):
        given = [one if index in mine else None for index, one in enumerate(clips)]
        append(folder, samples(folder, 5, clips=given, timestamp_ms=T0_MS + at_ms))
    end(folder)
    deliver(folder, "mlflow")
    run, repository = run_of(folder), repository_of(client_of(folder), run_of(folder))
    every = listed(repository, PANEL.title)
    assert len(every) == 3
    steps, notes = that_count(every, run)
    [step], problems = StepReader(repository, PANEL.title).read(steps)
    assert (notes, problems, step.timestamp_ms) == ([], [], T0_MS + 2)
    films = {name: cell.clip for name, cell in step.cells.items()}
    assert all(films.values())
    newest = json.loads(Path(run.info.artifact_uri, every[2].path).read_text())["cells"]
    last = PANEL.cells[3].name
    assert films[last] == newest[last]["clip"]
