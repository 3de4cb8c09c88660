"""Facts about `opusclip_mlops.reports.reading`: a run read part by part."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops.errors import RegistryError
from opusclip_mlops.reports.reading import Asking, RunRead, RunReader
from tests.journeys import store
from tests.panelled import T0_MS
from tests.reports.reported_runs import AGAIN_AFTER, AGAIN_TO, STEPS, Site, gone_on

Bare = Callable[..., str]


def read(uri: str, run_id: str, folder: Path, *, most_clip_bytes: int = 2**24) -> RunRead:
    """A run as a report reads it."""
    client = MlflowClient(uri)
    reader = RunReader(
        client=client, folder=folder, wanted=lambda _: True, compares=False,
        most_clip_bytes=most_clip_bytes, show=lambda *_: None,
    )  # fmt: skip
    return reader.read(client.get_run(run_id))


def test_what_cannot_be_read_is_noted_and_the_rest_goes_on() -> None:
    """A refusal, a store that is away and an error of ours are named; a fault of the code is not
    taken for one.
    """
    ask = Asking("kite")

    def refused() -> int:
        raise RegistryError("password=hunter2 is wrong")

    def away() -> int:
        raise ConnectionError("nobody answers")

    assert ask.part("registry", refused, 1) == 1
    assert ask.part("files", away, 2) == 2
    assert ask.part("curves", lambda: 3, 0) == 3
    said = [(one.run, one.part, one.reason) for one in ask.unread]
    assert said == [
        ("kite", "registry", "password=*** is wrong"),
        ("kite", "files", "nobody answers"),
    ]
    with pytest.raises(ZeroDivisionError):
        ask.part("broken", lambda: 1 // 0, 0)


def test_the_curve_is_what_the_run_looks_back_on(site: Site, tmp_path: Path) -> None:
    """What was logged behind the checkpoint before it went on is a branch of its own."""
    found = read(site.uri, site.rich, tmp_path)
    steps = found.curves["train/loss"].rows["step"].tolist()
    assert steps == list(range(AGAIN_TO + 1))
    [branch] = found.branches["train/loss"]
    assert branch.rows["step"].tolist() == list(range(AGAIN_AFTER + 1, STEPS))
    assert "system/cpu" not in found.branches
    assert found.experiment == "films"


def test_the_newest_of_each_key_is_fetched(site: Site, tmp_path: Path) -> None:
    """Samples of panels are on their walls, and not fetched a second time."""
    found = read(site.uri, site.rich, tmp_path)
    newest = {(type(one.record).__name__, getattr(one.record, "step", None)) for one in found.media}
    assert newest == {("Video", 9), ("Image", 3), ("Table", 2)}
    assert all(one.path is None or one.path.is_file() for one in found.media)
    [wall] = found.walls
    assert [column.step for column in wall.columns] == [10]
    assert "load_checkpoint" in found.crash


@pytest.mark.parametrize(("most_clip_bytes", "shown"), [(200_000, 4), (100, 0)])
def test_a_panel_has_as_many_clips_as_there_is_room_for(
    site: Site, tmp_path: Path, most_clip_bytes: int, shown: int
) -> None:
    """Of many runs each has little; why a clip is not there is said."""
    found = read(site.uri, site.rich, tmp_path, most_clip_bytes=most_clip_bytes)
    [wall] = found.walls
    samples = list(wall.columns[-1].samples.values())
    assert len([one for one in samples if one.film]) == shown
    assert all(one.film or one.missing.startswith("left out") for one in samples)


def test_a_clip_that_training_went_back_behind_is_not_the_newest(
    bare: Bare, tmp_path: Path
) -> None:
    """The one before the checkpoint is."""
    client, run_id = MlflowClient(store(tmp_path)), bare("one", {})
    for step in (1, 5):
        path = f"tables/kites/step_{step:08d}-{T0_MS + step}-0123456789ab.json"
        client.log_text(run_id, "{}", path)
    gone_on(run_id, client, after_step=3, at_ms=T0_MS + 1000)
    found = read(store(tmp_path), run_id, tmp_path)
    # Its digest is not that of its content: it is named, and the later one was not asked for.
    assert [one.part for one in found.unread] == [
        f"tables/kites/step_00000001-{T0_MS + 1}-0123456789ab.json"
    ]


def test_samples_whose_account_is_broken_are_named(bare: Bare, tmp_path: Path) -> None:
    """A panel of which no step can be read is not passed over in silence."""
    client, run_id = MlflowClient(store(tmp_path)), bare("one", {})
    client.log_text(run_id, "{}", "panels/kites-0123abcd/step_00000001-1.json")
    found = read(store(tmp_path), run_id, tmp_path)
    [one] = found.unread
    assert one.part == "samples of kites-0123abcd"
    assert "Step 1 is left out" in one.reason


def test_in_short_the_main_metrics_are_left(site: Site, tmp_path: Path) -> None:
    """For a report of many runs, of which one at a time is held whole."""
    short = read(site.uri, site.rich, tmp_path).in_short()
    assert list(short.curves) == ["val/psnr", "train/loss"]
    assert (short.walls, short.media, short.branches) == ((), (), {})
