"""Mirrors on a W&B server: exact through faults, through outages, and as models move."""

import contextlib
import functools
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Run

from opusclip_mlops import mirror, verify
from tests.faults.site import SOAK
from tests.journeys import wait_until
from tests.mirrored import AWKWARD, T0, Place
from tests.reading import Point
from tests.servers import BIN, free_port, mlflow_server
from tests.test_replay import following
from tests.wandb_server import WandbServer, wandb_server

# The sink's own tests meet each of them in every run.
OTHER_FAULTS = ["429", "401", "404", "reset", "lost"] if SOAK else []
ONLINE, TENSORBOARD = "wandb:team/clips", "tensorboard:runs"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A store and a place for mirrors, in the current folder."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return Place(tmp_path)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A W&B server, and its key in the environment."""
    with wandb_server(tmp_path / "wandb_server") as found:
        for name, value in found.env.items():
            monkeypatch.setenv(name, value)
        yield found


def held(server: WandbServer, run_id: str) -> list[Point]:
    """The points of a run as the server has stored them, none of one it does not know."""
    try:
        history = server.run(run_id)["history"]
    except KeyError:
        return []
    return sorted(
        Point(key, row["global_step"], round(row["_timestamp"] * 1000), str(float(value)))
        for row in history
        for key, value in row.items()
        if key != "global_step" and not key.startswith("_") and _is_number(value)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or value in ("NaN", "Infinity", "-Infinity")


def wanted(place: Place, run: Run) -> list[Point]:
    """What MLflow has."""
    points = place.wanted(run, "wandb")
    return sorted(
        Point(one.key, one.step, one.timestamp_ms, str(float(one.value))) for one in points
    )


def is_equal(place: Place, server: WandbServer, run: Run) -> bool:
    """Whether the server has each point once."""
    return held(server, run.info.run_id) == wanted(place, run)


def test_a_run_is_mirrored_online(place: Place, server: WandbServer) -> None:
    """Points, params, tags, notes, group and state are on the server; a second time sends none."""
    run = place.run(AWKWARD["no numbers"] + AWKWARD["a repeated step"], status=None)
    place.client.log_param(run.info.run_id, "depth", "4")
    place.client.set_tag(run.info.run_id, "team", "x")
    place.client.set_tag(run.info.run_id, "mlflow.note.content", "some notes")
    [report] = mirror(run.info.run_id, to=ONLINE)
    assert report.outcome == "mirrored", report
    assert is_equal(place, server, run)
    assert server.run(run.info.run_id)["state"] == "running"
    place.client.set_terminated(run.info.run_id, "FAILED")
    assert mirror(run.info.run_id, to=ONLINE)[0].points == 0
    there = server.run(run.info.run_id)
    assert (there["state"], there["displayName"], there["groupName"]) == (
        "failed", "a run", "films",
    )  # fmt: skip
    assert there["notes"] == "some notes"
    assert is_equal(place, server, run)
    assert verify(run.info.run_id, to=ONLINE)[0].outcome == "equal"


def has_struck(server: WandbServer, kind: str) -> bool:
    """Whether a fault has met the client; the server may die of it while it is asked."""
    with contextlib.suppress(OSError):
        return server.met(kind) > 0
    return not server.is_alive()


@pytest.mark.parametrize("kind", ["500", "die", "drop", *OTHER_FAULTS])
def test_a_fault_of_the_server_doubles_and_loses_nothing(
    place: Place, server: WandbServer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the server did while a run was sent, the next call makes the mirror equal."""
    monkeypatch.setenv("OPUSCLIP_HUNG_S", "3")
    run = place.run([Metric("a", n / 7, T0 + n, n) for n in range(500)])
    count = 1 if kind in ("die", "lost", "reset") else 4
    server.fault(kind, "file_stream", count=count)
    line = [BIN / "opusclip", "mirror", run.info.run_id, "--to", ONLINE, "--json"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, cwd=place.path) as process:
        wait_until(lambda: has_struck(server, kind))
        if not server.is_alive():
            server.start()
        server.lift()
        told = json.loads(process.communicate()[0])["mirrors"][0]
    if not is_equal(place, server, run):
        assert told["outcome"] == "failed", told
        mirror(run.info.run_id, to=ONLINE)
    assert is_equal(place, server, run)
    assert verify(run.info.run_id, to=ONLINE)[0].outcome == "equal"


def test_too_many_rows_are_taken_back(place: Place, server: WandbServer) -> None:
    """A run that was synced twice holds its rows twice; the repair leaves each once."""
    run = place.run([Metric("a", n / 7, T0 + n, n) for n in range(50)])
    offline = os.environ | {"WANDB_MODE": "offline"}
    line = [BIN / "opusclip", "mirror", run.info.run_id, "--to", ONLINE]
    subprocess.run(line, check=True, cwd=place.path, env=offline)
    [folder] = (place.path / "wandb").glob("offline-run-*")
    for more in ([], ["--include-synced"]):
        sync = [BIN / "wandb", "sync", "--yes", *more, folder]
        subprocess.run(sync, check=True, cwd=place.path, capture_output=True)
    assert len(held(server, run.info.run_id)) == 100
    [report] = verify(run.info.run_id, to=ONLINE)
    assert (report.outcome, report.extra) == ("unequal", 50)
    [report] = verify(run.info.run_id, to=ONLINE, repair=True)
    assert report.outcome == "equal", report
    assert is_equal(place, server, run)


def shown(place: Place) -> Run:
    """A run with two pictures and a table, and points."""
    run = place.run([Metric("a", n / 7, T0 + n, n) for n in range(20)], status=None)
    picture = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    for step in (3, 4):
        place.client.log_image(
            run.info.run_id, picture, key="dogs/a b", step=step, timestamp=T0 + step
        )
    place.client.log_table(run.info.run_id, {"a": [1, 2]}, artifact_file="eval/t.json")
    place.client.set_terminated(run.info.run_id)
    return place.again(run)


def media_files(server: WandbServer, run: Run) -> list[str]:
    """The pictures, clips, texts and tables that the server has of a run."""
    return [name for name in server.run(run.info.run_id)["files"] if "/media/" in name]


@pytest.mark.parametrize("kind", ["403", "drop"])
def test_a_refused_file_is_not_held(
    place: Place, server: WandbServer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row whose file the server refused is said to lack until the file is there, once."""
    monkeypatch.setenv("OPUSCLIP_HUNG_S", "3")
    run = shown(place)
    server.fault(kind, "upload", part="/media/images/")
    [report] = mirror(run.info.run_id, to=ONLINE)
    assert report.outcome == "failed", report
    assert "media/images/dogs/a b" in report.error
    assert "\n" not in report.error
    [report] = verify(run.info.run_id, to=ONLINE)
    assert (report.outcome, report.points, report.media, report.extra) == ("unequal", 0, 2, 0)
    server.lift()
    [report] = mirror(run.info.run_id, to=ONLINE)
    assert (report.outcome, report.points, report.media) == ("mirrored", 0, 2), report
    assert is_equal(place, server, run)
    assert verify(run.info.run_id, to=ONLINE)[0].outcome == "equal"
    assert mirror(run.info.run_id, to=ONLINE)[0].outcome == "equal"


def test_a_file_that_was_refused_for_a_moment_is_brought(place: Place, server: WandbServer) -> None:
    """The client asks once; what the server lacks behind that is uploaded again, not logged."""
    run = shown(place)
    server.fault("403", "upload", part="/media/", count=3)
    [report] = mirror(run.info.run_id, to=ONLINE)
    assert (report.outcome, report.media) == ("mirrored", 3), report
    assert server.met("403") == 3
    assert len(media_files(server, run)) == 3
    assert len(server.run(run.info.run_id)["history"]) == 23
    assert verify(run.info.run_id, to=ONLINE)[0].outcome == "equal"


def test_a_sync_that_only_says_it_succeeded_is_found(place: Place, server: WandbServer) -> None:
    """`wandb sync` of an offline mirror works; when the server keeps nothing it says so too."""
    run = place.run([Metric("a", n / 7, T0 + n, n) for n in range(50)])
    offline = os.environ | {"WANDB_MODE": "offline"}
    line = [BIN / "opusclip", "mirror", run.info.run_id, "--to", ONLINE]
    subprocess.run(line, check=True, cwd=place.path, env=offline)
    [folder] = (place.path / "wandb").glob("offline-run-*")
    sync = [BIN / "wandb", "sync", "--yes", "--include-synced", folder]
    server.fault("drop", "file_stream")
    assert subprocess.run(sync, check=False, cwd=place.path, capture_output=True).returncode == 0
    assert verify(run.info.run_id, to=ONLINE)[0].outcome != "equal"
    server.lift()
    subprocess.run(sync, check=True, cwd=place.path, capture_output=True)
    assert is_equal(place, server, run)
    assert verify(run.info.run_id, to=ONLINE)[0].outcome == "equal"


def aliases(server: WandbServer) -> dict[str, set[str]]:
    """The aliases of each version of the registered model, by MLflow's version."""
    return {
        json.loads(one["metadata"])["version"]: {*one["aliases"]} - {"latest"}
        for one in server.state()["artifacts"]
        if one["collection"].endswith("/vae")
    }


def test_moves_in_the_registry_are_mirrored(place: Place, server: WandbServer) -> None:
    """A version's stage and aliases are W&B aliases and a text in TensorBoard, and move along."""
    run = place.run([Metric("a", 1.0, T0, 1)])
    client: MlflowClient = place.client
    for name in ("first", "second"):
        client.log_text(run.info.run_id, name, f"{name}/weights.txt")
    client.create_registered_model("vae")
    versions = [
        client.create_model_version(
            "vae", f"{run.info.artifact_uri}/{name}", run.info.run_id
        ).version
        for name in ("first", "second")
    ]
    moves: list[tuple[Callable[[], object], dict[str, set[str]]]] = [
        (lambda: None, {"1": set(), "2": set()}),
        (
            functools.partial(
                client.transition_model_version_stage, "vae", versions[0], "Production"
            ),
            {"1": {"production"}, "2": set()},
        ),
        (
            functools.partial(client.set_registered_model_alias, "vae", "champion", versions[1]),
            {"1": {"production"}, "2": {"champion"}},
        ),
        (
            functools.partial(
                client.transition_model_version_stage,
                "vae",
                versions[1],
                "Production",
                archive_existing_versions=True,
            ),
            {"1": set(), "2": {"champion", "production"}},
        ),
        (
            functools.partial(client.delete_registered_model_alias, "vae", "champion"),
            {"1": set(), "2": {"production"}},
        ),
    ]
    for move, expected in moves:
        move()
        reports = mirror(run.info.run_id, to=[ONLINE, TENSORBOARD])
        assert {one.outcome for one in reports} == {"mirrored"}, reports
        found = aliases(server)
        named = {f"mlflow-v{version}" for version in found}
        assert {version: found[version] - named for version in found} == expected
    words = place.mirror(run, "tensorboard").compare(run, as_it_is=False).held.words
    assert "Archived" in words["registry/vae/1"]
    assert "Production" in words["registry/vae/2"]


def test_a_follower_outlives_outages(
    tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B is away, then MLflow; what comes meanwhile is mirrored once they are back."""
    monkeypatch.setenv("OPUSCLIP_HUNG_S", "5")
    folder, port = tmp_path / "server", free_port()
    folder.mkdir()
    place = Place(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")

    def log(step: int) -> None:
        MlflowClient().log_batch(run_id, metrics=[Metric("a", step / 3, T0 + step, step)])

    def online(steps: int) -> bool:
        return [one.step for one in held(server, run_id)] == list(range(steps))

    def in_tensorboard(steps: int) -> bool:
        return len(place.held(run, "tensorboard")) == steps

    with contextlib.ExitStack() as stack:
        with mlflow_server(folder, port=port):
            run = MlflowClient().create_run(MlflowClient().create_experiment("films"))
            run_id = run.info.run_id
            log(0)
            follower = stack.enter_context(following(place, "--to", ONLINE, "--to", TENSORBOARD))
            wait_until(lambda: online(1) and in_tensorboard(1))
            server.stop()
            log(1)
            wait_until(lambda: in_tensorboard(2))
            server.start()
            wait_until(lambda: online(2))
        with mlflow_server(folder, port=port):
            log(2)
            wait_until(lambda: online(3) and in_tensorboard(3))
            MlflowClient().set_terminated(run_id)
            wait_until(lambda: server.run(run_id)["state"] == "finished")
            assert follower.poll() is None
            reports = verify(run_id, to=[ONLINE, TENSORBOARD])
            assert [one.outcome for one in reports] == ["equal", "equal"], reports
