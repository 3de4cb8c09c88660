"""The checkpoints of a run as it saves them: the best is known, and what is displaced goes."""

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from opusclip_mlops import checkpoints
from opusclip_mlops.errors import CheckpointError, RecordError
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.keeping import CheckpointKeeper, Saved, scheduler_and_epoch
from opusclip_mlops.metadata import BestValue
from opusclip_mlops.passports import Passport
from opusclip_mlops.records import Checkpoint, CheckpointDropped
from opusclip_mlops.retention import Earlier, Retention
from tests.journeys import make_run

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run's folder."""
    return make_run(tmp_path)


def save(
    keeper: CheckpointKeeper, step: int, metrics: Mapping[str, float] | None = None, **options: Any
) -> Saved:
    """Save a checkpoint and take it for logged."""
    model = torch.nn.Linear(1, 1)
    saved = keeper.save(model, None, None, epoch=0, step=step, metrics=metrics or {}, **options)
    keeper.remember(saved)
    return saved


def is_best(saved: Saved) -> bool:
    """Whether the checkpoint is marked best."""
    [record] = [one for one in saved.records if isinstance(one, Checkpoint)]
    return record.best


def steps_on_disk(folder: RunFolder) -> list[int]:
    """Steps of the checkpoints that have their weights."""
    paths = folder.checkpoints.glob("*/weights.safetensors")
    return sorted(checkpoints.read_metadata(path.parent).step for path in paths)


@pytest.mark.parametrize(
    ("values", "mode", "best"),
    [
        ([0.5, 0.4, 0.4, 0.6, 0.3], "min", [0, 1, 4]),
        ([1.0, NAN, 3.0, 2.0, INF], "max", [0, 2, 4]),
        ([NAN, INF, 0.5], "min", [2]),
        ([-INF, -5.0], "max", [1]),
    ],
)
def test_the_best_is_what_beats_all_before(
    folder: RunFolder, values: list[float], mode: str, best: list[int]
) -> None:
    """Equal values, NaN and the worst infinity are not the best."""
    keeper = CheckpointKeeper(folder)
    saved = [
        save(keeper, step, {"x": value}, monitor="x", mode=mode)
        for step, value in enumerate(values)
    ]
    assert [step for step, one in enumerate(saved) if is_best(one)] == best


FEW, MANY = (
    {"x": Passport(metric="x", version="1", count=count, unit="frames")} for count in (10, 99)
)


def test_values_that_were_not_measured_alike_are_not_ranked(folder: RunFolder) -> None:
    """The checkpoint is saved and warned of with what differs, not marked best."""
    keeper = CheckpointKeeper(folder)
    assert is_best(save(keeper, 1, {"x": 5.0}, monitor="x", passports=FEW))
    said = "x of epoch_0000-step_000002 and of .*not ranked: count: 10 and 99;"
    with pytest.warns(UserWarning, match=said) as warned:
        unlike = save(keeper, 2, {"x": 4.0}, monitor="x", passports=MANY)
    assert warned[0].filename == __file__
    assert not is_best(unlike)
    assert checkpoints.read_metadata(folder.checkpoints / unlike.name).passports == {
        "x": MANY["x"].to_dict()
    }
    assert is_best(save(keeper, 3, {"x": 4.5}, monitor="x", passports=FEW))


def test_unlike_values_are_ranked_where_it_is_allowed(folder: RunFolder) -> None:
    """That holds for this value only: what comes after is held against how it was measured."""
    keeper = CheckpointKeeper(folder)
    options = {"monitor": "x", "allow_unlike": True}
    save(keeper, 3, {"x": 4.5}, monitor="x", passports=FEW)
    assert not is_best(save(keeper, 4, {"x": 9.0}, passports=MANY, **options))
    assert is_best(save(keeper, 5, {"x": 4.0}, passports=MANY, **options))
    for again in (keeper, CheckpointKeeper(folder)):
        with pytest.warns(UserWarning, match="count: 99 and 10"):
            assert not is_best(save(again, 6, {"x": 1.0}, monitor="x", passports=FEW))
    assert is_best(save(keeper, 7, {"x": 3.5}, monitor="x", passports=MANY))


def test_a_value_without_a_passport_is_not_ranked_with_one_that_has_one(folder: RunFolder) -> None:
    """Neither way round, as at a gate."""
    first, second = CheckpointKeeper(folder), CheckpointKeeper(make_run(folder.path / "another"))
    save(first, 1, {"x": 5.0}, monitor="x", passports=FEW)
    save(second, 1, {"x": 5.0}, monitor="x")
    for keeper, passports in ((first, {}), (second, FEW)):
        with pytest.warns(UserWarning, match="passport: one has none"):
            assert not is_best(save(keeper, 2, {"x": 1.0}, monitor="x", passports=passports))


