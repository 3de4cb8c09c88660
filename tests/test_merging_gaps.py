"""What a run says of points that lack ranks: lines for people and the same as JSON, in bounds."""

import json

from opusclip_mlops.merging_gaps import MOST_KEYS, Gaps


def test_nothing_is_said_where_all_is_well() -> None:
    """However keys are merged, as long as it is in one way each."""
    gaps = Gaps()
    gaps.note_reduction(["loss", "acc"], "mean")
    gaps.note_reduction(["loss"], "stats")
    assert gaps.text() == ""


def test_lines_and_json_say_the_same() -> None:
    """How many points, which ranks in the order of their numbers, from which step to which."""
    gaps = Gaps()
    for step, ranks in ((7, [10]), (3, [2, 10]), (9, [10])):
        gaps.note_lack("loss", "mean", step, ranks)
    gaps.note_late("loss")
    for reduce in ("max", "each", "mean"):
        gaps.note_reduction(["acc"], reduce)
    lines, _, rest = gaps.text().partition("\n\n")
    assert lines.splitlines() == [
        "loss (mean): 3 points lack rank 2, 10, steps 3 to 9",
        "loss: 1 values came after their points were merged and are left out",
        "acc is merged by max and by mean: give it one reduce on all ranks",
    ]
    lack = {"points": 3, "first_step": 3, "last_step": 9, "ranks": {"10": 3, "2": 1}}
    assert json.loads(rest) == {
        "lacking": {"loss": {"mean": lack}},
        "late": {"loss": 1},
        "unlike": {"acc": ["max", "mean"]},
    }


def test_keys_and_ranks_without_end_take_little_space() -> None:
    """Past a number of them the others are counted together."""
    gaps = Gaps()
    for number in range(2 * MOST_KEYS):
        gaps.note_lack(f"k{number}", "mean", number, range(1000))
        gaps.note_late(f"k{number}")
        gaps.note_reduction([f"k{number}"], "mean")
    assert len(gaps.lacking) == len(gaps.late) == MOST_KEYS + 1
    assert gaps.lacking["(other keys)"]["mean"].points == gaps.late["(other keys)"] == MOST_KEYS
    assert len(gaps.reductions) == MOST_KEYS
    assert gaps.lacking["k3"]["mean"].ranks["others"] == 900
