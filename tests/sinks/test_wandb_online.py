"""The real W&B client and our sink against a server that fails in every way it can."""

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from opusclip_mlops.folder import RunFolder
from opusclip_mlops.records import Files, Params, Tags
from opusclip_mlops.words import NOTE_TAG
from tests.journeys import LOCAL_ID, append, deliver_and_die, end, make_run, wait_until
from tests.reading import Point
from tests.sinks.sink_contract import SinkContract, metrics, staged_clip
from tests.wandb_server import WandbServer, wandb_server

DELIVER = """
import sys
from pathlib import Path
from opusclip_mlops.delivery import deliver
from opusclip_mlops.folder import RunFolder
sys.exit(0 if deliver(RunFolder(Path(sys.argv[1])), "wandb") else 75)
"""


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WandbServer]:
    """One server for the tests that do not hurt it: the client keeps to its first."""
    with wandb_server(tmp_path_factory.mktemp("wandb_server")) as server:
        yield server


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server of this test alone."""
    with wandb_server(tmp_path / "wandb_server") as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        # A sink that stands still is replaced after twice this time.
        monkeypatch.setenv("OPUSCLIP_HUNG_S", "4")
        yield server


def points_of(run: dict[str, Any]) -> list[Point]:
    """All numbers of a run on the server."""
    return sorted(
        Point(key, row["global_step"], round(row["_timestamp"] * 1000), repr(float(value)))
        for row in run["history"]
        for key, value in row.items()
        if key != "global_step" and not key.startswith("_") and isinstance(value, int | float)
    )


class TestWandbOnline(SinkContract):
    name = "wandb"

    @pytest.fixture
    def folder(
        self, tmp_path: Path, lasting: WandbServer, monkeypatch: pytest.MonkeyPatch
    ) -> RunFolder:
        for name, value in lasting.env.items():
            monkeypatch.setenv(name, value)
        self._server, self._project = lasting, tmp_path.name
        return make_run(tmp_path, [self.name], project_name=tmp_path.name)

    def points(self, folder: RunFolder) -> list[Point]:
        return points_of(self._server.run(LOCAL_ID, project=self._project))


@contextlib.contextmanager
def delivering(folder: RunFolder) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Deliver in processes, a new one when one gives up; the block's end waits for all of it.

    Gives the processes that were started so far.
    """
    ended = threading.Event()

    def deliver_again() -> None:
        while not ended.is_set():
            argv = [sys.executable, "-c", DELIVER, str(folder.path)]
            with subprocess.Popen(argv, start_new_session=True) as process:
                running.append(process)
                if process.wait() == 0:
                    return

    running: list[subprocess.Popen[bytes]] = []
    thread = threading.Thread(target=deliver_again)
    thread.start()
    try:
        yield running
        thread.join(120)
        assert not thread.is_alive(), "not delivered within the deadline"
    finally:
        ended.set()
        for process in running:
            process.kill()
        thread.join()


def steps_on(server: WandbServer) -> list[int]:
    """The steps of the rows that the server has, in order."""
    runs = server.state()["runs"]
    run = runs.get(f"team/clips/{LOCAL_ID}")
    return [row["global_step"] for row in run["history"]] if run else []


@pytest.mark.parametrize("kind", ["429", "500", "reset", "lost", "hang", "401", "404"])
def test_each_row_stands_there_once_after_a_fault(
    server: WandbServer, tmp_path: Path, kind: str
) -> None:
    """Rows that met a fault on their way are there once it is over, each once and in order."""
    folder = make_run(tmp_path, ["wandb"])
    append(folder, metrics(20))
    with delivering(folder):
        wait_until(lambda: len(steps_on(server)) == 20)
        server.fault(kind, "file_stream")
        append(folder, metrics(20, first=20))
        wait_until(lambda: server.met(kind) > 0)
        append(folder, metrics(20, first=40))
        end(folder)
        assert not folder.progress("wandb").done
        server.lift()
    assert steps_on(server) == list(range(60))
    assert server.run(LOCAL_ID)["state"] == "finished"


def test_rows_that_the_server_only_said_to_take_are_given_again(
    server: WandbServer, tmp_path: Path
) -> None:
    """An answer of 200 is no proof: rows are safe when the server shows them."""
    folder = make_run(tmp_path, ["wandb"])
    append(folder, metrics(20))
    with delivering(folder):
        wait_until(lambda: len(steps_on(server)) == 20)
        server.fault("drop", "file_stream")
        append(folder, metrics(40, first=20))
        end(folder)
        wait_until(lambda: folder.progress("wandb").faults > 0)
        assert not folder.progress("wandb").done
        server.lift()
    assert steps_on(server) == list(range(60))


@pytest.mark.parametrize("kind", ["429", "500", "reset", "lost", "hang", "401", "404"])
def test_a_server_that_is_ill_at_the_beginning(
    server: WandbServer, tmp_path: Path, kind: str
) -> None:
    """A run that could not begin is begun later, with all its rows."""
    folder = make_run(tmp_path, ["wandb"])
    append(folder, metrics(30))
    server.fault(kind, "graphql", part="UpsertBucket")
    with delivering(folder):
        wait_until(lambda: server.met(kind) > 0)
        end(folder)
        assert not folder.progress("wandb").done
        server.lift()
    assert steps_on(server) == list(range(30))
    assert server.run(LOCAL_ID)["state"] == "finished"