def test_where_the_best_is_not_here_its_passport_s_digest_is_said(folder: RunFolder) -> None:
    """All that an earlier part of the run has left of how it was measured."""
    name, digest = checkpoints.checkpoint_name(0, 10), FEW["x"].digest
    Earlier(names=(name,), best={"x": BestValue(name, 0.2, "min", digest)}).write(folder)
    keeper = CheckpointKeeper(folder, goes_on=True)
    with pytest.warns(UserWarning, match=f"passports {digest} and {MANY['x'].digest}"):
        assert not is_best(save(keeper, 20, {"x": 0.1}, monitor="x", passports=MANY))


def test_the_passport_of_the_best_outlives_the_process(folder: RunFolder) -> None:
    """A part of the run that goes on ranks as the one before did."""
    passport = Passport(metric="x", version="1", count=10, unit="frames")
    first = CheckpointKeeper(folder)
    save(first, 1, {"x": 5.0}, monitor="x", passports={"x": passport})
    after = CheckpointKeeper(folder)
    other = replace(passport, count=11)
    with pytest.warns(UserWarning, match="not ranked"):
        assert not is_best(save(after, 2, {"x": 1.0}, monitor="x", passports={"x": other}))


def test_a_checkpoint_knows_the_best_so_far_and_its_parent(folder: RunFolder) -> None:
    """Its metadata names the best value of each metric, and the checkpoint before it."""
    keeper = CheckpointKeeper(folder)
    first = save(keeper, 1, {"val/loss": 0.5})
    second = save(keeper, 2, {"val/loss": 0.7, "psnr": 20.0}, monitor="psnr", mode="max")
    about = checkpoints.read_metadata(folder.checkpoints / second.name)
    assert about.parent == first.name
    assert about.best == {
        "val/loss": BestValue(first.name, 0.5),
        "psnr": BestValue(second.name, 20.0, "max"),
    }


def test_what_was_not_logged_is_not_the_best(folder: RunFolder) -> None:
    """A checkpoint counts once it is remembered."""
    keeper = CheckpointKeeper(folder)
    options = {"epoch": 0, "metrics": {"val/loss": 0.1}}
    keeper.save(torch.nn.Linear(1, 1), None, None, step=1, **options)
    assert is_best(save(keeper, 2, {"val/loss": 0.2}))


def test_only_what_a_rule_names_stays_on_the_disk(folder: RunFolder) -> None:
    """The newest two, the best, and every fiftieth step; the others' metadata is all that stays."""
    keeper = CheckpointKeeper(folder)
    keeper.retention = Retention(last=2, best=("psnr", "max"), every=50)
    values = {0: 1.0, 10: 9.0, 20: 3.0, 30: 2.0, 50: 4.0, 60: 5.0, 70: 6.0}
    saved = [save(keeper, step, {"psnr": value}) for step, value in values.items()]
    assert steps_on_disk(folder) == [0, 10, 50, 60, 70]
    dropped = [name for one in saved for name in one.dropped]
    assert dropped == ["epoch_0000-step_000020", "epoch_0000-step_000030"]
    for name in dropped:
        with pytest.raises(CheckpointError, match="was dropped"):
            checkpoints.verify(folder.checkpoints / name)
        assert checkpoints.seal(folder.checkpoints / name).name == name


def test_the_best_goes_when_a_better_one_is_there(folder: RunFolder) -> None:
    """A best that was beaten is as any other."""
    keeper = CheckpointKeeper(folder)
    keeper.retention = Retention(best=("loss", "min"))
    for step, loss in enumerate([0.3, 0.5, 0.2, 0.4, 0.4]):
        save(keeper, step, {"loss": loss})
    assert steps_on_disk(folder) == [2, 4]


def test_without_a_rule_everything_stays(folder: RunFolder) -> None:
    """Nothing is dropped that nobody asked to drop."""
    keeper = CheckpointKeeper(folder)
    for step in range(5):
        assert save(keeper, step).dropped == []
    assert steps_on_disk(folder) == [0, 1, 2, 3, 4]


def test_the_name_of_what_was_dropped_is_not_used_again(folder: RunFolder) -> None:
    """What removes it in MLflow later must not meet another checkpoint of its name."""
    keeper = CheckpointKeeper(folder)
    keeper.retention = Retention()
    names = [save(keeper, 7).name for _ in range(3)]
    assert names == [f"epoch_0000-step_000007{end}" for end in ("", "-2", "-3")]


