"""Facts about `opusclip_mlops.selection`: which points are logged, and that the others count."""

import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from opusclip_mlops.accounting import Account, totals
from opusclip_mlops.selection import ASK_EVERY_MS, Selection

NOW_MS = 1_700_000_000_000
LOSS, MEDIUM, LOW = "train/loss", "video/psnr", "system/cpu"


class Level:
    """A level of shedding that can be set, and how often it was asked for."""

    def __init__(self, level: int = 0) -> None:
        self.level = level
        self.asked = 0

    def __call__(self) -> int:
        """The level now."""
        self.asked += 1
        return self.level


class LeftOut:
    """Counts what is left out, in memory."""

    def __init__(self) -> None:
        self.points: Counter[tuple[str, str]] = Counter()

    def count(self, kind: str, keys: Sequence[str]) -> None:
        """Count one point of each key."""
        self.points.update((kind, key) for key in keys)


def selection(
    *,
    priorities: dict[str, str] | None = None,
    level: Level | None = None,
    left_out: LeftOut | None = None,
    **intervals: int,
) -> Selection:
    return Selection(
        priorities=priorities or {},
        intervals=intervals,
        level=level or Level(),
        account=left_out or LeftOut(),
    )


def steps_kept(one: Selection, key: str, steps: Sequence[int]) -> list[int]:
    """The steps, of those logged one after the other, at which a key's point is kept."""
    return [step for step in steps if one.kept({key: 1.0}, step=step, timestamp_ms=NOW_MS)]


# Priorities


@pytest.mark.parametrize(
    ("priority", "keys"),
    [
        ("high", ["loss", "train/loss", "val_loss", "Loss/total", "loss/step", "perceptual_loss"]),
        ("high", ["val/psnr", "video/val/fvd", "val_acc", "train/val_acc", "validation/ssim"]),
        ("high", ["eval/clip_score", "model/eval/x", "cross_validation/1"]),
        ("high", ["lr", "optim/lr", "LR", "lr/group-0", "lr-Adam", "lr_1", "opt/lr-Adam/pg1"]),
        ("high", ["learning_rate", "train/learning_rate", "Learning Rate", "learning-rate"]),
        ("low", ["system/cpu", "performance/gpu/0/memory", "profiling/timings/loss", "system/lr"]),
        ("medium", ["train/accuracy", "video/psnr", "grad_norm", "lrx", "color", "value", "vals"]),
        ("medium", ["my/system/cpu", "systems", "interval/x", "evaluate", "training/epoch"]),
    ],
)
def test_priorities_without_settings(priority: str, keys: list[str]) -> None:
    """Losses, validation and learning rate are high, what is measured of the machine low."""
    one = selection()
    assert {key: one.priority_of(key) for key in keys} == dict.fromkeys(keys, priority)


def test_the_users_patterns_go_first_and_in_their_order() -> None:
    """The first pattern that fits decides, before those that are built in; case counts."""
    one = selection(
        priorities={"system/gpu*": "high", "system/*": "medium", "*loss*": "low", "aux?": "low"}
    )
    expected = {
        "system/gpu/0": "high",
        "system/cpu": "medium",
        "train/loss": "low",
        "Loss": "high",
        "aux1": "low",
        "aux12": "medium",
        "performance/x": "low",
    }
    assert {key: one.priority_of(key) for key in expected} == expected


# Intervals


def test_by_default_everything_is_kept() -> None:
    """The same dict comes back, at any step, and nothing is counted."""
    left_out = LeftOut()
    one = selection(left_out=left_out)
    for step in (0, 1, 1, 5, 3, -2, 2**60):
        values = {LOSS: 1.0, MEDIUM: 2.0, LOW: float("nan")}
        assert one.kept(values, step=step, timestamp_ms=NOW_MS + step % 7) is values
    assert not left_out.points