def test_a_server_that_is_not_there_yet(server: WandbServer, tmp_path: Path) -> None:
    """What was logged while no server listened is there once one does."""
    folder = make_run(tmp_path, ["wandb"])
    append(folder, metrics(30))
    end(folder)
    server.stop()
    with delivering(folder) as processes:
        wait_until(lambda: len(processes) > 1)
        server.start()
    assert steps_on(server) == list(range(30))


@pytest.mark.parametrize("path", ["file_stream", "graphql", "upload"])
def test_a_server_that_dies_in_the_middle_of_a_request(
    server: WandbServer, tmp_path: Path, path: str
) -> None:
    """The server is killed with half a request read, comes back, and nothing is there twice."""
    folder = make_run(tmp_path, ["wandb"])
    append(folder, metrics(20))
    with delivering(folder):
        wait_until(lambda: len(steps_on(server)) == 20)
        server.fault("die", path)
        append(folder, [*metrics(20, first=20), staged_clip(folder, step=40)])
        append(folder, metrics(19, first=41))
        wait_until(lambda: not server.is_alive())
        server.start()
        end(folder)
    assert steps_on(server) == list(range(60))
    assert [name for name in server.run(LOCAL_ID)["files"] if name.endswith(".mp4")]


@pytest.mark.parametrize("kind", ["500", "reset", "hang"])
def test_a_clip_arrives_after_its_upload_failed(
    server: WandbServer, tmp_path: Path, kind: str
) -> None:
    """The run is not finished before its clip is on the server."""
    folder = make_run(tmp_path, ["wandb"])
    server.fault(kind, "upload", part=".mp4")
    append(folder, [*metrics(3), staged_clip(folder, step=3)])
    end(folder)
    with delivering(folder):
        wait_until(lambda: server.met(kind) > 0)
        server.lift()
    assert len([name for name in server.run(LOCAL_ID)["files"] if name.endswith(".mp4")]) == 1


def test_a_process_that_is_killed_leaves_no_row_twice(server: WandbServer, tmp_path: Path) -> None:
    """A sink killed before its batch was acknowledged is given it again: the server has it once."""
    folder = make_run(tmp_path, ["wandb"])
    append(folder, metrics(40))
    deliver_and_die(folder, "wandb")
    append(folder, metrics(20, first=40))
    end(folder)
    with delivering(folder):
        pass
    assert steps_on(server) == list(range(60))


def test_a_second_session_goes_on_behind_the_rows_of_the_first(
    server: WandbServer, tmp_path: Path
) -> None:
    """Rows of a run that is gone on with from another machine are numbered on."""
    for part in range(3):
        folder = make_run(tmp_path / f"machine{part}", ["wandb"])
        append(folder, metrics(10, first=10 * part))
        end(folder)
        with delivering(folder):
            pass
    rows = server.run(LOCAL_ID)["history"]
    assert [row["_step"] for row in rows] == list(range(30))
    assert [row["global_step"] for row in rows] == list(range(30))


def test_what_is_said_once_a_run_stands_in_its_config(server: WandbServer, tmp_path: Path) -> None:
    """Params, tags and notes are on the server, and the state says how the run ended."""
    folder = make_run(tmp_path, ["wandb"])
    append(folder, [Params({"lr.x/y": "0.1"}), Tags({"a": "b", NOTE_TAG: "über"}), *metrics(1)])
    end(folder, "FAILED", "RuntimeError: no")
    with delivering(folder):
        pass
    run = server.run(LOCAL_ID)
    assert run["config"]["lr.x/y"] == "0.1"
    assert run["config"]["opusclip"]["tags"] == {"a": "b", "team": "true"}
    assert (run["notes"], run["groupName"], run["tags"]) == ("über", "films", ["team"])
    assert (run["state"], run["exitcode"]) == ("failed", 1)


def test_an_alias_stands_at_one_version(server: WandbServer, tmp_path: Path) -> None:
    """Files are artifacts of references; what pointed at one version points at the next."""
    folder = make_run(tmp_path, ["wandb"])
    for number in (1, 2):
        uri = f"mlflow-artifacts:/1/model-{number}"
        files = Files("model/m", "model", {"w": uri}, {"w": 9}, {"version": str(number)})
        append(folder, [msgspec.structs.replace(files, aliases=["champion", f"mlflow-v{number}"])])
    end(folder)
    with delivering(folder):
        pass
    first, second = server.state()["artifacts"]
    assert [one["contents"]["w"]["ref"] for one in (first, second)] == [
        "mlflow-artifacts:/1/model-1",
        "mlflow-artifacts:/1/model-2",
    ]
    assert "champion" not in first["aliases"]
    assert {"champion", "latest", "mlflow-v2"} <= {*second["aliases"]}