def test_one_that_was_killed_midway_is_finished(folder: RunFolder) -> None:
    """Dropping again, or what is half gone, or not there at all, does no harm."""
    keeper = CheckpointKeeper(folder)
    path = folder.checkpoints / save(keeper, 1).name
    (path / "weights.safetensors").unlink()
    for _ in range(2):
        checkpoints.drop(path)
    checkpoints.drop(folder.checkpoints / "never-there")
    assert [one.name for one in path.iterdir()] == ["metadata.json"]
    assert checkpoints.is_dropped(folder.checkpoints / "never-there")


def test_a_part_that_goes_on_knows_what_the_earlier_ones_left(folder: RunFolder) -> None:
    """Their best, their names and their number count, here and in MLflow, without being asked."""
    first = CheckpointKeeper(folder)
    local = save(first, 30, {"val/loss": 0.4})
    names = tuple(checkpoints.checkpoint_name(0, step) for step in (10, 20))
    best = {"val/loss": BestValue(names[0], 0.2)}
    Earlier(names=names, marked=names[0], best=best).write(folder)
    keeper = CheckpointKeeper(folder, goes_on=True)
    keeper.retention = Retention(last=2)
    saved = save(keeper, 20, {"val/loss": 0.3})
    assert saved.name.startswith(f"{names[1]}-")
    assert not is_best(saved)
    assert saved.dropped == [names[1]]
    assert save(keeper, 40, {"val/loss": 0.1}).dropped == [names[0], local.name]
    assert save(keeper, 50).dropped == [saved.name]


def test_a_marked_best_that_could_not_be_read_is_never_dropped(folder: RunFolder) -> None:
    """How good it is nobody knows: it stays beside whatever is the best by now."""
    names = tuple(checkpoints.checkpoint_name(0, step) for step in (10, 20))
    Earlier(names=names, marked=names[0], is_known=False).write(folder)
    keeper = CheckpointKeeper(folder, goes_on=True)
    keeper.retention = Retention()
    saved = save(keeper, 30, {"val/loss": 0.9})
    assert saved.dropped == [names[1]]
    assert save(keeper, 40, {"val/loss": 0.1}).dropped == [saved.name]


def test_what_stands_in_mlflow_is_not_waited_for(folder: RunFolder) -> None:
    """Until it is known no name can be one of theirs and none of them goes; then they count."""
    keeper = CheckpointKeeper(folder, session="s", goes_on=True)
    keeper.retention = Retention()
    unknown = [save(keeper, step, {"val/loss": 0.3}) for step in (20, 20, 30)]
    names = tuple(checkpoints.checkpoint_name(0, step) for step in (10, 20))
    assert not {one.name for one in unknown} & set(names)
    assert [checkpoints.place_of(one.name)[:2] for one in unknown] == [(20, 0), (20, 0), (30, 0)]  # type: ignore[index]
    assert [one.dropped for one in unknown] == [[], [], [unknown[1].name]]
    Earlier(names=names, marked=names[0], best={"val/loss": BestValue(names[0], 0.2)}).write(folder)
    later = save(keeper, 40, {"val/loss": 0.25})
    assert not is_best(later)
    assert later.dropped == [names[1], unknown[0].name, unknown[2].name]


def test_a_name_with_the_moment_sorts_behind_all_others_of_its_step(folder: RunFolder) -> None:
    """The newest of a step is the one with the highest number, whoever saved it."""
    plain = save(CheckpointKeeper(folder), 5).name
    again = save(CheckpointKeeper(folder), 5).name
    later = [save(CheckpointKeeper(folder, session=s, goes_on=True), 5).name for s in "ba"]
    places = [checkpoints.place_of(name) for name in (plain, again, *later)]
    assert places == sorted(places, key=lambda place: place or ())
    assert len({*places}) == 4


