"""One run's mirror: equal to MLflow whatever the run holds, and however often it is looked at."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from mlflow.entities import Metric, Run

from opusclip_mlops import signatures, wandb_log
from opusclip_mlops.delivery import deliver
from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.holdings import medium_of
from opusclip_mlops.mirror_state import live_mirrors
from opusclip_mlops.records import Image, Record, Table
from opusclip_mlops.sinks import Waiting
from opusclip_mlops.uploads import Uploads
from tests.insight_records import every_kind, histograms
from tests.journeys import append, end, make_run
from tests.mirrored import AWKWARD, T0, Place
from tests.test_mirror_names import begun
from tests.test_pictures import encoded, picture

KINDS = pytest.mark.parametrize("kind", ["tensorboard", "wandb"])


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A store and a place for mirrors."""
    return Place(tmp_path)


@KINDS
@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_points_are_all_there_once(place: Place, kind: str, name: str) -> None:
    """Whatever MLflow takes as a point, the mirror holds it once, and a second look sends none."""
    run = place.run(AWKWARD[name])
    sent = place.mirror(run, kind).catch_up(run)
    assert sent.points == len(place.wanted(run, kind))
    assert place.held(run, kind) == place.wanted(run, kind)
    assert place.mirror(run, kind).catch_up(run).is_nothing
    assert place.mirror(run, kind).compare(run, as_it_is=True).difference.is_empty
    assert place.held(run, kind) == place.wanted(run, kind)


@KINDS
@pytest.mark.parametrize(
    "metrics",
    [
        pytest.param([], id="none"),
        pytest.param([Metric(f"k{n}", float(n), T0, 1) for n in range(3000)], id="3000-keys"),
        pytest.param([Metric("a", s / 7, T0 + s, s) for s in range(5_000)], id="5000-steps"),
    ],
)
def test_a_run_of_any_size_is_mirrored(place: Place, kind: str, metrics: list[Metric]) -> None:
    """A run without points, one of very many keys, one of very many steps."""
    run = place.run(metrics)
    place.mirror(run, kind).catch_up(run)
    assert place.held(run, kind) == place.wanted(run, kind)


@KINDS
@pytest.mark.parametrize("status", [None, "FINISHED", "FAILED", "KILLED"])
def test_a_run_is_mirrored_however_it_ended(place: Place, kind: str, status: str | None) -> None:
    """Crashed runs and runs that never ended are mirrored too, and their ends are told apart."""
    run = place.run(AWKWARD["steps out of order"], status=status)
    place.mirror(run, kind).catch_up(run)
    assert place.held(run, kind) == place.wanted(run, kind)
    held = place.mirror(run, kind).compare(run, as_it_is=False).held
    assert held.end == (status or "")
    assert place.mirror(run, kind).catch_up(run).is_nothing


@KINDS
def test_a_run_goes_on_behind_what_was_mirrored(place: Place, kind: str) -> None:
    """Points that came since the last look are added, and then the run's end."""
    run = place.run([Metric("a", 1.0, T0, 1)], status=None)
    place.mirror(run, kind).catch_up(run)
    place.log(run, [Metric("a", 2.0, T0 + 1, 2), Metric("b", 3.0, T0 + 1, 2)])
    assert place.mirror(run, kind).catch_up(place.again(run)).points == 2
    place.client.set_terminated(run.info.run_id, "FAILED")
    place.mirror(run, kind).catch_up(place.again(run))
    assert place.held(run, kind) == place.wanted(run, kind)


@KINDS
def test_a_mirror_that_holds_too_much_is_made_anew(place: Place, kind: str) -> None:
    """A point that stands twice, or that MLflow does not have, is not there any more afterwards."""
    run, other = place.run(AWKWARD["no numbers"]), place.run([Metric("x", 1.0, T0, 1)])
    for one in (run, other):
        place.mirror(one, kind).catch_up(one)
    if kind == "tensorboard":
        [file] = place.folder(run).glob("*tfevents*")
        shutil.copyfile(file, file.with_name(file.name + ".2"))
    else:
        [log] = wandb_log.logs_of(place.path / "runs", run.info.run_id)
        copy = log.parent.with_name(f"offline-run-20200101_000000-{run.info.run_id}")
        shutil.copytree(log.parent, copy)
    assert len(place.held(run, kind)) == 2 * len(place.wanted(run, kind))
    found = place.mirror(run, kind).compare(run, as_it_is=True).difference
    assert len(found.extra) == len(place.wanted(run, kind))
    assert place.mirror(run, kind).catch_up(run).rebuilt
    assert place.held(run, kind) == place.wanted(run, kind)
    assert place.held(other, kind) == place.wanted(other, kind)


