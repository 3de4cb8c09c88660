"""Points that wait for ranks: in their order, in known space, and the same after writing down."""

from opusclip_mlops.open_points import OpenPoints, Together, bits_of, ranks_of
from tests.test_rank_merging import said

HERE = Together(0, 3, "mean", 5)


def test_values_of_a_rank_go_to_the_first_point_that_lacks_it() -> None:
    """Another value of the same rank begins the next point of the key."""
    points = OpenPoints()
    for rank, value in ((0, 1.0), (2, 3.0), (0, 10.0)):
        points.put(said(rank, 5, of=3, values={"loss": value}, timestamp_ms=rank), HERE, "loss")
    assert points.count == 2
    first = points.pop(HERE, "loss")
    assert (ranks_of(first.present), list(first.values), first.timestamp_ms) == (
        [0, 2],
        [1, 0, 3],
        2,
    )
    second = points.pop(HERE, "loss")
    assert (ranks_of(second.present), second.values[0]) == ([0], 10.0)
    assert (points.count, points.size_bytes, points.groups) == (0, 0, {})


def test_what_is_written_down_comes_back_in_its_order() -> None:
    """Steps, keys and the later points of a key."""
    points = OpenPoints()
    for step, key, rank in ((9, "b", 0), (2, "a", 1), (9, "a", 2), (9, "b", 0), (9, "b", 1)):
        together = Together(1, 3, "mean", step)
        points.put(said(rank, step, of=3, values={key: 0.1 * rank}), together, key)
    again = OpenPoints()
    for kept in points.kept():
        again.take_back(kept)
    assert list(again.kept()) == list(points.kept())
    assert [one.at for one in again.groups] == [9, 2]
    assert (again.count, again.size_bytes) == (points.count, points.size_bytes) == (4, 4 * 324)


def test_bits_of_ranks() -> None:
    """Of any number of them."""
    for ranks in ([], [0], [1, 63, 64, 4095]):
        assert ranks_of(bits_of(ranks)) == ranks
