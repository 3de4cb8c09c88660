import io
import math
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from tensorboard.compat.proto.event_pb2 import Event

from opusclip_mlops import events, insight_events
from opusclip_mlops.event_files import frame
from opusclip_mlops.event_log import EventLog, in_order, read_log, write_in_order
from opusclip_mlops.points import Point, Points
from opusclip_mlops.records import Image, Metrics, RunEnded, Text
from tests import insight_records
from tests.sinks.sink_contract import T0_MS

END = events.end_event(RunEnded("s", "FINISHED", T0_MS))


def written(folder: Path, *files: Sequence[Event]) -> list[Path]:
    """Event files that hold these events."""
    paths = []
    for number, contents in enumerate(files):
        path = folder / f"events.out.tfevents.{number}"
        path.write_bytes(b"".join(frame(one.SerializeToString()) for one in contents))
        paths.append(path)
    return paths


def call(step: int, *, at_ms: int = 0, **values: float) -> Event:
    """A log call."""
    return events.scalars(Metrics(T0_MS + at_ms, step, values))


def sorted_again(log: EventLog, folder: Path, *, end: Event | None = None) -> EventLog:
    """What is read of the file that a log was written to in order."""
    file = io.BytesIO()
    write_in_order(log, file, hparams=None, end=end)
    (folder / "sorted").write_bytes(file.getvalue())
    return read_log([folder / "sorted"])


def test_points_come_back_in_the_order_they_stand_in(tmp_path: Path) -> None:
    """Over all files, with how many events hold one."""
    log = read_log(written(tmp_path, [call(5, a=1.0, b=2.0)], [call(3, at_ms=1, a=3.0)]))
    rows = log.points.rows
    assert [log.points.keys[key] for key in rows["key"]] == ["a", "b", "a"]
    assert rows["step"].tolist() == [5, 5, 3]
    assert rows["timestamp_ms"].tolist() == [T0_MS, T0_MS, T0_MS + 1]
    assert rows["value"].tolist() == [1.0, 2.0, 3.0]
    assert log.point_events == 2


def test_without_points_all_else_is_read(tmp_path: Path) -> None:
    """Going on with a run needs its words, not its history."""
    words = events.words("params", "one", timestamp_ms=T0_MS)
    later = events.words("params", "two", timestamp_ms=T0_MS)
    paths = written(tmp_path, [words, call(1, a=1.0), later, END])
    log = read_log(paths, with_points=False)
    assert (len(log.points), log.words, log.end) == (0, {"params": "two"}, "FINISHED")


def test_damage_is_counted(tmp_path: Path) -> None:
    """And keeps a log from standing in order: one of TensorBoard's loaders stops there."""
    [path] = written(tmp_path, [call(1, a=1.0), call(2, a=1.0)])
    assert read_log([path]).is_in_order()
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    log = read_log([path])
    assert (log.damaged, len(log.points), log.is_in_order()) == (1, 1, False)


def text(step: int, content: str = "t", at_ms: int = 0, key: str = "k") -> Event:
    return events.text(Text(T0_MS + at_ms, step, key, content))


def test_what_stands_out_of_order(tmp_path: Path) -> None:
    """A step below, a time below at the same step, a value below at the same time; of one key."""

    def stands(*contents: Event) -> bool:
        return read_log(written(tmp_path, contents)).is_in_order()

    nan = math.nan
    assert stands(call(1, a=1.0), call(2, a=1.0), call(1, b=1.0), call(2, at_ms=1, a=0.0))
    assert stands(call(1, a=nan), call(1, a=-9.0), call(1, a=1.0), call(1, a=1.0))
    assert not stands(call(2, a=1.0), call(1, at_ms=1, a=1.0))
    assert not stands(call(1, at_ms=1, a=1.0), call(1, a=1.0))
    assert not stands(call(1, a=1.0), call(1, a=0.5))
    assert not stands(call(1, a=1.0), call(1, a=nan))
    assert stands(text(1), text(2), text(1, key="other"))
    assert not stands(text(2), text(1))
    assert not stands(text(2), events.words("k", "w", timestamp_ms=T0_MS))
    assert not stands(END, END)