@KINDS
def test_a_mirror_that_was_dropped_is_built_again(place: Place, kind: str) -> None:
    """The folder of all mirrors is removed; MLflow alone brings it back."""
    run = place.run(AWKWARD["the same step in other keys"])
    place.mirror(run, kind).catch_up(run)
    shutil.rmtree(place.path / "runs")
    mirror = place.mirror(run, kind)
    assert mirror.follow_up(run) is None
    mirror.catch_up(run)
    assert place.held(run, kind) == place.wanted(run, kind)


@KINDS
def test_following_sends_what_is_new(place: Place, kind: str) -> None:
    """Each look sends the new points only; the end of the run is told when it comes."""
    run = place.run([Metric("a", 1.0, T0, 1)], status=None)
    mirror = place.mirror(run, kind)
    assert mirror.follow_up(run) is None
    mirror.catch_up(run)
    for step in range(2, 6):
        assert mirror.follow_up(place.again(run)).is_nothing
        place.log(run, [Metric("a", step / 3, T0 + step, step), Metric("b", 0.0, T0 + step, step)])
        assert mirror.follow_up(place.again(run)).points == 2
    place.client.set_terminated(run.info.run_id)
    assert mirror.follow_up(place.again(run)) is None
    assert mirror.catch_up(place.again(run)).points == 0
    assert place.held(run, kind) == place.wanted(run, kind)
    assert mirror.compare(place.again(run), as_it_is=False).difference.is_empty


@KINDS
def test_another_process_goes_on_where_the_mirror_is(place: Place, kind: str) -> None:
    """A follower that was stopped in good order is followed by one that reads no history again."""
    run = place.run([Metric("a", 1.0, T0, 1)], status=None)
    mirror = place.mirror(run, kind)
    mirror.catch_up(run)
    mirror.leave()
    place.log(run, [Metric("a", 2.0, T0 + 2, 2)])
    later = place.mirror(run, kind)
    assert later.follow_up(place.again(run)).points == 1
    later.leave()
    assert place.held(run, kind) == place.wanted(run, kind)


@KINDS
def test_what_is_no_point_follows_too(place: Place, kind: str) -> None:
    """Params, tags, notes, pictures and texts that come later are sent once."""
    run = place.run([Metric("a", 1.0, T0, 1)], status=None)
    mirror = place.mirror(run, kind)
    mirror.catch_up(run)
    place.client.log_param(run.info.run_id, "depth", "4" * 6000)
    place.client.set_tag(run.info.run_id, "team", "x|y\nz")
    place.client.set_tag(run.info.run_id, "mlflow.note.content", "# notes")
    import numpy as np

    picture = np.zeros((8, 8, 3), dtype=np.uint8)
    place.client.log_image(run.info.run_id, picture, key="sample/a", step=4, timestamp=T0)
    sent = mirror.follow_up(place.again(run), look_at_all=True)
    assert (sent.points, sent.media) == (0, 1)
    assert sent.words
    assert mirror.follow_up(place.again(run), look_at_all=True).is_nothing
    mirror.leave()
    found = mirror.compare(place.again(run), as_it_is=False).difference
    assert found.is_empty, found


@KINDS
def test_two_writers_of_one_run_are_one_mirror(place: Place, kind: str) -> None:
    """Two clients log to one run at once; the mirror holds the points of both."""
    run = place.run(status=None)
    for n in range(10):
        place.log(run, [Metric("loss", float(n), T0 + n, n)])
        place.log(run, [Metric("loss", float(-n), T0 + n, n), Metric("other", 1.0, T0 + n, n)])
    place.mirror(run, kind).catch_up(place.again(run))
    assert place.held(run, kind) == place.wanted(run, kind)