def test_an_interval_thins_a_priority() -> None:
    """A key's first point is kept and the next one when as many steps have gone by."""
    one = selection(medium=10, low=25)
    steps = range(3, 60)
    assert steps_kept(one, MEDIUM, steps) == [3, 13, 23, 33, 43, 53]
    assert steps_kept(one, LOW, steps) == [3, 28, 53]
    assert steps_kept(one, LOSS, steps) == list(steps)


def test_an_interval_counts_from_the_last_point_kept() -> None:
    """Where steps are logged unevenly, none is waited for that never comes."""
    assert steps_kept(selection(medium=10), MEDIUM, [0, 7, 14, 21, 23, 24, 90, 99, 100]) == [
        *(0, 14, 24, 90, 100)
    ]


def test_a_step_that_goes_back_is_kept() -> None:
    """Training that starts again from a checkpoint is logged from its first step on."""
    assert steps_kept(selection(medium=10), MEDIUM, [95, 100, 105, 50, 55, 60, 60]) == [
        *(95, 105, 50, 60)
    ]


def test_keys_have_intervals_of_their_own() -> None:
    """One call's values are looked at one by one, and keep their order."""
    left_out = LeftOut()
    one = selection(left_out=left_out, high=2, medium=3)
    kept = [
        list(one.kept({MEDIUM: 1.0, LOW: 2.0, LOSS: 3.0}, step=step, timestamp_ms=NOW_MS))
        for step in range(7)
    ]
    everything, low = [MEDIUM, LOW, LOSS], [LOW]
    assert kept == [everything, low, [LOW, LOSS], [MEDIUM, LOW], [LOW, LOSS], low, everything]
    assert left_out.points == {("skipped", MEDIUM): 4, ("skipped", LOSS): 3}


def test_what_is_kept_has_its_values() -> None:
    """Leaving out changes neither the other values nor the dict that was given."""
    one = selection(low=10)
    one.kept({LOW: 0.0}, step=0, timestamp_ms=NOW_MS)
    values = {LOW: 1.0, LOSS: 0.25, MEDIUM: 0.5}
    assert one.kept(values, step=1, timestamp_ms=NOW_MS) == {LOSS: 0.25, MEDIUM: 0.5}
    assert values == {LOW: 1.0, LOSS: 0.25, MEDIUM: 0.5}


