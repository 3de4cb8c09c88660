"""What W&B holds is read back as it was sent, from its logs and from its server alike."""

import contextlib
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from opusclip_mlops import wandb_client, wandb_log
from opusclip_mlops.delivery import deliver
from opusclip_mlops.errors import DeliveryError
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.holdings import Held, Holdings, medium_of, open_holdings
from opusclip_mlops.points import Point, Points
from opusclip_mlops.records import (
    About,
    Dataset,
    Files,
    Image,
    Metrics,
    Params,
    Record,
    Table,
    Tags,
    Text,
)
from opusclip_mlops.targets import Target
from opusclip_mlops.words import NOTE_TAG
from tests import insight_records
from tests.journeys import LOCAL_ID, append, deliver_and_die, end, make_run
from tests.sinks.sink_contract import T0_MS, metrics, staged_clip
from tests.wandb_server import WandbServer, wandb_server
from tests.wandb_store import Store

KEYS = [
    "loss", "train/loss", "a.b", "a.b/c.d", ".a", "a.", "a..b", "with space", "über/größe", "日本",
    "a:b", "-", "_", "_private", "_type", "_step", "_timestamp", "_runtime", "_wandb",
    "global_step", "metrics/global_step", "metrics/loss", "metrics/metrics/_step", "params/x", "0",
    "key", "path", "opusclip_insight",
]  # fmt: skip


@dataclass
class Mirror:
    """A run's mirror, offline or online."""

    mode: str
    folder: RunFolder
    project: str

    def holdings(self) -> Holdings:
        identity = self.folder.identity()
        assert identity is not None
        return open_holdings(self.target, identity)

    @property
    def target(self) -> Target:
        """Where the run is mirrored to."""
        place = str(self.folder.path.parent.parent)
        return Target(kind="wandb", folder=place, project=self.project, mode=self.mode)

    def hold(self, records: Sequence[Record], *, status: str = "FINISHED") -> Held:
        """Send records and the run's end, and read back what is there then."""
        append(self.folder, records)
        end(self.folder, status)
        deliver(self.folder, "wandb")
        assert self.folder.progress("wandb").rejected == 0
        return self.holdings().read()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WandbServer]:
    with wandb_server(tmp_path_factory.mktemp("wandb_server")) as server:
        yield server
        server.lift()


@pytest.fixture
def make(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Mirror]:
    """Makes a mirror by its mode."""

    def make_mirror(mode: str) -> Mirror:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        fields = {"project_name": tmp_path.name, "wandb_mode": mode}
        return Mirror(mode, make_run(tmp_path, ["wandb"], **fields), tmp_path.name)

    return make_mirror


@pytest.fixture(params=["offline", "online"])
def mirror(request: pytest.FixtureRequest, make: Callable[[str], Mirror]) -> Mirror:
    return make(request.param)


@pytest.fixture
def offline(make: Callable[[str], Mirror]) -> Mirror:
    return make("offline")


@pytest.fixture
def online(make: Callable[[str], Mirror]) -> Mirror:
    return make("online")


def points_of(logged: Sequence[Record]) -> Points:
    """The points of log calls."""
    return Points.of(
        Point(key, call.step, call.timestamp_ms, value)
        for call in logged
        if isinstance(call, Metrics)
        for key, value in call.values.items()
    )


def assert_holds(held: Held, logged: Sequence[Record]) -> None:
    """Not a point more or less."""
    wanted = points_of(logged)
    assert wanted.minus(held.points).some(5) == []
    assert held.points.minus(wanted).some(5) == []


def test_every_point_is_read_back(mirror: Mirror) -> None:
    """Awkward steps, times and values are those that were logged, each as often."""
    values = [0.1, math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.797e308, -1e-300, 2.0**53 + 2, 3]
    steps = [5, 3, 9, 9, -4, 2**40, 5, 2**62 + 1, -(2**63), 2**63 - 1]
    logged: list[Record] = [
        Metrics(T0_MS + i, step, {"a": value, "b/c": -value})
        for i, (step, value) in enumerate(zip(steps, values, strict=True))
    ]
    logged += [Metrics(1, 1, {"a": 1.0}), Metrics(253_402_300_799_999, 2, {"a": 1.0})]
    held = mirror.hold([*logged, *metrics(300)])
    assert_holds(held, [*logged, *metrics(300)])
    assert held.row_count == len(logged) + 300
    assert held.end == "FINISHED"