@KINDS
def test_a_broken_mirror_is_healed(place: Place, kind: str) -> None:
    """Half of what was written is lost, as by a crash; the rest is sent again."""
    run = place.run([Metric("a", s / 7, T0 + s, s) for s in range(2000)])
    place.mirror(run, kind).catch_up(run)
    found = (
        list(place.folder(run).glob("*tfevents*"))
        if kind == "tensorboard"
        else wandb_log.logs_of(place.path / "runs", run.info.run_id)
    )
    os.truncate(found[0], found[0].stat().st_size // 2)
    assert 0 < len(place.held(run, kind)) < 2000
    place.mirror(run, kind).catch_up(run)
    assert place.held(run, kind) == place.wanted(run, kind)


def test_tensorboard_shows_every_step_in_both_loaders(place: Place) -> None:
    """The event file stands in the order of its steps: no loader has a reason to drop a point."""
    run = place.run(AWKWARD["steps out of order"])
    place.mirror(run, "tensorboard").catch_up(run)
    from opusclip_mlops.event_log import read_log

    assert read_log(sorted(place.folder(run).glob("*tfevents*"))).is_in_order()


def test_a_mirror_that_is_being_written_is_left_alone(place: Place) -> None:
    """One process writes a mirror at a time; the other one is told who does."""
    run = place.run([Metric("a", 1.0, T0, 1)], status=None)
    mirror = place.mirror(run, "tensorboard")
    mirror.catch_up(run)
    place.log(run, [Metric("a", 2.0, T0 + 1, 2)])
    assert mirror.follow_up(place.again(run)).points == 1
    assert mirror.is_open
    place.log(run, [Metric("a", 3.0, T0 + 2, 3)])
    with pytest.raises(OpusclipError, match="another process"):
        place.mirror(run, "tensorboard").catch_up(place.again(run))
    mirror.leave()
    assert place.mirror(run, "tensorboard").catch_up(place.again(run)).points == 1


def test_a_run_that_its_tracker_mirrors_is_left_to_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it runs and is heard of; once it is over, or silent for long, it is anybody's."""
    folder = make_run(place.path, ["mlflow", "tensorboard"])
    run = place.run([Metric("a", 1.0, T0, 1)], status=None)
    said = live_mirrors(folder.manifest())
    place.client.set_tag(run.info.run_id, "opusclip.mirrors", said)
    mirror = place.mirror(run, "tensorboard")
    with pytest.raises(Waiting, match="tracker"):
        mirror.catch_up(place.again(run))
    assert mirror.compare(place.again(run), as_it_is=True).difference.lacking
    with monkeypatch.context() as patch:
        patch.setattr(signatures, "_SILENT_MS", -1)
        assert mirror.catch_up(place.again(run)).points == 1
    place.client.set_terminated(run.info.run_id)
    with pytest.raises(Waiting, match="tracker"):
        mirror.catch_up(place.again(run))
    with monkeypatch.context() as patch:
        patch.setattr(signatures, "_SILENT_MS", -1)
        mirror.catch_up(place.again(run))
    assert mirror.catch_up(place.again(run)).is_nothing
    assert place.held(run, "tensorboard") == place.wanted(run, "tensorboard")


@KINDS
def test_a_run_that_begins_again_is_followed(place: Place, kind: str) -> None:
    """A run that had ended goes on: its mirror goes on too, and ends as the run does."""
    run = place.run([Metric("a", 1.0, T0, 1)])
    mirror = place.mirror(run, kind)
    mirror.catch_up(run)
    place.client.update_run(run.info.run_id, status="RUNNING")
    place.log(run, [Metric("a", 2.0, T0 + 1, 2)])
    assert mirror.follow_up(place.again(run)) is None
    mirror.catch_up(place.again(run))
    assert place.held(run, kind) == place.wanted(run, kind)
    place.client.set_terminated(run.info.run_id, "KILLED")
    mirror.catch_up(place.again(run))
    assert mirror.compare(place.again(run), as_it_is=False).held.end == "KILLED"


@KINDS
def test_what_mlflow_has_no_more_is_found(place: Place, kind: str) -> None:
    """A deleted tag is a difference; afterwards the mirror says so, or has it no more."""
    run = place.run([Metric("a", 1.0, T0, 1)])
    for tag in ("team", "mlflow.note.content"):
        place.client.set_tag(run.info.run_id, tag, "x")
    mirror = place.mirror(run, kind)
    mirror.catch_up(place.again(run))
    for tag in ("team", "mlflow.note.content"):
        place.client.delete_tag(run.info.run_id, tag)
    assert not mirror.compare(place.again(run), as_it_is=True).difference.is_empty
    mirror.catch_up(place.again(run))
    assert mirror.compare(place.again(run), as_it_is=True).difference.is_empty
    assert place.held(run, kind) == place.wanted(run, kind)


@KINDS
def test_a_late_point_of_a_run_that_is_over_is_sent(place: Place, kind: str) -> None:
    """A second host's journal may be delivered behind the end, below the key's latest step."""
    run = place.run([Metric("a", 1.0, T0, 5)])
    mirror = place.mirror(run, kind)
    mirror.catch_up(run)
    place.log(run, [Metric("a", 2.0, T0 + 1, 2)])
    sent = mirror.follow_up(place.again(run))
    assert sent is None or sent.points == 1
    if sent is None:
        mirror.catch_up(place.again(run))
    assert place.held(run, kind) == place.wanted(run, kind)
    assert mirror.compare(place.again(run), as_it_is=True).difference.is_empty


@KINDS
def test_a_mirror_that_does_not_say_the_end_is_not_equal(place: Place, kind: str) -> None:
    """A worker that was killed before its last word leaves a difference, and it is mended."""
    run = place.run([Metric("a", 1.0, T0, 1)], status=None)
    place.mirror(run, kind).catch_up(run)
    place.client.set_terminated(run.info.run_id, "FAILED")
    run = place.again(run)
    mirror = place.mirror(run, kind)
    found = mirror.compare(run, as_it_is=True).difference
    assert found.ends
    assert not found.is_empty
    mirror.catch_up(run)
    assert mirror.compare(run, as_it_is=True).difference.is_empty


@KINDS
def test_two_that_look_at_once_send_once(place: Place, kind: str) -> None:
    """Whoever compares holds the mirror from then on; the other one is told to wait."""
    run = place.run([Metric("a", 1.0, T0, 1)], status=None)
    first, second = place.mirror(run, kind), place.mirror(run, kind)
    first.catch_up(run)
    place.log(run, [Metric("a", 2.0, T0 + 1, 2)])
    assert second.follow_up(place.again(run)).points == 1
    for look in (first.follow_up, first.catch_up):
        with pytest.raises(Waiting):
            look(place.again(run))
    second.leave()
    first.catch_up(place.again(run))
    assert place.held(run, kind) == place.wanted(run, kind)


def test_times_that_seconds_cannot_tell_are_equal(place: Place) -> None:
    """Nanoseconds given for milliseconds: both mirrors count seconds in 64-bit floats."""
    run = place.run([Metric("a", 1.0, 1_700_000_000_123_456_789, 1)])
    for kind in ("tensorboard", "wandb"):
        mirror = place.mirror(run, kind)
        mirror.catch_up(run)
        assert mirror.catch_up(run).is_nothing
        assert mirror.compare(run, as_it_is=True).difference.is_empty


# Insights, pictures and tables


def logged(place: Place, tmp_path: Path, *records: Record, status: str | None = None) -> Run:
    """A run with these in MLflow."""
    run = place.run([Metric("a", 1.0, T0, 1)], status=None)
    uploads = Uploads(place.client, run.info.run_id, make_run(tmp_path))
    for record in records:
        uploads.send(record)
    if status:
        place.client.set_terminated(run.info.run_id, status)
    return place.again(run)


@KINDS
def test_every_kind_of_insight_is_mirrored(place: Place, tmp_path: Path, kind: str) -> None:
    """Out of MLflow alone, each once, with a picture and a table; a second look sends none."""
    folder = make_run(tmp_path)
    (folder.media / "a.png").write_bytes(encoded(picture()))
    others = [Image(T0, 2, "a:b", "a.png"), Table(T0, 2, "eval/é", ["a"], [[1], ["nan"]])]
    run = logged(place, tmp_path, *every_kind(folder), *others, status="FINISHED")
    sent = place.mirror(run, kind).catch_up(run)
    assert sent.left_out == ()
    assert sent.media == len(every_kind(folder)) + 2
    comparison = place.mirror(run, kind).compare(run, as_it_is=False)
    assert comparison.difference.is_empty
    wanted = {medium_of(one) for one in [*every_kind(folder), *others]}
    assert comparison.held.media == dict.fromkeys(wanted, 1)
    assert place.mirror(run, kind).catch_up(run).is_nothing


@KINDS
def test_an_insight_of_a_run_that_goes_on_follows(place: Place, tmp_path: Path, kind: str) -> None:
    """And a table of ours, which stands as it was logged; nothing is sent twice."""
    folder = make_run(tmp_path)
    run = logged(place, tmp_path, histograms(1))
    mirror = place.mirror(run, kind)
    assert mirror.catch_up(run).media == 1
    uploads = Uploads(place.client, run.info.run_id, folder)
    for record in (histograms(2), Table(T0, 2, "t", ["a"], [[1]])):
        uploads.send(record)
    sent = mirror.follow_up(place.again(run), look_at_all=True)
    assert sent is not None
    assert sent.media == 2
    mirror.leave()
    assert place.mirror(run, kind).compare(place.again(run), as_it_is=False).difference.is_empty


def files_of(place: Place) -> dict[str, int]:
    """The files of all mirrors, with their sizes."""
    found = (path for path in (place.path / "runs").rglob("*") if path.is_file())
    return {str(path): path.stat().st_size for path in found}


@KINDS
def test_a_mirror_without_a_broken_insight_is_equal(
    place: Place, tmp_path: Path, kind: str
) -> None:
    """It is said with its reason, by who mirrors and by who compares; an insight too few is not."""
    run = logged(place, tmp_path, histograms(1), histograms(2), status="FINISHED")
    [first, second] = Path(run.info.artifact_uri).rglob("step_*.json")
    whole = second.read_bytes()
    second.write_bytes(whole[:40])
    sent = place.mirror(run, kind).catch_up(run)
    assert sent.media == 1
    assert ["can't be read as JSON" in one.reason for one in sent.left_out] == [True]
    before = files_of(place)
    sent = place.mirror(run, kind).catch_up(run)
    assert sent.is_nothing
    assert ["can't be read as JSON" in one.reason for one in sent.left_out] == [True]
    assert files_of(place) == before
    comparison = place.mirror(run, kind).compare(run, as_it_is=False)
    assert comparison.difference.is_empty
    [left] = comparison.contents.left_out
    assert left.name.endswith(second.name)
    second.write_bytes(whole)
    found = place.mirror(run, kind).compare(run, as_it_is=False).difference
    assert [part.record.step for part in found.lacking_media] == [int(second.name[5:13])]
    first.unlink()
    assert place.mirror(run, kind).compare(run, as_it_is=False).difference.has_extra


@KINDS
def test_a_live_mirror_of_insights_is_equal_to_mlflow(
    place: Place, tmp_path: Path, kind: str
) -> None:
    """What a run's own tracker wrote is what a replay would write, keys and times exactly."""
    mode = {"wandb_mode": "offline"} if kind == "wandb" else {}
    where = {"tensorboard_dir": str(tmp_path / "runs"), "wandb_dir": str(tmp_path / "runs")}
    folder = make_run(tmp_path, sinks=("mlflow", kind), **where, **mode)
    (folder.media / "a.png").write_bytes(encoded(picture()))
    append(folder, [
        *every_kind(folder), Image(T0, 2, "Zürich/a:b", "a.png"),
        Table(T0, 2, "eval/é", ["a"], [[float("nan")]]),
    ])  # fmt: skip
    end(folder)
    for sink in ("mlflow", kind):
        deliver(folder, sink)
    identity = folder.identity()
    assert identity is not None
    run = place.client.get_run(identity.run_id)
    comparison = place.mirror(run, kind).compare(run, as_it_is=True)
    assert len(comparison.held.media) == 9
    assert comparison.difference.is_empty


# Runs that went back


def went_back(place: Place, run: Run) -> None:
    """Training goes on from the checkpoint of step 5, a second later, to step 8."""
    for name, value in begun(T0 + 1000, 5, T0 + 5).items():
        place.client.set_tag(run.info.run_id, name, value)
    place.log(run, [Metric("loss", float(s), T0 + 1000 + s, s) for s in range(6, 9)])


def line_of(place: Place, run: Run, kind: str) -> dict[str, list[int]]:
    """The steps of each key that its mirror holds."""
    found: dict[str, list[int]] = {}
    for point in place.held(run, kind):
        found.setdefault(point.key, []).append(point.step)
    return found


@KINDS
def test_a_run_that_went_back_is_mirrored_as_the_line_that_it_is_now(
    place: Place, kind: str
) -> None:
    """Each step of the curve has one value; what is superseded stands beside it, media too."""
    keys = ("loss", "system/cpu", "generation-0/loss")
    metrics = [Metric(key, 1.0, T0 + s, s) for s in range(11) for key in keys]
    run = place.run(metrics, status=None)
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    place.client.log_image(run.info.run_id, pixels, key="sample", step=9, timestamp=T0 + 9)
    went_back(place, run)
    place.client.set_terminated(run.info.run_id)
    place.mirror(run, kind).catch_up(place.again(run))
    every = [*range(11)]
    assert line_of(place, run, kind) == {
        "loss": every[:9], "generation-0/loss": every[6:], "system/cpu": every,
        "metrics/generation-0/loss": every[:6], "generation-0/generation-0/loss": every[6:],
    }  # fmt: skip
    compared = place.mirror(run, kind).compare(place.again(run), as_it_is=False)
    assert compared.difference.is_empty
    assert [one.key for one in compared.held.media] == ["generation-0/sample"]
    assert place.mirror(run, kind).catch_up(place.again(run)).is_nothing


@KINDS
def test_a_mirror_of_before_the_run_went_back_is_made_anew(place: Place, kind: str) -> None:
    """By whoever follows it, once; it is unequal until then, and nothing is lost."""
    run = place.run([Metric("loss", float(s), T0 + s, s) for s in range(11)], status=None)
    mirror = place.mirror(run, kind)
    mirror.catch_up(run)
    went_back(place, run)
    found = mirror.compare(place.again(run), as_it_is=True).difference
    assert (found.went_back, len(found.extra), len(found.lacking)) == (True, 5, 8)
    assert mirror.follow_up(place.again(run)) is None
    assert mirror.catch_up(place.again(run)).rebuilt
    assert line_of(place, run, kind) == {
        "loss": [*range(9)], "generation-0/loss": [*range(6, 11)],
    }  # fmt: skip
    place.log(run, [Metric("loss", 9.0, T0 + 1009, 9)])
    assert mirror.follow_up(place.again(run)).points == 1
    mirror.leave()
    assert line_of(place, run, kind)["loss"] == [*range(10)]
    assert mirror.compare(place.again(run), as_it_is=False).difference.is_empty


def test_a_mirror_that_lacks_a_point_did_not_go_back(place: Place) -> None:
    """Nor does a point too many mean that, in a run that went back."""
    run = place.run([Metric("loss", float(s), T0 + s, s) for s in range(11)], status=None)
    went_back(place, run)
    place.mirror(run, "tensorboard").catch_up(place.again(run))
    [file] = place.folder(run).glob("*tfevents*")
    shutil.copyfile(file, file.with_name(file.name + ".2"))
    place.log(run, [Metric("loss", 9.0, T0 + 1009, 9)])
    found = place.mirror(run, "tensorboard").compare(place.again(run), as_it_is=True).difference
    assert (len(found.extra), len(found.lacking), found.went_back) == (14, 1, False)