def test_keys_without_end_are_not_all_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past a number of keys each begins anew: more is kept, memory is not."""
    monkeypatch.setattr("opusclip_mlops.selection._MAX_KEYS", 10)
    left_out = LeftOut()
    one = selection(left_out=left_out, medium=10)
    for number in range(1000):
        one.kept({f"key/{number}": 1.0}, step=number, timestamp_ms=NOW_MS)
    assert len(one._kept_steps) <= 10
    assert one._rule_of.cache_info().currsize <= 10
    assert not left_out.points


# The quota


@pytest.mark.parametrize(
    ("level", "kept"), [(0, [LOSS, MEDIUM, LOW]), (1, [LOSS, MEDIUM]), (2, [LOSS])]
)
def test_low_is_shed_first_and_high_never(level: int, kept: list[str]) -> None:
    """The level says how far it goes; each point that goes is counted."""
    left_out = LeftOut()
    one = selection(level=Level(level), left_out=left_out)
    values = {LOSS: 1.0, MEDIUM: 2.0, LOW: 3.0}
    for step in range(5):
        assert list(one.kept(values, step=step, timestamp_ms=NOW_MS)) == kept
    assert left_out.points == {("shed", key): 5 for key in values if key not in kept}
    assert not one._kept_steps


def test_sums_are_left_out_by_the_backlog_only() -> None:
    """Not by an interval: a sum that is left out would make all of them wrong."""
    level, left_out = Level(), LeftOut()
    one = selection(level=level, left_out=left_out, low=100)
    for _ in range(3):
        values = {LOSS: 1.0, LOW: 2.0}
        assert one.kept_sums(values) is values
    assert not left_out.points
    level.level = 1
    assert one.kept_sums({LOSS: 1.0, LOW: 2.0}) == {LOSS: 1.0}
    assert left_out.points == {("shed", LOW): 1}


def test_shedding_does_not_move_the_interval() -> None:
    """What was shed was not kept: once there is room again, the next point is due at once."""
    level, left_out = Level(), LeftOut()
    one = selection(level=level, left_out=left_out, low=10)
    kept = []
    for step in range(40):
        level.level = 1 if 8 < step < 23 else 0
        kept += [step] if one.kept({LOW: 1.0}, step=step, timestamp_ms=NOW_MS + 1000 * step) else []
    assert kept == [0, 23, 33]
    assert left_out.points == {("skipped", LOW): 24, ("shed", LOW): 13}


def test_the_level_is_asked_for_once_a_second() -> None:
    """Calls within a second ask once, whether points are shed or not."""
    for at_first in (0, 1):
        level = Level(at_first)
        one = selection(level=level)
        for passed_ms in range(0, 10 * ASK_EVERY_MS, 10):
            one.kept({LOW: 1.0}, step=1, timestamp_ms=NOW_MS + passed_ms)
        assert level.asked == 10


def test_a_new_level_holds_within_a_second() -> None:
    """Both ways: shedding begins and ends at the first call a second later."""
    level = Level()
    one = selection(level=level)
    found = []
    for passed_ms in (0, 999, 1000, 1999, 2000, 2500, 3000):
        found.append(bool(one.kept({LOW: 1.0}, step=1, timestamp_ms=NOW_MS + passed_ms)))
        level.level = 0 if passed_ms >= 1999 else 1
    assert found == [True, True, False, False, True, True, True]


@pytest.mark.parametrize("jump_ms", [-1000, -10_000, -NOW_MS, 1000, 10**12])
def test_a_clock_that_is_set_changes_nothing(jump_ms: int) -> None:
    """After a jump of the clock a level is learnt at once, and then once a second again."""
    level = Level()
    one = selection(level=level)
    one.kept({LOW: 1.0}, step=1, timestamp_ms=NOW_MS)
    level.level = 1
    for passed_ms in range(0, 3000, 10):
        assert not one.kept({LOW: 1.0}, step=1, timestamp_ms=NOW_MS + jump_ms + passed_ms)
    assert level.asked == 1 + 3


def test_calls_out_of_order_ask_no_more_often() -> None:
    """Threads take the time and come a little later: a step back of less than a second is none."""
    level = Level()
    one = selection(level=level)
    for passed_ms in (0, -1, -999, 999, 500, 1000, 999, 1001, 1, 1999):
        one.kept({LOW: 1.0}, step=1, timestamp_ms=NOW_MS + passed_ms)
    assert level.asked == 2


# Together with the account


def test_threads_leave_out_exactly_what_is_counted(tmp_path: Path) -> None:
    """Kept and left out make up what was logged, key by key, however many threads log."""
    level = Level()
    account = Account(tmp_path, "s1")
    one = Selection(priorities={}, intervals={"medium": 3, "low": 7}, level=level, account=account)
    kept: list[Counter[str]] = [Counter() for _ in range(6)]

    def log(number: int) -> None:
        for step in range(500):
            level.level = step // 100 % 3
            values = {LOSS: 1.0, MEDIUM: 2.0, LOW: 3.0, f"own/{number}": 4.0}
            kept[number].update([*one.kept(values, step=step, timestamp_ms=NOW_MS + 100 * step)])

    threads = [threading.Thread(target=log, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = totals(tmp_path)
    sums = sum(kept, Counter[str]()) + Counter(found.skipped) + Counter(found.shed)
    assert sums == {LOSS: 3000, MEDIUM: 3000, LOW: 3000, **{f"own/{n}": 500 for n in range(6)}}
    assert LOSS not in found.skipped
    assert LOSS not in found.shed
    assert found.shed[LOW] > 0
    assert found.skipped[MEDIUM] > 0