def test_every_key_is_read_back(mirror: Mirror) -> None:
    """Dots, slashes, spaces, other scripts and names W&B keeps for itself come back unchanged."""
    logged: list[Record] = [Metrics(T0_MS, 1, {key: float(i) for i, key in enumerate(KEYS)})]
    logged += [Metrics(T0_MS + i, 2 + i, {key: 0.5}) for i, key in enumerate(KEYS)]
    assert_holds(mirror.hold(logged), logged)


def test_media_are_counted(mirror: Mirror) -> None:
    """Clips, pictures, texts and tables stand at their steps, and are no points."""
    Picture.fromarray(np.zeros((4, 4, 3), np.uint8)).save(mirror.folder.media / "black.png")
    shown = [
        staged_clip(mirror.folder),
        Image(T0_MS, 4, "a.b/image", "black.png"),
        Text(T0_MS, 5, "metrics/global_step", "one < two"),
        Table(T0_MS + 1, 6, "table", ["a", "b"], [[1, "x"], [2.5, None]]),
        Table(T0_MS + 1, 6, "table", ["a", "b"], [[1, "x"], [2.5, None]]),
    ]
    held = mirror.hold([*metrics(3), *shown])
    assert_holds(held, metrics(3))
    media = [medium_of(record) for record in shown]
    assert held.media == {medium: media.count(medium) for medium in media}


def test_insights_are_counted(mirror: Mirror, server: WandbServer) -> None:
    """Each once, by its kind and key; without one of its files it is not held."""
    records = [
        *insight_records.every_kind(mirror.folder), insight_records.graph(key="a.b/c:ü"),
    ]  # fmt: skip
    held = mirror.hold([*metrics(3), *records])
    assert_holds(held, metrics(3))
    wanted = {medium_of(record): 1 for record in records}
    assert held.media == wanted
    assert held.row_count == 3 + len(records)
    if mirror.mode == "online":
        assert pictures_committed(server, "clips") == 5
    stored_as(mirror, server, "media/graph/", "model").write_bytes(b"{")
    del wanted[medium_of(records[1])]
    assert mirror.holdings().read().media == wanted


def pictures_committed(server: WandbServer, key: str) -> int:
    """How many pictures the server has taken, in whole, with the table of a key."""
    artifacts = (one for one in server.state()["artifacts"] if one["state"] == "COMMITTED")
    [contents] = [one["contents"] for one in artifacts if one["collection"].endswith(f"-{key}")]
    return sum(path.endswith(".png") for path in contents)


def stored_as(mirror: Mirror, server: WandbServer, folder: str, name: str) -> Path:
    """Where the one file lies whose name begins so, on this machine or the server's."""
    if mirror.mode == "offline":
        [log] = wandb_log.logs_of(Path(mirror.target.folder), LOCAL_ID)
        [path] = (log.parent / "files" / folder).glob(f"{name}_*")
        return path
    with contextlib.closing(Store(server.folder)) as store:
        place = f"runs/team/{mirror.project}/{LOCAL_ID}/{folder}"
        [found] = [one for one in store.blob_names(place) if Path(one).name.startswith(f"{name}_")]
        return store.blob(found)


ODD_TEXTS = [Text(T0_MS, step, f"a:b/ü ?#%41 {step}", "one < two") for step in range(3)]


def stored(mirror: Mirror, server: WandbServer, step: int) -> Path:
    """Where the file of one of the odd texts lies, on this machine or the server's."""
    if mirror.mode == "offline":
        [log] = wandb_log.logs_of(Path(mirror.target.folder), LOCAL_ID)
        return next((log.parent / "files/media").rglob(f"* {step}_*.html"))
    with contextlib.closing(Store(server.folder)) as store:
        names = store.blob_names(f"runs/team/{mirror.project}/{LOCAL_ID}/media/")
        return store.blob(next(name for name in names if f" {step}_" in name))


def test_a_row_without_its_file_is_not_held(mirror: Mirror, server: WandbServer) -> None:
    """A text whose file is cut short or gone does not count, its row and its fellows do."""
    held = mirror.hold([*metrics(3), *ODD_TEXTS])
    media = [medium_of(record) for record in ODD_TEXTS]
    assert held.media == dict.fromkeys(media, 1)
    stored(mirror, server, 0).write_bytes(b"<")
    held = mirror.holdings().read()
    assert (held.media, held.row_count) == (dict.fromkeys(media[1:], 1), 6)
    if mirror.mode == "offline":
        stored(mirror, server, 1).unlink()
        assert mirror.holdings().read().media == {media[2]: 1}


