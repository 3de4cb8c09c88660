"""How far a key was read: marks, tails, and whose turn it is."""

import json
import math

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from opusclip_mlops.watermarks import Mark, Rows, Tail, next_in_round, rows_of

_VALUES = st.sampled_from([0.0, -1.5, math.nan, math.inf, 0.1 + 0.2])
_ROWS = st.lists(st.tuples(st.integers(0, 9), st.integers(-2, 2), _VALUES), unique_by=repr)


def rows(*points: tuple[int, int, float]) -> Rows:
    """Rows of (timestamp_ms, step, value), as they are given."""
    times_ms, steps, values = zip(*points, strict=True) if points else ((), (), ())
    return rows_of(times_ms, steps, values)


def test_a_mark_is_at_the_last_row_it_was_moved_behind() -> None:
    """NaN too; and at no other."""
    some = rows((1, 1, 0.5), (2, 2, math.nan))
    mark = Mark().moved(some)
    assert mark.count == 2
    assert [mark.is_at(row) for row in some] == [False, True]
    assert mark.moved(rows()) == mark


def test_a_mark_is_the_same_after_it_was_written_as_json() -> None:
    """Values are texts: JSON has no NaN, and no float is rounded."""
    for value in (math.nan, math.inf, 0.1 + 0.2, 5e-324):
        mark = Mark().moved(rows((2**42, -3, value)))
        kept = json.loads(json.dumps(msgspec.to_builtins(mark), allow_nan=False))
        assert msgspec.convert(kept, Mark) == mark


@given(every=_ROWS, known_count=st.integers(0, 20), tail_count=st.integers(1, 20), data=st.data())
def test_a_tail_tells_new_rows_from_known_ones(
    every: list[tuple[int, int, float]], known_count: int, tail_count: int, data: st.DataObject
) -> None:
    """Wherever among them they came in, behind its beginning."""
    known, new = every[:known_count], every[known_count:]
    tail = Tail(Mark(), rows()).then(Mark().moved(rows(*known)), rows(*known), tail_count)
    before = len(known) - len(tail.rows)
    behind = data.draw(st.permutations(known[before + (before > 0) :] + new))
    found = tail.unknown(rows(*behind))
    assert found is not None
    assert sorted(map(repr, found.tolist())) == sorted(map(repr, rows(*new).tolist()))
    assert tail.begin.count == before + (before > 0)
    assert before == 0 or tail.begin.is_at(tail.rows[0])


def test_a_known_row_that_is_missing_is_noticed() -> None:
    """Then nothing can be told about the others."""
    known = rows((1, 1, 1.0), (2, 2, 2.0))
    tail = Tail(Mark().moved(known), known)
    assert tail.unknown(rows((2, 2, 2.0), (3, 3, 3.0))) is None


def test_every_key_has_its_turn_once_in_64_calls() -> None:
    """However many there are; a few in each call."""
    for count in (1, 3, 64, 65, 1_000):
        keys = {f"key {at}" for at in range(count)}
        last, seen = "", []
        for _ in range(64):
            turn = next_in_round(keys, last)
            assert len(turn) == math.ceil(count / 64)
            last = turn[-1]
            seen += turn
        assert set(seen) == keys


def test_keys_that_come_and_go_do_not_stop_the_round() -> None:
    """It goes on behind the last name, there or not."""
    assert next_in_round({"a", "b", "c"}, "b") == ["c"]
    assert next_in_round({"a", "c"}, "b") == ["c"]
    assert next_in_round({"a", "b"}, "z") == ["a"]
    assert next_in_round(set(), "a") == []


def test_every_nan_is_the_same_row() -> None:
    """Whatever bits it came with: rows are compared by their bytes."""
    odd = np.array([0x7FF8_0000_0000_0001, 0xFFF8_0000_0000_0000], dtype=np.uint64).view(np.float64)
    first, second = rows_of([1, 1], [1, 1], odd)
    assert first.tobytes() == second.tobytes()