def test_a_run_that_was_only_just_made_elsewhere_has_plain_names(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing stands there; of processes that train together only the first can rely on that."""
    Earlier().write(folder)
    assert save(CheckpointKeeper(folder, goes_on=True), 5).name == "epoch_0000-step_000005"
    monkeypatch.setenv("RANK", "1")
    assert save(CheckpointKeeper(folder, goes_on=True), 6).name != "epoch_0000-step_000006"
    assert save(CheckpointKeeper(folder), 7).name == "epoch_0000-step_000007"


def test_two_that_save_at_once_take_no_name_from_each_other(folder: RunFolder) -> None:
    """Each of many keepers of one folder has checkpoints of its own, whole."""
    start = threading.Barrier(8)

    def save_some(number: int) -> list[str]:
        keeper = CheckpointKeeper(folder, session=str(number), goes_on=number % 4 == 0)
        start.wait()
        return [save(keeper, step).name for step in (1, 1, 2)]

    with ThreadPoolExecutor(8) as pool:
        names = [name for some in pool.map(save_some, range(8)) for name in some]
    assert len({*names}) == 24
    for name in names:
        checkpoints.seal(folder.checkpoints / name)
        assert checkpoints.verify(folder.checkpoints / name).name == name
    assert not list(folder.checkpoints.glob(".*"))


def test_what_could_not_be_written_leaves_its_name(folder: RunFolder) -> None:
    """The next attempt has it; a disk that takes no folder is told in one line."""
    keeper = CheckpointKeeper(folder)
    with pytest.raises(CheckpointError, match="JSON cannot hold"):
        save(keeper, 1, config={"x": object()})
    assert save(keeper, 1).name == "epoch_0000-step_000001"
    (folder.path / "elsewhere").touch()
    gone = CheckpointKeeper(RunFolder(folder.path / "elsewhere"))
    with pytest.raises(CheckpointError, match="checkpoints: Not a directory"):
        save(gone, 1)


def test_what_training_has_gone_back_behind_goes_first(folder: RunFolder) -> None:
    """It does not count among the newest; the one that is gone on from does, and the best stays."""
    first = CheckpointKeeper(folder)
    here = save(first, 9, {"val/loss": 0.6}).name
    names = tuple(checkpoints.checkpoint_name(0, step) for step in (3, 5, 7, 8))
    best = {"val/loss": BestValue(names[2], 0.1)}
    Earlier(names=names, marked=names[2], best=best).write(folder)
    keeper = CheckpointKeeper(folder, goes_on=True)
    keeper.retention = Retention(last=2)
    about = checkpoints.CheckpointMetadata(name=names[1], step=5, epoch=0)
    since_ms = about.created_ms + 1
    keeper.go_on_from(about, since_ms=since_ms)
    sixth = save(keeper, 6, {"val/loss": 0.5}, created_ms=since_ms)
    assert sixth.dropped == [names[3], here, names[0]]
    seventh = save(keeper, 7, {"val/loss": 0.4}, created_ms=since_ms)
    assert seventh.dropped == [names[1]]
    assert save(keeper, 8, {"val/loss": 0.4}, created_ms=since_ms).dropped == [sixth.name]


def test_going_on_from_a_checkpoint_takes_its_best_and_its_name(folder: RunFolder) -> None:
    """It is the parent of the next, and what it knows is not best again."""
    keeper = CheckpointKeeper(folder)
    best = {"val/loss": BestValue("c", 0.2)}
    keeper.go_on_from(checkpoints.CheckpointMetadata(name="c", step=1, epoch=0, best=best))
    saved = save(keeper, 2, {"val/loss": 0.3})
    assert not is_best(saved)
    assert checkpoints.read_metadata(folder.checkpoints / saved.name).parent == "c"


def test_rubbish_among_the_checkpoints_is_left_alone(folder: RunFolder) -> None:
    """A folder that is no checkpoint is neither counted nor removed."""
    (folder.checkpoints / "mine").mkdir()
    (folder.checkpoints / "mine" / "metadata.json").write_text("{")
    keeper = CheckpointKeeper(folder)
    keeper.retention = Retention()
    save(keeper, 1)
    assert save(keeper, 2).records[1:] == (CheckpointDropped("epoch_0000-step_000001"),)
    assert (folder.checkpoints / "mine" / "metadata.json").exists()


def test_wrong_use_is_said_before_anything_is_written(folder: RunFolder) -> None:
    """An unknown monitor or mode, two metrics for one best, no model: nothing is saved."""
    keeper = CheckpointKeeper(folder)
    for options in ({"monitor": "b"}, {"mode": "low"}, {"mode": None}):
        with pytest.raises(RecordError, match=r"monitor|mode"):
            save(keeper, 1, {"a": 1.0}, **options)
    keeper.retention = Retention(best=("psnr", "max"))
    with pytest.raises(RecordError, match="monitor is 'a', and keep_checkpoints names 'psnr'"):
        save(keeper, 1, {"a": 1.0}, monitor="a")
    with pytest.raises(TypeError, match="Module"):
        keeper.save(3, None, None, epoch=0, step=0, metrics={})  # type: ignore[arg-type]
    assert list(folder.checkpoints.iterdir()) == []
    assert not is_best(save(keeper, 1, {"a": 1.0}))


def test_the_third_argument_is_a_scheduler_or_an_epoch() -> None:
    """Both shapes of the call are told apart."""
    optimizer = torch.optim.SGD([torch.zeros(1)])
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    assert scheduler_and_epoch(3, None) == (None, 3)
    assert scheduler_and_epoch(3, 4) == (None, 4)
    assert scheduler_and_epoch(scheduler, 4) == (scheduler, 4)
    for rubbish in ("x", True, 1.5):
        with pytest.raises(TypeError, match="a scheduler or an epoch"):
            scheduler_and_epoch(rubbish, None)