def test_files_are_listed_page_by_page_and_only_for_media(
    online: Mirror, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run without media costs no listing of its files."""
    before = server.requests("RunFiles")
    online.hold(metrics(3))
    assert server.requests("RunFiles") == before
    online.hold(ODD_TEXTS)
    before = server.requests("RunFiles")
    assert len(online.holdings().read().media) == 3
    assert server.requests("RunFiles") == before + 1
    monkeypatch.setattr(wandb_client, "_PAGE_FILES", 2)
    assert len(online.holdings().read().media) == 3
    assert server.requests("RunFiles") > before + 2


def test_words_are_those_of_the_records(mirror: Mirror) -> None:
    """Params, tags, notes, datasets, files and what MLflow says are the texts of their records."""
    uris = {"w ü": "mlflow-artifacts:/1/w ü", "d/x": "s3://bucket/x"}
    said: list[Record] = [
        Params({"lr.x/y": "0.1", "opusclip": "ü\n", "params/a": "", "tags": "no"}),
        Tags({"a": "b", "team": "true", "x.y": "ü"}),
        Tags({NOTE_TAG: "# über\n\n*all*"}),
        Dataset("clips", "d1", "local", '{"uri": "x"}', "training", '{"frames": 9}'),
        About("mlflow", {"run_id": "1", "experiment": "films"}, T0_MS),
        About("registry/m/1", {"aliases": "champion, best"}, T0_MS),
        Files("model/m", "model", uris, {"w ü": 9}, {"version": "1"}, ["champion", "mlflow-v1"]),
        Files("all files", "files", uris, {}),
    ]
    held = mirror.hold([*said, *metrics(2)])
    holdings = mirror.holdings()
    wanted = {name: text for one in said for name, text in holdings.rendered(one).items()}
    tags = Tags({"a": "b", "team": "true", "x.y": "ü"})
    wanted |= holdings.rendered(tags)
    assert {name: held.words[name] for name in wanted} == wanted
    assert {*held.words} - {*wanted} <= {"end"}


def test_the_last_word_holds(mirror: Mirror) -> None:
    """Of one name the last holds, and an alias stands at the version it was given last."""

    def version(number: int, *aliases: str) -> Files:
        about = {"version": str(number)}
        uris = {"w": f"mlflow-artifacts:/1/w{number}"}
        return Files("model/m", "model", uris, {}, about, [f"mlflow-v{number}", *aliases])

    said = [About("mlflow", {"x": "1"}), About("mlflow", {"y": "2"})]
    said_of_files = [version(1, "champion", "old"), version(2, "champion")]
    held = mirror.hold([*said, *said_of_files, *metrics(1)])
    for record in (said[1], version(1, "old"), version(2, "champion")):
        for name, text in mirror.holdings().rendered(record).items():
            assert held.words[name] == text


@pytest.mark.parametrize("status", ["FINISHED", "FAILED"])
def test_the_end_is_read_back(mirror: Mirror, status: str) -> None:
    """How a run ended is there once it has."""
    assert mirror.hold(metrics(1), status=status).end == status


def test_a_run_that_is_not_there_holds_nothing(mirror: Mirror) -> None:
    """Nothing, and no error."""
    held = mirror.holdings().read()
    found = (len(held.points), held.media, held.words, held.row_count, held.end)
    assert found == (0, {}, {}, 0, "")
    assert mirror.holdings().fingerprint() == ""


def test_the_fingerprint_changes_with_what_is_held(mirror: Mirror) -> None:
    """More rows or other words are another fingerprint, another look is not."""
    mirror.hold(metrics(3))
    found = [mirror.holdings().fingerprint() for _ in range(2)]
    mirror.hold(metrics(3, first=3))
    found.append(mirror.holdings().fingerprint())
    mirror.hold([Params({"a": "b"})])
    found.append(mirror.holdings().fingerprint())
    assert found[0] == found[1]
    assert len({*found}) == 3


def test_a_run_of_several_parts_is_one(mirror: Mirror) -> None:
    """What was logged before and after the run was gone on with is all there."""
    mirror.hold([*metrics(5), Params({"a": "1"})])
    held = mirror.hold([*metrics(5, first=5), Params({"b": "2"})], status="FAILED")
    assert_holds(held, metrics(10))
    wanted = mirror.holdings().rendered(Params({"a": "1", "b": "2"}))
    assert {name: held.words[name] for name in wanted} == wanted


def test_whole_records_of_a_torn_log_are_held(offline: Mirror) -> None:
    """A log cut off anywhere holds the rows before the cut, in order, and has no end."""
    logged = metrics(60)
    whole = offline.hold(logged)
    [log] = wandb_log.logs_of(Path(offline.target.folder), LOCAL_ID)
    content = log.read_bytes()
    counts = []
    for size_bytes in range(len(content) - 1, 0, -97):
        log.write_bytes(content[:size_bytes])
        held = offline.holdings().read()
        assert held.end in ("", whole.end)
        assert held.end == "" or held.row_count == whole.row_count
        assert_holds(held, logged[: held.row_count])
        counts.append(held.row_count)
    assert (whole.row_count, counts[-1]) == (60, 0)
    assert counts == sorted(counts, reverse=True)


def test_a_log_of_many_blocks_is_read_to_its_end(offline: Mirror) -> None:
    """Records that lie across blocks, and across what is read at once, are read."""
    text = Text(T0_MS, 0, "notes", "x")
    logged: list[Record] = [
        Metrics(T0_MS + i, i, {f"{'k' * 200}/{key}": float(key) for key in range(60)})
        for i in range(450)
    ]
    held = offline.hold([text, *logged])
    [log] = wandb_log.logs_of(Path(offline.target.folder), LOCAL_ID)
    assert log.stat().st_size > wandb_log._READ_BYTES
    assert_holds(held, logged)


FOREIGN = """
import sys, wandb
mode, project, run_id = sys.argv[1:]
resume = "allow" if mode == "online" else None
run = wandb.init(project=project, id=run_id, mode=mode, resume=resume)
run.log({"x": 1, "flag": True, "word": "1.5", "nothing": None, "deep": {"er": {"y": 2}}, "l": [1]})
run.log({"images": [wandb.Image("black.png")] * 2, "_timestamp": 5.0, "global_step": 7, "x": 1})
run.log({"_timestamp": 5.0, "global_step": 7, "x": 1})
run.finish()
"""


def test_rows_of_another_client_are_seen(mirror: Mirror, tmp_path: Path) -> None:
    """Numbers that MLflow does not know are held too, as often as they stand there."""
    mirror.hold(metrics(3))
    Picture.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "black.png")
    argv = [sys.executable, "-c", FOREIGN, mirror.mode, mirror.project, LOCAL_ID]
    subprocess.run(argv, check=True)
    held = mirror.holdings().read()
    extra = held.points.minus(points_of(metrics(3)))
    assert sorted((p.key, p.value) for p in extra.some(9)) == [
        ("deep.er.y", 2), ("x", 1), ("x", 1), ("x", 1)
    ]  # fmt: skip
    assert [(p.step, p.timestamp_ms) for p in extra.some(2)] == [(7, 5000)] * 2
    assert (held.row_count, held.media) == (6, {})


def test_a_writer_that_was_killed_declared_no_end(offline: Mirror) -> None:
    """What a killed sink has left on disk is read; that it ended is not claimed."""
    append(offline.folder, metrics(20))
    deliver_and_die(offline.folder, "wandb")
    held = offline.holdings().read()
    assert held.end == ""
    assert points_of(metrics(20)[: held.row_count]).minus(held.points).some(1) == []


def test_a_row_that_the_server_dropped_is_not_held(online: Mirror, server: WandbServer) -> None:
    """Only what the server shows counts, not what it said to have taken."""
    online.hold(metrics(10))
    server.fault("drop", "file_stream")
    code = (
        "import sys, wandb\n"
        "run = wandb.init(project=sys.argv[1], id=sys.argv[2], resume='allow')\n"
        "run.log({'lost': 1.0, 'global_step': 99})\n"
        "run.finish()\n"
    )
    subprocess.run([sys.executable, "-c", code, online.project, LOCAL_ID], check=True)
    server.lift()
    held = online.holdings().read()
    assert_holds(held, metrics(10))


@pytest.mark.parametrize("kind", ["401", "404", "403"])
def test_a_server_that_refuses_is_an_error_of_one_line(
    online: Mirror, server: WandbServer, kind: str
) -> None:
    """A server that refuses to tell does not make a mirror empty."""
    online.hold(metrics(3))
    server.fault(kind, "graphql", part="Run")
    with pytest.raises(DeliveryError, match=r"^W&B cannot be read: .+") as caught:
        online.holdings().read()
    with pytest.raises(DeliveryError):
        online.holdings().fingerprint()
    server.lift()
    assert "\n" not in str(caught.value)
    assert_holds(online.holdings().read(), metrics(3))


def test_the_fingerprint_is_one_question(online: Mirror, server: WandbServer) -> None:
    """To see whether anything changed costs the server one request."""
    online.hold(metrics(3))
    holdings = online.holdings()
    holdings.fingerprint()
    before = server.requests("graphql")
    holdings.fingerprint()
    assert server.requests("graphql") == before + 1


def test_a_key_alone_does_not_send_an_offline_mirror_online(offline: Mirror) -> None:
    """A target that says offline is read from its logs, whatever is configured."""
    held = offline.hold(metrics(3))
    assert_holds(held, metrics(3))