def test_sorted_all_is_kept_that_is_still_true(tmp_path: Path) -> None:
    """Media and unknown events by step, the last words, one start and the end that is given."""
    strange = Event(wall_time=1.0, step=4)
    strange.summary.value.add(tag="histogram").tensor.dtype = 1
    graph = Event(wall_time=1.0, graph_def=b"graph")
    picture = events.picture(Image(T0_MS, 9, "p", "p"), b"GIF89a" + b"\1\0\1\0")
    first, last = (events.words("tags", one, timestamp_ms=T0_MS) for one in ("one", "two"))
    start = events.hparams({"lr": "1"}, "m", T0_MS)
    log = read_log(
        written(
            tmp_path,
            [events.first_event(T0_MS), first, text(7), picture, call(3, a=1.0), strange, END],
            [last, text(2), start, start, graph, call(1, a=1.0)],
        )
    )
    again = sorted_again(log, tmp_path, end=END)
    assert again.is_in_order()
    assert again.words == {"tags": "two"}
    assert (again.end, again.hparams) == ("FINISHED", {"lr"})
    kinds = [one.kind for one in again.kept]
    assert (kinds.count("end"), kinds.count("words")) == (1, 1)
    assert [(one.kind, one.step) for one in again.kept if one.step] == [
        ("text", 2), ("other", 4), ("text", 7), ("video", 9),
    ]  # fmt: skip
    found = [event for event, _ in events.read_events(tmp_path / "sorted")]
    assert graph in found
    assert strange in found
    assert picture in found


def test_an_event_of_points_and_more_is_kept_once(tmp_path: Path) -> None:
    """Another writer may put a value and a text into one event."""
    both = text(3)
    both.summary.value.add(tag="a", simple_value=1.5)
    both.summary.value.add().CopyFrom(text(3, "second").summary.value[0])
    again = sorted_again(read_log(written(tmp_path, [both])), tmp_path)
    assert len(again.points) == 1
    assert [one.kind for one in again.kept] == ["text", "text"]


POINTS = st.lists(
    st.builds(
        Point,
        st.sampled_from("abc"),
        st.integers(-3, 3) | st.sampled_from([2**40, -(2**63), 2**63 - 1]),
        st.integers(T0_MS, T0_MS + 2),
        st.floats(width=32) | st.sampled_from([0.0, 1.0, math.nan, -math.inf]),
    )
)


@given(points=POINTS)
def test_sorted_the_same_points_stand_in_order(
    tmp_path_factory: object, points: list[Point]
) -> None:
    """None is lost, none is made, whatever they are; one that stands twice stands twice."""
    folder = tmp_path_factory.mktemp("points")  # type: ignore[attr-defined]
    wanted = Points.of(points)
    contents = [call(p.step, at_ms=p.timestamp_ms - T0_MS, **{p.key: p.value}) for p in points]
    log = read_log(written(folder, contents))
    again = sorted_again(log, folder)
    for found in (log, again):
        assert len(found.points.minus(wanted)) == len(wanted.minus(found.points)) == 0
    assert in_order(again.points)


def test_an_insight_is_one_thing_that_is_kept_whole(tmp_path: Path) -> None:
    """However many values it has; in another order it has all of them still."""
    later, first = (
        insight_events.events_of(insight_records.histograms(step))[0] for step in (9, 5)
    )
    log = read_log(written(tmp_path, [later, call(1, a=1.0), first]))
    assert [(one.kind, one.step) for one in log.kept] == [("insight", 9), ("insight", 5)]
    assert not log.is_in_order()
    again = sorted_again(log, tmp_path)
    assert again.is_in_order()
    found = [one for one, _ in events.read_events(tmp_path / "sorted") if one.step > 1]
    assert found == [first, later]
